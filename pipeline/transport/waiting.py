"""Waiting for somebody else: every wait has an end, and a long one is announced with its reason.

Announcements go to the logger `pipeline`; how they are shown is the program's affair
(`jobs/console.py`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextvars import copy_context
from typing import TypeVar

ANNOUNCED_S = 15.0
"""Shorter waits are a network's daily life: six attempts at a read back off for up to 16 s."""
_EVERY_S = 60.0
"""Between two announcements about one thing: sixteen readers may wait for it, again and again."""

_log = logging.getLogger("pipeline")
_announced: dict[str, float] = {}
_lock = threading.Lock()
_Answer = TypeVar("_Answer")


def announce(about: str, text: str) -> None:
    """Log why something takes long, unless that was said a moment ago.

    Args:
        about: what is waited for; never shown.
        text: one line without secrets.
    """
    with _lock:
        now = time.monotonic()
        if now - _announced.get(about, -_EVERY_S) < _EVERY_S:
            return
        _announced[about] = now
    _log.warning("%s", text)


def rest(seconds: float, about: str, why: str) -> None:
    """Sleep; from ANNOUNCED_S on say why."""
    if seconds >= ANNOUNCED_S:
        announce(about, f"{why}: waiting {seconds:,.0f} s")
    time.sleep(max(0.0, seconds))


class Signs:
    """When the other side was last heard of."""

    def __init__(self) -> None:
        self.heard = time.monotonic()

    def heard_now(self, and_then_s: float = 0.0) -> None:
        """Take note of a sign of life, after which nothing is expected for a while."""
        self.heard = time.monotonic() + and_then_s


def answered(
    question: Callable[[], _Answer], signs: Signs, silence_s: float, long: Callable[[float], None]
) -> _Answer:
    """Return the answer to a question that cannot be interrupted, unless it goes silent.

    The question is asked in a thread of its own, which is left behind when it goes silent, and
    does not keep the process from ending. Meanwhile the caller's thread handles signals.

    Args:
        silence_s: for how long there may be no sign of life.
        long: called now and then from ANNOUNCED_S on, with the seconds since the beginning.

    Raises:
        TimeoutError: there was no sign of life for so long.
    """
    future: Future[_Answer] = Future()

    def ask() -> None:
        try:
            future.set_result(question())
        except BaseException as error:  # whatever it is, it is the caller's
            future.set_exception(error)

    threading.Thread(target=copy_context().run, args=(ask,), daemon=True, name="question").start()
    begun = time.monotonic()
    while not future.done():
        left_s = signs.heard + silence_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        if not wait([future], min(left_s, ANNOUNCED_S)).done:
            since_s = time.monotonic() - begun
            if since_s >= ANNOUNCED_S:
                long(since_s)
    return future.result()
