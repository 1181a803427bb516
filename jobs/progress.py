"""The progress of a job, on standard error."""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from jobs.console import console, say
from jobs.internal_error import told
from pipeline.errors import HallmarksError
from pipeline.execute.drive.schedule import Lost
from pipeline.job.summary import Summary
from pipeline.planning.memory import show_size
from pipeline.planning.plan import Plan
from pipeline.sweep.sweep import Failed, SweepState

LINE_EVERY_S = 15.0  # between progress lines where there is no terminal


def with_error(value: float, error: float | None) -> str:
    """Return a figure and its standard error, to two digits of that."""
    if error is None:
        return f"{value:.4g} ± ?"
    digits = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 6
    return f"{value:.{digits}f} ± {error:.{digits}f}" if digits < 15 else f"{value:.6g}"


def _bar(screen: Console) -> Progress:
    """Return a bar that is shown."""
    bar = Progress(
        TextColumn("reading{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=screen,
    )
    bar.start()
    return bar


class AverageProgress:
    """How far a combination of checkpoints is: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._done = self._total = 0
        self._last_line = time.monotonic()

    def begun(self, what: str, total: int, done: int) -> None:
        self._done, self._total = done, total
        earlier = f", {show_size(done)} done earlier" if done else ""
        say(self._console, f"{what}: {show_size(total)} to read{earlier}")
        if self._console.is_terminal:
            self._bar = _bar(self._console)
            self._task = self._bar.add_task("", total=total, completed=done)

    def advanced(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif time.monotonic() - self._last_line > LINE_EVERY_S:
            self._last_line = time.monotonic()
            say(self._console, f"{show_size(self._done)} of {show_size(self._total)}")

    def note(self, text: str) -> None:
        self.close()
        say(self._console, f"note: {text}")

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class SweepProgress:
    """How far a sweep is: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self, store: str) -> None:
        """`store`: logs of internal errors lie beside it."""
        self._store = store
        self._console = console(stderr=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._last_line = time.monotonic()

    def begun(self, state: SweepState) -> None:
        earlier = f", {state.stored} done earlier" if state.stored else ""
        say(self._console, f"{state.total} run{'s'[state.total == 1 :]}{earlier}")
        if self._console.is_terminal and state.over < state.total:
            self._bar = Progress(
                BarColumn(), TextColumn("{task.description}"), console=self._console
            )
            self._bar.start()
            self._task = self._bar.add_task(
                _how_far(state), total=state.total, completed=state.over
            )

    def advanced(self, state: SweepState) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=state.over, description=_how_far(state))
        elif time.monotonic() - self._last_line > LINE_EVERY_S:
            self._last_line = time.monotonic()
            say(self._console, _how_far(state))

    def failed(self, failed: Failed) -> None:
        """Name a run that has failed; the others go on."""
        if isinstance(failed.error, HallmarksError):
            cure = f" ({failed.error.hint})" if failed.error.hint else ""
            why = failed.error.message + cure
        else:
            why = "{} ({})".format(*told(failed.error, self._store))
        say(self._console, f"run {failed.run} failed: {why}")

    def note(self, text: str) -> None:
        say(self._console, f"note: {text}")

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _how_far(state: SweepState) -> str:
    failed = f", {len(state.failed)} failed" if state.failed else ""
    left = "" if state.seconds_left is None else f", {show_time(state.seconds_left)} left"
    return f"{state.over} of {state.total} runs{failed}{left}"


def show_time(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class JobProgress:
    """A live bar on a terminal, a line now and then elsewhere."""

    def __init__(self, store: str) -> None:
        """`store`: where the job keeps its results; logs of internal errors lie beside it."""
        self._store = store
        self._console = console(stderr=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._done = self._total = self._resumed = 0
        self._started = self._last_line = time.monotonic()
        self._estimate = ""

    def planned(self, plan: Plan, finished_bytes: int) -> None:
        self._done = self._resumed = finished_bytes
        self._total, self._started = plan.bytes_to_read, time.monotonic()
        tiles = len(plan.tiles)
        resumed = f", {show_size(finished_bytes)} done earlier" if finished_bytes else ""
        self._say(
            f"{plan.run}: {len(plan.checkpoints)} checkpoints, {len(plan.counted)} tensors,"
            f" {show_size(plan.bytes_to_read)} in {tiles} tile{'s'[tiles == 1 :]}{resumed}"
        )
        if self._console.is_terminal:
            self._bar = _bar(self._console)
            self._task = self._bar.add_task("", total=self._total, completed=finished_bytes)

    def tile_done(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif time.monotonic() - self._last_line > LINE_EVERY_S:
            self._last_line = time.monotonic()
            rate = (self._done - self._resumed) / max(1e-9, time.monotonic() - self._started)
            left = (self._total - self._done) / max(1.0, rate)
            self._say(
                f"{show_size(self._done)} of {show_size(self._total)},"
                f" {show_size(int(rate))}/s, {left:.0f} s left{self._estimate}"
            )

    def tile_lost(self, lost: Lost) -> None:
        self._say(f"tile {lost.tile} failed permanently: {lost.error.message}")

    def estimated(self, summary: Summary) -> None:
        """Show the model's figures so far from now on."""
        figures = (
            ("mds", summary.mds, summary.mds_stderr),
            ("relative mds", summary.relative_mds, summary.relative_mds_stderr),
        )
        self._estimate = "".join(
            f"; {name} {with_error(value, error)}"
            for name, value, error in figures
            if value is not None
        )
        if self._bar is not None:
            self._bar.update(self._task, description=self._estimate)

    def estimate_failed(self, error: Exception) -> None:
        """Say why there is no estimate; the work goes on."""
        if isinstance(error, HallmarksError):
            why = error.message
        elif isinstance(error, MemoryError):
            why = "out of memory"
        else:
            why = "{} ({})".format(*told(error, self._store))
        self._say(f"no estimate for now (the job continues): {why}")

    def verified(self, num_files: int) -> None:
        """Say that whole files are what was published; of some sources no hash is."""
        self._say(f"verified: {num_files:,} files match the hashes that their repository publishes")

    def reducing(self) -> None:
        self.close()
        self._say("reducing and writing")

    def note(self, text: str) -> None:
        """Say what the job does beside its work, and why."""
        self._say(text)

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, text: str) -> None:
        say(self._console, text)
