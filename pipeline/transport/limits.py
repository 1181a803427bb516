"""How many requests a Hub account may make, and keeping to that.

The Hub counts two classes in fixed windows of five minutes: `api` (listings) and `resolvers`
(URLs of files). It states what is left with every answer. Bytes from the host that a URL leads to
count in neither.
"""

from __future__ import annotations

import math
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Protocol


class Headers(Protocol):
    """Of an answer, in any client; names are looked up whatever their case."""

    def get(self, name: str, /) -> str | None: ...


WINDOW_S = 300

QUOTAS: dict[str, dict[str, int]] = {
    "anonymous": {"api": 500, "resolvers": 3_000},
    "free": {"api": 1_000, "resolvers": 5_000},
    "PRO": {"api": 2_500, "resolvers": 12_000},
}
"""Requests in one window, by account: the Hub's documentation ("Hub rate limits") of September 2025."""

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may be others when asked again."""
FIRST_PAUSE_S = 0.5

LONGEST_PAUSE_S = 2 * WINDOW_S
"""A server that asks for a longer pause than two windows is as good as one that refuses."""

_KEPT_BACK = 0.1  # of a window, for whatever else uses the account, and for requests under way
_LEFT = re.compile(r'"(?P<kind>[\w-]+)"\s*;\s*r\s*=\s*(?P<left>\d+)\s*;\s*t\s*=\s*(?P<seconds>\d+)')
_POLICY = re.compile(r"q\s*=\s*(?P<quota>\d+).{0,99}?w\s*=\s*(?P<seconds>\d+)")


def windows(needed: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return how many windows each account needs for so many requests, by class."""
    return {
        account: {kind: -(-needed.get(kind, 0) // quota) for kind, quota in quotas.items()}
        for account, quotas in QUOTAS.items()
    }


def server_time(headers: Headers) -> float | None:
    """Return what an answer's `Date` says that it is, in seconds since 1970; None: it has none.

    An answer that was kept for others on its way says since when (`Age`).
    """
    stated = _date(headers.get("Date"))
    age = headers.get("Age") or ""
    return stated and stated + _seconds(age, 0.0)


def pause_s(headers: Headers) -> float | None:
    """Return the pause that an answer asks for; None: it does not say.

    `Retry-After` in seconds or as a date, which is the server's clock's, or `RateLimit` where
    nothing is left of the window; the longer one where both are given.
    """
    text = (headers.get("Retry-After") or "").strip()
    asked = [_seconds(text, math.inf)] if text.isdecimal() else []
    until = _date(text)
    if until is not None:
        asked.append(max(0.0, until - (server_time(headers) or time.time())))
    stated = _LEFT.search(headers.get("RateLimit") or "")
    if stated and int(stated["left"][:9]) == 0:
        # whole seconds are stated: one more
        asked.append(_seconds(stated["seconds"], math.inf) + 1)
    return max(asked, default=None)


def too_long(seconds: float) -> str:
    """Return what is said of a pause that nobody waits for."""
    shown = f"{seconds:,.0f} s" if seconds < math.inf else "years"
    return f"the server requested a back-off of {shown}, the limit is {LONGEST_PAUSE_S} s"


def _date(text: str | None) -> float | None:
    try:
        date = parsedate_to_datetime(text or "")
    except (ValueError, OverflowError):
        return None
    return date.timestamp() if date.tzinfo is not None else None


def _seconds(text: str, otherwise: float) -> float:
    return float(text) if text.isdecimal() and len(text) < 10 else otherwise


def backoff_s(failures: int) -> float:
    """Return how long to wait after so many failures, where nobody says: twice as long each time.

    At random between half of it and all of it, so that those who failed together do not meet again.
    """
    return FIRST_PAUSE_S * 2**failures * random.uniform(0.5, 1.0)


@dataclass
class _Window:
    left: int
    quota: int
    seconds: float
    ends: float


class Limits:
    """What is left of the account's windows, and waiting for the next one. Safe in threads."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}
        self._lock = threading.Lock()

    def take(self, kind: str, rest: Callable[[float], None] = time.sleep) -> None:
        """Wait until one more request of a class may be made, and count it.

        Args:
            rest: called to wait for some seconds, LONGEST_PAUSE_S at most.
        """
        while (seconds := self._taken(kind)) > 0:
            rest(seconds)

    def _taken(self, kind: str) -> float:
        """Count a request, or return how long to wait before."""
        now = time.monotonic()
        with self._lock:
            window = self._windows.get(kind)
            if window is not None and now >= window.ends:
                if not window.quota:  # it was never said what a window holds
                    del self._windows[kind]
                    return 0.0
                window.left, window.ends = window.quota, now + window.seconds
            if window is None:
                return 0.0
            if window.left <= window.quota * _KEPT_BACK:
                return window.ends - now
            window.left -= 1
            return 0.0

    def note(self, headers: Headers) -> None:
        """Take note of what an answer says is left.

        Not of windows that are too long to be waited for: when such a one is spent, the server
        refuses, and says for how long.
        """
        stated = _LEFT.search(headers.get("RateLimit") or "")
        if stated is None:
            return
        policy = _POLICY.search(headers.get("RateLimit-Policy") or "")
        seconds = _seconds(stated["seconds"], math.inf)
        length = _seconds(policy["seconds"], math.inf) if policy else float(WINDOW_S)
        if max(seconds, length) > LONGEST_PAUSE_S:
            return
        left = int(stated["left"][:9])
        quota = int(policy["quota"][:9]) if policy else left
        ends = time.monotonic() + seconds + 1
        with self._lock:
            window = self._windows.get(stated["kind"])
            if window is not None and ends < window.ends + 2:
                # answers may overtake each other, and requests under way are not in them
                window.left = min(window.left, left)
            else:
                self._windows[stated["kind"]] = _Window(left, quota, length, ends)
