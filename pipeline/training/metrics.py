"""Metrics by step: curves, however they come in, and notes of what was not understood.

Shapes: N = the values of one metric of one split.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import quoted

UNKNOWN = -1
"""In the place of a step or a checkpoint's number."""
MOST_VALUES = 2_000_000
"""Of one log, 40 MB as they are held: 8 metrics at each of 250,000 steps."""
MOST_CURVES = 4096
"""Of one run. An evaluation of a hundred tasks logs some 500."""
_LONGEST_NAME = 256
_SHOWN = 6
_NOTES = 6
"""Of one log, before the rest is counted only."""


class Metric(NamedTuple):
    """What a curve is of."""

    split: str | None
    name: str

    @property
    def shown(self) -> str:
        return f"{self.split} {self.name}" if self.split else self.name


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Values of one metric in the order of their steps; NaN where one is not finite."""

    steps: NDArray[np.int64]
    """(N,), UNKNOWN where only the checkpoint is known."""
    k: NDArray[np.int32]
    """(N,), the checkpoint that a value is of; UNKNOWN between checkpoints."""
    values: NDArray[np.float64]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Curve) and self._bytes == other._bytes

    __hash__ = None  # pyright: ignore[reportAssignmentType] - arrays have none

    @property
    def _bytes(self) -> tuple[bytes, bytes, bytes]:
        return self.steps.tobytes(), self.k.tobytes(), self.values.tobytes()


@dataclass(frozen=True, slots=True)
class Training:
    """The metrics of one run."""

    curves: Mapping[Metric, Curve] = field(default_factory=dict, repr=False)
    logs: tuple[str, ...] = field(default=(), compare=False)
    """What they were read from, for people."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What was not understood of that."""

    def __or__(self, later: Training) -> Training:
        """Return both; of a metric that both have, the later curve."""
        return Training(
            {**self.curves, **later.curves}, self.logs + later.logs, self.notes + later.notes
        )

    def by_step(self) -> Training:
        """Return the values whose steps are known, without their checkpoints."""
        curves = {}
        for metric, curve in self.curves.items():
            known = curve.steps != UNKNOWN
            if known.any():
                nowhere = np.full(int(known.sum()), UNKNOWN, np.int32)
                curves[metric] = Curve(curve.steps[known], nowhere, curve.values[known])
        return replace(self, curves=curves)

    def at(self, steps: Sequence[int | None]) -> Training:
        """Return the same with the checkpoint of each step, for a run with these steps.

        A step that several checkpoints have, as where numbering restarts with each stage, names none.
        Values whose checkpoint is known keep it.
        """
        counts = Counter(steps)
        known = {step: k for k, step in enumerate(steps) if step is not None and counts[step] == 1}
        order = np.array(sorted(known), np.int64)
        numbers = np.array([known[step] for step in order.tolist()], np.int32)

        def checkpoints(curve: Curve) -> NDArray[np.int32]:
            if not len(order):
                return curve.k
            near = np.minimum(np.searchsorted(order, curve.steps), len(order) - 1)
            at_step = np.where(order[near] == curve.steps, numbers[near], UNKNOWN)
            return np.where(curve.k == UNKNOWN, at_step, curve.k).astype(np.int32)

        curves = {
            metric: Curve(curve.steps, checkpoints(curve), curve.values)
            for metric, curve in self.curves.items()
        }
        return replace(self, curves=curves)

    @property
    def told(self) -> str:
        """What there is of it, in a line; empty if there is nothing."""
        steps = [curve.steps for curve in self.curves.values()]
        if not steps:
            return ""
        known = np.concatenate(steps)
        where = known[known != UNKNOWN]
        ends = f" at steps {where.min():,} … {where.max():,}" if len(where) else ""
        names = [metric.shown for metric in self.curves]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return f"{', '.join(names[:_SHOWN])}{more}: {len(known):,} values{ends}"


