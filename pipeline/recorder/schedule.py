"""At which steps of a training a checkpoint is recorded."""

from __future__ import annotations

import bisect
import heapq
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pipeline.errors import RequestError, quoted

Schedule = str | Iterable[int]

_HINT = "linear:20, logarithmic:8, pythia, pythia:20, or a list of steps"
_PYTHIA_EVERY = 1000
"""Pythia's checkpoints are of steps 0, 1, 2, 4, …, 512, then of each 1,000th (arXiv:2304.01373, 2.1)."""


def recorded_steps(schedule: Schedule, last_step: int) -> list[int]:
    """Return the steps at which a training of `last_step` steps is recorded, as `steps` says.

    Raises:
        RequestError: there is no such schedule, or it lists steps after the last.
    """
    return list(itertools.takewhile(lambda step: step <= last_step, steps(schedule, last_step)))


def steps(schedule: Schedule, last_step: int | None) -> Iterator[int]:
    """Yield the steps of a schedule in order, and the last step; without an end unless it is a list.

    `linear:N` is each Nth step. `logarithmic:N` is N steps for each doubling: 2^(i/N) rounded, so that
    `logarithmic:1` is the powers of two. `pythia:N` is the powers of two below N, then each Nth step;
    `pythia` is `pythia:1000`. All of them begin with step 0, the initialization. A list is taken as it is.

    Raises:
        RequestError: there is no such schedule, or it lists steps after the last.
    """
    if isinstance(schedule, str):
        listed = _by_name(schedule)
    else:
        listed = _checked(schedule)
        if last_step is not None and listed[-1] > last_step:
            raise RequestError(
                f"schedule: step {listed[-1]:,} is after the last step, {last_step:,}"
            )
    last = [] if last_step is None else [last_step]
    return (step for step, _ in itertools.groupby(heapq.merge(listed, last)))


class Due:
    """The steps of a schedule that are still to be recorded."""

    def __init__(self, schedule: Schedule, last_step: int | None) -> None:
        """Begin with the first; raises what `steps` raises."""
        self._steps = steps(schedule, last_step)
        self._next = next(self._steps, None)

    def at(self, step: int) -> bool:
        """Return whether something has become due."""
        return self._next is not None and self._next <= step

    def skip(self, first: int) -> list[int]:
        """Skip what comes before a step; return that."""
        skipped: list[int] = []
        while self._next is not None and self._next < first:
            skipped.append(self._next)
            self._next = next(self._steps, None)
        return skipped

    def resume(self, begin: int, recorded: Sequence[int]) -> list[int]:
        """Skip what a training had recorded that is continued from a step; return what it had not.

        A step that is due is recorded then, or later, before another one is.

        Args:
            recorded: its steps in order, none of which comes after `begin`.
        """
        ends = [*self.skip(begin), begin + 1 if self._next is None else self._next]
        if begin in recorded:
            self.skip(begin + 1)
        return [
            step
            for step, end in itertools.pairwise(ends)
            if bisect.bisect_left(recorded, step) == bisect.bisect_left(recorded, end)
        ]


def _by_name(schedule: str) -> Iterator[int]:
    kind, colon, text = schedule.partition(":")
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    match kind:
        case "linear" if number:
            return itertools.count(0, number)
        case "logarithmic" if number:
            powers = (round(2 ** (i / number)) for i in itertools.count())
            return itertools.chain([0], powers)
        case "pythia" if number or not colon:
            every = number or _PYTHIA_EVERY
            powers = itertools.takewhile(lambda step: step < every, map(_power, itertools.count()))
            return itertools.chain([0], powers, itertools.count(every, every))
    raise RequestError(f"schedule: expected a schedule, found {quoted(schedule)}", _HINT)


def _power(exponent: int) -> int:
    return 2**exponent


def _checked(given: Any) -> list[int]:
    try:
        listed = sorted({step_number("schedule", step) for step in given})
    except TypeError:
        raise RequestError(f"schedule: expected a schedule, found {quoted(given)}", _HINT) from None
    if not listed:
        raise RequestError("schedule: expected steps, found none", _HINT)
    return listed


def step_number(what: str, given: Any) -> int:
    """Return a step of a training, of Python or NumPy.

    Raises:
        RequestError: it is none.
    """
    try:
        number = -1 if isinstance(given, bool) else operator.index(given)
    except TypeError:
        number = -1
    if number < 0:
        raise RequestError(f"{what}: expected a step from 0 on, found {quoted(given)}")
    return number
