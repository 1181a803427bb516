"""Answers that go wrong, by rule."""

from __future__ import annotations

import fnmatch
import random
import threading
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

Action = Literal[
    "status", "stall", "trickle", "truncate", "reset", "ignore_range", "wrong_etag", "wrong_content_range",
    "wrong_total", "changed_file", "encoded", "slow_headers", "silent",
    "chunked",
]  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One rule: which answers go wrong, and how."""

    action: Action
    kind: str = "cdn"
    """Kind of request, as records name it."""
    path: str = "*"
    """Glob over the path of the file within its repository."""
    occurrences: Collection[int] | None = None
    """Which of the matching requests, counted from 0; default: all."""
    probability: float = 1.0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    after_bytes: int = 0
    """stall, trickle, truncate, reset: bytes of the body that are sent first."""
    whole: bool = False
    """The whole file is sent instead of the range, besides."""
    after_share: float | None = None
    """The same as a share of the body; 1: all but the last byte."""
    seconds: float = 0.0
    """stall, silent: for how long; trickle: between two bytes, of which 100 are sent; slow_headers:
    between two bytes of a header that has 10,000."""

    def limit(self, num_bytes: int) -> int:
        """Return how many bytes of a body are sent."""
        if self.action not in ("stall", "trickle", "truncate", "reset"):
            return num_bytes
        if self.after_share is not None:
            return min(num_bytes - 1, int(self.after_share * num_bytes))
        return min(num_bytes, self.after_bytes)


class Faults:
    """The rules in force; the first that applies to a request is used."""

    def __init__(self, seed: int = 0) -> None:
        self.applied: list[tuple[Fault, str]] = []
        self._rules: list[Fault] = []
        self._seen: Counter[int] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._rules.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()
            self._seen.clear()
            self.applied.clear()

    def choose(self, kind: str, path: str) -> Fault | None:
        """Return the fault to apply to a request, and note that it was."""
        with self._lock:
            for number, rule in enumerate(self._rules):
                if rule.kind != kind or not fnmatch.fnmatch(path, rule.path):
                    continue
                occurrence = self._seen[number]
                self._seen[number] += 1
                wanted = rule.occurrences is None or occurrence in rule.occurrences
                if wanted and self._random.random() < rule.probability:
                    self.applied.append((rule, path))
                    return rule
        return None