def joined(each: Iterable[tuple[int, Training]]) -> Training:
    """Return what several paths of one run have at their checkpoints.

    A step alone would not say whose it is, so values between checkpoints are left to each run alone.

    Args:
        each: the number of its first checkpoint among those of all, and its metrics.
    """
    parts: dict[Metric, list[Curve]] = {}
    logs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    for first, training in each:
        logs, notes = logs + training.logs, notes + training.notes
        for metric, curve in training.curves.items():
            kept = curve.k != UNKNOWN
            k = (curve.k[kept] + first).astype(np.int32)
            if len(k):
                part = Curve(curve.steps[kept], k, curve.values[kept])
                parts.setdefault(metric, []).append(part)
    return Training(
        {
            metric: _in_order(
                np.concatenate([part.steps for part in each]),
                np.concatenate([part.k for part in each]),
                np.concatenate([part.values for part in each]),
            )
            for metric, each in parts.items()
        },
        logs,
        notes,
    )


class Collector:
    """Takes values one by one, of any type, and keeps what they are if they are numbers at steps."""

    def __init__(self, where: str) -> None:
        """`where`: what they are read from, for messages."""
        self._where = where
        self._values: dict[Metric, tuple[array[int], array[int], array[float]]] = {}
        self._count = 0
        self._troubles: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, metric: Metric, step: Any, value: Any, k: int = UNKNOWN) -> None:
        """Take one value; None as a step where the checkpoint k is all that is known.

        Raises:
            ValueError: there are more than any training logs.
        """
        number = UNKNOWN if step is None and k != UNKNOWN else _whole(step)
        if number is None:
            self.trouble("a step that is no whole number", step)
            return
        read = _number(value)
        if read is None:
            self.trouble(f"a value of {quoted(metric.name, 60)} that is no number", value)
            return
        if metric not in self._values:
            if not _is_name(metric.name) or not (metric.split is None or _is_name(metric.split)):
                self.trouble("no name of a metric", metric.name)
                return
            if len(self._values) == MOST_CURVES:
                raise ValueError(f"more than {MOST_CURVES:,} metrics")
            self._values[metric] = array("q"), array("i"), array("d")
        self._count += 1
        if self._count > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values")
        steps, checkpoints, values = self._values[metric]
        steps.append(number)
        checkpoints.append(k)
        values.append(read)

    def trouble(self, what: str, example: Any) -> None:
        """Count something that is not understood."""
        self._troubles[what] += 1
        self._examples.setdefault(what, quoted(example, 60))

    def training(self) -> Training:
        """Return what has been taken, in the order of steps; of equal steps the last value."""
        curves: dict[Metric, Curve] = {}
        again: Counter[Metric] = Counter()
        for metric, columns in self._values.items():
            steps, k, values = columns
            all_of_it = _in_order(
                np.array(steps, np.int64), np.array(k, np.int32), np.array(values, np.float64)
            )
            steps, k, values = all_of_it.steps, all_of_it.k, all_of_it.values
            last = np.append((np.diff(steps) != 0) | (np.diff(k) != 0), True)
            again[metric] = int((~last[:-1] & (np.diff(values) != 0)).sum())
            curves[metric] = Curve(steps[last], k[last], values[last])
        return Training(curves, (self._where,) if curves else (), self._notes(again))

    def _notes(self, again: Counter[Metric]) -> tuple[str, ...]:
        notes = [
            f"{self._where}: left out {count:,} × {what} (first {self._examples[what]})"
            for what, count in self._troubles.most_common()
        ]
        if again.total():
            most = ", ".join(quoted(m.shown, 60) for m, n in again.most_common(3) if n)
            notes.append(
                f"{self._where}: {again.total():,} × another value at a step that is logged again, of {most}:"
                " the last one counts"
            )
        if len(notes) > _NOTES:
            rest = f"{self._where}: left out {len(notes) - _NOTES:,} more kinds of values"
            notes = [*notes[:_NOTES], rest]
        return tuple(notes)


def _in_order(steps: NDArray[np.int64], k: NDArray[np.int32], values: NDArray[np.float64]) -> Curve:
    """Return a curve in the order of steps; of equal ones what came later stays behind."""
    order = np.lexsort((k, steps))
    return Curve(steps[order], k[order], values[order])


def _whole(value: Any) -> int | None:
    """Return a step: a whole number, however it is written."""
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            value = _number(value)  # such as "100.0"
    try:
        exact = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return exact if exact == value and type(value) is not bool and 0 <= exact < 2**63 else None


def _number(value: Any) -> float | None:
    """Return a value; NaN for one that is undefined or infinite, None for what is no number."""
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else math.nan


def _is_name(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return 0 < len(text) <= _LONGEST_NAME
