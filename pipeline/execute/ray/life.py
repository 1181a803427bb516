"""A Ray's life, on a thread of its own: who waits for its start or its end can be interrupted.

Ray's calls for that take seconds, minutes where something is wrong, and hear no signal meanwhile. They
set handlers of signals, too: the one in C++ aborts with a trace, and from the moment when it is taken
away a signal kills. So the caller's handlers are put back all the while.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from typing import Any

import ray
from ray._private import worker as ray_worker  # no public name tells its processes

END_S = 15.0
"""For Ray to shut down: it ends its processes one after the other, by force after a second or so."""
_LOOK_S = 0.01  # so long a handler of Ray's may stay
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT")  # a URL may hold a password
_NICENESS = "RAY_worker_niceness"
"""How far Ray puts its workers behind other programs: by 15 unless this is set, and then each program that computes
beside them gets 28 times the processor (docs/decisions/ray-lifetime.md)."""


class Life:
    """Ray from `begin` to the end of the `with` block.

    The thread lives as long: the kernel kills what Ray has started when the thread that started it
    ends, and so with this process, however it ends.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        """Prepare; nothing starts yet. `options`: those of `ray.init`."""
        self._options = options
        self._begun: Future[None] = Future()
        self._over = threading.Event()
        self._ended: Future[None] = Future()

    def __enter__(self) -> Life:
        return self

    def begin(self, within_s: float) -> None:
        """Start.

        Raises:
            TimeoutError: it takes longer.
            Whatever Ray raises.
        """
        threading.Thread(target=self._live, name="ray", daemon=True).start()
        _wait(self._begun, within_s)
        self._begun.result()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._begun.done() and self._begun.exception() is None:
            with contextlib.suppress(TimeoutError):  # its processes end with this one
                _wait(self._ended, END_S)

    def _live(self) -> None:
        try:
            with _environment():
                ray.init(logging_level=logging.ERROR, log_to_driver=False, **self._options)
        except BaseException as error:  # whoever waits is told
            self._begun.set_exception(error)
        else:
            self._begun.set_result(None)
            self._over.wait()
        with contextlib.suppress(Exception):  # it is over: nothing is left to be done about it
            _end_autoscaler()
        with contextlib.suppress(Exception):
            ray.shutdown()
        self._ended.set_result(None)


def _end_autoscaler() -> None:
    """End it by force: it does not hear SIGTERM, and Ray would wait a second for it."""
    node: Any = ray_worker._global_node  # pyright: ignore[reportPrivateUsage]
    if node is not None:
        node.kill_monitor(check_alive=False)


def _wait(call: Future[None], seconds: float) -> None:
    """Wait for an end; meanwhile the handlers of signals stay what they are now.

    Raises:
        TimeoutError: it takes longer.
    """
    deadline = time.monotonic() + seconds
    while not call.done():
        if time.monotonic() > deadline:
            raise TimeoutError
        if threading.current_thread() is threading.main_thread():  # no other may set any
            for number in (signal.SIGINT, signal.SIGTERM):
                if (handler := signal.getsignal(number)) is not None:
                    signal.signal(number, handler)
        wait([call], _LOOK_S)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Every process of a local Ray inherits this one's environment: without secrets, and with its priority."""
    before = {name: os.environ.get(name) for name in (*_SECRETS, _NICENESS)}
    for name in _SECRETS:
        os.environ.pop(name, None)
    os.environ.setdefault(_NICENESS, "0")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
