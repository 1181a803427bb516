"""A sweep: which of its runs are left to do, and doing them side by side, whichever of them fail."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.errors import (
    HallmarksError,
    PackageMissing,
    RunInUse,
    StoreFailed,
    TileLost,
)
from pipeline.execute.drive.calls import Calls
from pipeline.execute.drive.processes import processes
from pipeline.execute.drive.schedule import MAX_FAILURES
from pipeline.planning.machine import available_cores
from pipeline.sweep.grid import Run, Sweep
from pipeline.sweep.pace import Pace
from pipeline.sweep.run import Done, Place, carry_out, is_stored, is_trained

_TICK_S = 1.0
_LOOK_AGAIN_S = 2.0
"""At a run that another process has in hand."""
_ASKED_AT_ONCE = 16
"""Runs that the store is asked for: of a bucket an answer takes 10 to 100 ms."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A run that has no result, and why."""

    run: str
    error: Exception

    @property
    def reason(self) -> str:
        """In one line."""
        if isinstance(self.error, HallmarksError):
            return self.error.message
        return HallmarksError(f"{type(self.error).__name__}: {self.error}").message


@dataclass(slots=True)
class SweepState:
    """How far a sweep is."""

    total: int
    stored: int = 0
    """Runs that were complete before, or that another driver has completed meanwhile."""
    done: list[Done] = field(default_factory=list[Done])
    failed: list[Failed] = field(default_factory=list[Failed])
    seconds_left: float | None = None
    """Of the whole sweep, by the times of the runs so far; None before there are any."""

    @property
    def over(self) -> int:
        """How many runs are over."""
        return self.stored + len(self.done) + len(self.failed)


class Listener(Protocol):
    """Told what happens."""

    def begun(self, state: SweepState) -> None: ...
    def advanced(self, state: SweepState) -> None: ...
    def failed(self, failed: Failed) -> None: ...
    def note(self, text: str) -> None: ...


def left_to_do(sweep: Sweep, place: Place) -> list[Run]:
    """Return the runs that the store has not got.

    Raises:
        RequestError: a run or its checkpoints are of other settings, and may not be replaced.
    """

    def is_left(run: Run) -> bool:
        if is_stored(run, place):
            return False
        is_trained(run, place)  # what must not be replaced is refused before anything begins
        return True

    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        left = list(pool.map(is_left, sweep.runs))
    return [run for run, is_one in zip(sweep.runs, left, strict=True) if is_one]


@contextmanager
def callers(
    executor: str, address: str | None, device: str, at_once: int | None
) -> Iterator[Calls]:
    """Yield who carries out runs.

    Args:
        executor: `local`: processes of this machine; or `ray`.
        at_once: runs at most; default: as many as there are cores, or GPUs on Ray.

    Raises:
        RequestError: the device or the cluster is not there.
    """
    if executor == "local":
        if device == "cuda":
            from pipeline.execute.work.device import choose_device

            choose_device(device)
        with processes(at_once or available_cores()) as calls:
            yield calls
        return
    from pipeline.execute.ray.calls import ray_calls  # Ray takes a second

    with ray_calls(address, device, at_once) as calls:
        yield calls


def carry_out_all(
    runs: Sequence[Run], place: Place, calls: Calls, state: SweepState, listener: Listener
) -> None:
    """Carry out runs, as many at once as there is room for; `state` says what has become of them.

    Raises:
        PackageMissing: one that every run needs.
        StoreFailed: nothing can be stored any more.
        HallmarksError: nobody can carry them out.
    """
    listener.begun(state)
    work = _Work(runs, place, calls, state, listener)
    while not work.is_over:
        work.begin()
        for number, outcome in calls.ended(_TICK_S):
            work.end(number, outcome)
        work.tell()


class _Work:
    """The runs that are left, by their numbers: each waits, rests, is active or is over."""

    def __init__(
        self,
        runs: Sequence[Run],
        place: Place,
        calls: Calls,
        state: SweepState,
        listener: Listener,
    ) -> None:
        self._runs, self._place, self._calls = runs, place, calls
        self._state, self._listener = state, listener
        self._waiting = deque(range(len(runs)))
        self._resting: deque[tuple[float, int]] = deque()
        """Runs that another process has in hand, and when to look again."""
        self._active: dict[int, float] = {}
        """Since when."""
        self._deaths: Counter[int] = Counter()
        self._noted: set[int] = set()
        self._pace = Pace()

    @property
    def is_over(self) -> bool:
        return not (self._waiting or self._resting or self._active)

    def begin(self) -> None:
        """Begin as many runs as there is room for."""
        while self._resting and self._resting[0][0] <= time.monotonic():
            self._waiting.append(self._resting.popleft()[1])
        while self._waiting and self._calls.free > 0:
            number = self._waiting.popleft()
            self._calls.begin(number, carry_out, self._runs[number], self._place)
            self._active[number] = time.monotonic()

    def end(self, number: int, outcome: Done | Exception) -> None:
        """Take note of how a run has ended, or have it begun again."""
        del self._active[number]
        run = self._runs[number]
        match outcome:
            case Done() if outcome.seconds == 0:
                self._state.stored += 1
            case Done():
                self._state.done.append(outcome)
                self._pace.took(run, outcome.seconds)
            case RunInUse():
                self._resting.append((time.monotonic() + _LOOK_AGAIN_S, number))
                if number not in self._noted:
                    self._noted.add(number)
                    self._listener.note(f"{outcome.message}; looked at again later")
            case PackageMissing() | StoreFailed():
                raise outcome
            case TileLost() if self._deaths[number] + 1 < MAX_FAILURES:
                self._deaths[number] += 1
                self._waiting.append(number)
                self._listener.note(f"run {run.name}: {outcome.message}; started again")
            case error:
                failed = Failed(run.name, error)
                self._state.failed.append(failed)
                self._listener.failed(failed)

    def tell(self) -> None:
        """Tell how far it is."""
        now = time.monotonic()
        left = [*self._waiting, *(number for _, number in self._resting)]
        ages = [(self._runs[number], now - since) for number, since in self._active.items()]
        waiting = [self._runs[number] for number in left]
        self._state.seconds_left = self._pace.seconds_left(waiting, ages)
        self._listener.advanced(self._state)
