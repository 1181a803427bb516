"""huggingface_hub's client while it answers a question of ours: what it sends, and how long it takes.

One question may be several requests. Each is paced by the account's limits and counted; none leaves
https, or carries the token anywhere but to the Hub; and none waits for ever, which the client itself
would: it knows no timeout for listings, sleeps for whatever an answer asks for, and follows `next`
as far as it leads.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import get_session

from pipeline.errors import ReadError, RequestError, TransientReadError, quoted
from pipeline.transport.connections import host_of
from pipeline.transport.limits import (
    LONGEST_PAUSE_S,
    TRANSIENT,
    Headers,
    Limits,
    pause_s,
    server_time,
    too_long,
)
from pipeline.transport.proxies import PORTS, proxy_of
from pipeline.transport.waiting import ANNOUNCED_S, Signs, announce, answered, rest

SILENCE_S = 30.0
"""To the headers of an answer, and from there to its end. A page of 1,000 files has 300 KB: 10 KB/s."""
MOST_REQUESTS = 2_000
"""For one question: pages of 1,000 files or 50 commits. The largest repositories have 100 pages, and
2,000 take an anonymous account twenty minutes."""
_CLOCK_S = 120.0
"""A difference that is worth a word: twice what an answer may take, and whole seconds are stated."""
_HOME = frozenset({"https://huggingface.co", "https://hf.co"})
"""Where a token is from: a mirror may send on to there."""
_LOGGERS = (
    "huggingface_hub.utils._http", "huggingface_hub.file_download", "httpx", "httpx2",
    *(f"{name}.{part}" for name in ("httpcore", "httpcore2")
      for part in ("connection", "http11", "http2", "proxy")),
)  # fmt: skip
_Answer = TypeVar("_Answer")

_limits = Limits()
"""Of this process's account: several repositories share it."""


class Clock:
    """A server's clock, as its answers tell it."""

    def __init__(self, host: str) -> None:
        self._host, self._ahead_s = host, 0.0

    def now(self) -> float:
        """Return what it is there now, in seconds since 1970."""
        return time.time() - self._ahead_s

    def note(self, headers: Headers) -> None:
        """Take note of an answer's `Date`; say so if this machine has another."""
        stated = server_time(headers)
        if stated is None:
            return
        self._ahead_s = time.time() - stated
        if abs(self._ahead_s) > _CLOCK_S:
            side = "ahead of" if self._ahead_s > 0 else "behind"
            announce(
                f"clock of {self._host}",
                f"this machine's clock is {abs(self._ahead_s):,.0f} s {side} that of {self._host}"
                " (Date); URLs are timed by the latter",
            )


class Session:
    """The client's requests for one repository's reader."""

    def __init__(self, endpoint: str, counted: Callable[[str], None]) -> None:
        """`counted`: told the rate-limit class of every request."""
        self._endpoint, self._counted = endpoint, counted
        self.host = self._path = ""
        with contextlib.suppress(ValueError):  # it is no URL, which `answer` says
            parts = urlsplit(endpoint)
            if parts.scheme in PORTS and parts.hostname:
                self.host, self._path = host_of(endpoint), parts.path
        self.clock = Clock(self.host)

    def answer(self, question: Callable[[], _Answer], where: str, silence_s: float) -> _Answer:
        """Return the client's answer to a question.

        Raises:
            TimeoutError: nothing was heard for so long.
            Whatever the client raises.
        """
        if not self.host:  # what is there instead may hold a password
            raise RequestError("HF_ENDPOINT is not a URL", "write https://host")
        proxy_of(self._endpoint)  # the client's own error for a bad one would quote it
        asking = _Question(self, where)
        before = _asking.set(asking)
        try:
            _watch()
            return answered(question, asking, silence_s, asking.takes_long)
        finally:
            _asking.reset(before)
            asking.over = True

    def take(self, kind: str, signs: Signs | None = None) -> None:
        """Wait until the account's window has room for one more request, and count it."""

        def pause(seconds: float) -> None:
            if signs:
                signs.heard_now(seconds)
            rest(seconds, f"window of {kind}", f"the account's window of {kind} requests is spent")

        _limits.take(kind, pause)
        self._counted(kind)

    def kind(self, url: str) -> str | None:
        """Return the rate-limit class of a request; None: it is not one of the Hub's."""
        if host_of(url) != self.host:
            return None
        path = urlsplit(url).path.removeprefix(self._path)
        return "api" if path.startswith("/api/") else "resolvers"


class _Question(Signs):
    """One question, whose requests are signs of life."""

    def __init__(self, session: Session, where: str) -> None:
        super().__init__()
        self._session, self._where = session, where
        self._requests = 0
        self.over = False
        """Nobody waits for the answer any more: the client is not to try again."""

    def sends(self, url: str, with_token: bool) -> None:
        """Take note of a request before it is sent, or refuse to send it."""
        session, host = self._session, host_of(url)
        if self.over:
            raise ReadError(f"{self._where}: given up")
        if session.host.startswith("https:") and not host.startswith("https:"):
            raise ReadError(
                f"{self._where}: {session.host} leads to {quoted(host)}, which is not https"
            )
        if with_token and host not in _HOME | {session.host}:
            raise ReadError(
                f"{self._where}: {session.host} leads to {quoted(host)}, where the token does not go"
            )
        self._requests += 1
        if self._requests > MOST_REQUESTS:
            raise ReadError(
                f"{self._where}: expected a listing of at most {MOST_REQUESTS:,} pages, found more",
                f"{session.host} names a next page after each",
            )
        if kind := session.kind(url):
            session.take(kind, self)
        self.heard_now()

    def receives(self, url: str, status: int, headers: Headers) -> None:
        """Take note of an answer's status and headers."""
        self.heard_now()
        if host_of(url) == self._session.host:
            self._session.clock.note(headers)
        asked_s = pause_s(headers) if status in TRANSIENT else None
        if asked_s is None:
            return
        if asked_s > LONGEST_PAUSE_S:  # the client would sleep that long
            raise TransientReadError(f"{self._where}: HTTP {status}: {too_long(asked_s)}")
        self.heard_now(asked_s + 1)
        if asked_s >= ANNOUNCED_S:
            host = self._session.host
            announce(host, f"{host} requested a back-off of {asked_s:,.0f} s (HTTP {status})")

    def takes_long(self, seconds: float) -> None:
        """Say that the answer is still not there."""
        host, requests = self._session.host, self._requests
        announce(
            host,
            f"{self._where}: waiting for {host} for {seconds:,.0f} s, {requests:,} requests so far",
        )


_asking: ContextVar[_Question | None] = ContextVar("asking", default=None)
"""The question that the client is busy with."""


def _watch() -> None:
    """Have the client's requests and answers pass here while it answers a question of ours.

    And none of its messages be logged meanwhile: they quote URLs, and we say what failed.
    """
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if _not_asking not in logger.filters:
            logger.addFilter(_not_asking)
    hooks = get_session().event_hooks
    if _before not in hooks["request"]:
        hooks["request"].append(_before)
        hooks["response"].append(_after)


def _not_asking(record: logging.LogRecord) -> bool:
    del record
    return _asking.get() is None


def _before(request: Any) -> None:
    if (question := _asking.get()) is not None:
        question.sends(str(request.url), "authorization" in request.headers)


def _after(response: Any) -> None:
    _limits.note(response.headers)
    if (question := _asking.get()) is not None:
        question.receives(str(response.url), response.status_code, response.headers)
