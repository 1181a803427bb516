"""How long a sweep will take, by the times of the runs that are over."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from statistics import fmean

from pipeline.sweep.grid import Run


class Pace:
    """Runs that differ in their seeds alone take about as long as each other."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, list[float]] = {}

    def took(self, run: Run, seconds: float) -> None:
        """Take note of a run that is over."""
        self._seconds.setdefault(_kind(run), []).append(seconds)

    def seconds_left(
        self, waiting: Sequence[Run], active: Sequence[tuple[Run, float]]
    ) -> float | None:
        """Return how long the rest takes; None as long as no run is over.

        Args:
            active: runs under way, and for how many seconds; as many are at any time.
        """
        if not self._seconds:
            return None
        rest = sum(map(self._expected, waiting))
        rest += sum(max(0.0, self._expected(run) - age) for run, age in active)
        return rest / max(1, len(active))

    def _expected(self, run: Run) -> float:
        of_kind = self._seconds.get(_kind(run))
        return fmean(of_kind or [each for kind in self._seconds.values() for each in kind])


def _kind(run: Run) -> Hashable:
    return tuple(run.varied.items())
