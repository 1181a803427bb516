"""How many requests a Hub account may make, and keeping to it.

The Hub counts two classes in fixed windows of five minutes: `api` (listings) and `resolvers`
(addresses of files). It states what is left with every answer. Bytes from the host that an address
leads to count in neither.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
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
"""A server that asks for more than two windows is as good as one that refuses."""

_KEPT_BACK = 0.1  # of a window, for whatever else uses the account, and for requests under way
_LEFT = re.compile(r'"(?P<kind>[\w-]+)"\s*;\s*r\s*=\s*(?P<left>\d+)\s*;\s*t\s*=\s*(?P<seconds>\d+)')
_POLICY = re.compile(r"q\s*=\s*(?P<quota>\d+).{0,99}?w\s*=\s*(?P<seconds>\d+)")


def windows(needed: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return how many windows each account needs for so many requests, by class."""
    return {
        account: {kind: -(-needed.get(kind, 0) // quota) for kind, quota in quotas.items()}
        for account, quotas in QUOTAS.items()
    }


def pause_s(headers: Headers) -> float | None:
    """Return for how long an answer asks to be left alone; None: it does not say.

    `Retry-After` in seconds or as a date, else `RateLimit` where nothing is left of the window.
    """
    text = (headers.get("Retry-After") or "").strip()
    if text.isdecimal() and len(text) < 10:
        return float(text)
    if text:
        try:
            until = parsedate_to_datetime(text)
        except ValueError:
            until = None
        if until is not None and until.tzinfo is not None:
            return max(0.0, (until - datetime.now(UTC)).total_seconds())
    found = _LEFT.search(headers.get("RateLimit") or "")
    if found and int(found["left"][:9]) == 0:
        return float(found["seconds"][:9]) + 1  # whole seconds are stated: one more
    return None


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

    def take(self, kind: str) -> None:
        """Wait until one more request of a class may be made, and count it."""
        while (seconds := self._taken(kind)) > 0:
            time.sleep(seconds)

    def _taken(self, kind: str) -> float:
        """Count a request, or return how long to wait before."""
        now = time.monotonic()
        with self._lock:
            window = self._windows.get(kind)
            if window is None:
                return 0.0
            if now >= window.ends:
                window.left, window.ends = window.quota, now + window.seconds
            if window.left <= window.quota * _KEPT_BACK:
                return min(window.ends - now, LONGEST_PAUSE_S)
            window.left -= 1
            return 0.0

    def note(self, headers: Headers) -> None:
        """Take note of what an answer says is left."""
        found = _LEFT.search(headers.get("RateLimit") or "")
        if found is None:
            return
        left, seconds = int(found["left"][:9]), int(found["seconds"][:9])
        policy = _POLICY.search(headers.get("RateLimit-Policy") or "")
        quota = int(policy["quota"][:9]) if policy else left
        length = int(policy["seconds"][:9]) if policy else WINDOW_S
        ends = time.monotonic() + seconds + 1
        with self._lock:
            window = self._windows.get(found["kind"])
            if window is not None and ends < window.ends + 2:
                # answers may overtake each other, and requests under way are not in them
                window.left = min(window.left, left)
            else:
                self._windows[found["kind"]] = _Window(left, quota, length, ends)
