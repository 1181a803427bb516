"""Estimates of a run from the tiles read so far, made now and then beside the work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace

from pipeline.errors import Interrupted, LeaseLost, PlanDoesNotFit, StoreUnusable
from pipeline.job.memory import LEAST_TILES, give_back
from pipeline.job.outcome import Outcome
from pipeline.job.progress import Progress
from pipeline.job.runs import Leases, Runs
from pipeline.job.summary import Execution
from pipeline.job.write import write_runs
from pipeline.planning.memory import show_size
from pipeline.planning.sample import JACKKNIFE_FOLDS
from pipeline.reduce.groups import grouping
from pipeline.reduce.reduce import estimate_bytes, estimated_sums
from pipeline.statistics.parts import Sums
from pipeline.store.attempts import counting, estimate, remove_superseded
from pipeline.store.folder import Folder
from pipeline.store.query import Store
from pipeline.store.tiles import TileFolder

SNAPSHOT_AFTER_S = 30.0
"""Shorter runs are over before anyone has looked: after 5 s, one took a quarter of the CPU of a job of 20."""
SNAPSHOT_SHARE = 0.05
"""Of the time at most goes into snapshots."""
AGAIN_AFTER_S = 30.0
"""After one that failed, and each time twice as long: a job of a day tries a dozen times."""
QUICK_SNAPSHOT_S = 1.0
"""What a snapshot may take that is made when the run is stopped: Ray leaves a job 3 seconds."""


class Pace:
    """When the next estimate is due, on the clock that the caller reads."""

    def __init__(self, now: float) -> None:
        self.due = now + SNAPSHOT_AFTER_S
        self._pause = AGAIN_AFTER_S

    def made(self, now: float, seconds: float) -> None:
        """Take note of one that took so long."""
        self.due = now + seconds / SNAPSHOT_SHARE
        self._pause = AGAIN_AFTER_S

    def failed(self, now: float, seconds: float) -> None:
        """Take note of one that failed after so long."""
        self.due = now + max(self._pause, seconds / SNAPSHOT_SHARE)
        self._pause *= 2


class Snapshots:
    """Estimates from the tiles read so far, made now and then beside the work, as tables too.

    A finished run of the same name is never replaced by one, nor what was followed. Whatever fails in one, the work goes on.
    """

    def __init__(
        self,
        runs: Runs,
        leases: Leases,
        folder: Folder,
        tiles: TileFolder,
        execution: Execution,
        progress: Progress,
        memory: int,
    ) -> None:
        """`memory`: bytes that one may take beside the work."""
        self._runs, self._plan, self._leases = runs, runs.whole, leases
        self._folder, self._tiles = folder, tiles
        self._execution, self._progress, self._memory = execution, progress, memory
        self._made = 0
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._pace = Pace(time.monotonic())
        self._failed = False
        self._wanted: bool | None = None
        """None until the store has been asked whether there is a finished run."""
        self.seconds: float | None = None
        """What the last one took."""

    def consider(self, outcome: Callable[[], Outcome]) -> None:
        """Begin one if it is time, and the last is done.

        `outcome` gives what has been done so far; it is asked only then.
        """
        busy = self._thread is not None and self._thread.is_alive()
        if busy or self._wanted is False or time.monotonic() < self._pace.due:
            return
        now = outcome()
        if not self._enough(now.done):
            return
        thread = threading.Thread(target=self._quietly, args=(now,), name="snapshot")
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread to give
            self._has_failed(error, 0.0)
        else:
            self._thread = thread

    def stop(self) -> None:
        """Give up the one under way, and wait until it has gone."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def last(self, outcome: Outcome) -> None:
        """Make one now, of a run that is being stopped, if that is quickly done."""
        self.stop()
        self._stopped.clear()
        if self.seconds is not None and self.seconds < QUICK_SNAPSHOT_S:
            self._quietly(outcome)

    def _enough(self, done: Collection[int]) -> bool:
        if len(done) < LEAST_TILES:
            return False
        tiles, tensors = self._plan.tiles, self._plan.tensors
        read = {range_.tensor for number in done for range_ in tiles[number].ranges}
        roles = [{part.component for part in tensor.parts} for tensor in tensors]
        return set().union(*(roles[number] for number in read)) == set().union(*roles)

    def _quietly(self, outcome: Outcome) -> None:
        started = time.monotonic()
        try:
            if self._wanted is None:
                self._wanted = not self._is_finished()
            if self._wanted:
                self._make(outcome)
        except (Interrupted, LeaseLost):
            return  # what was asked for; what ends the work as well
        except Exception as error:  # the work needs no estimate, whatever is wrong with it
            self._has_failed(error, time.monotonic() - started)
        else:
            self.seconds = time.monotonic() - started
            self._pace.made(time.monotonic(), self.seconds)
        finally:
            give_back()

    def _has_failed(self, error: Exception, seconds: float) -> None:
        self._pace.failed(time.monotonic(), seconds)
        if not self._failed:  # said once: the next ones mostly fail for the same reason
            self._failed = True
            self._progress.estimate_failed(error)

    def _is_finished(self) -> bool:
        store = self._execution.store
        return any(_is_complete(self._folder, store, plan.run) for plan in self._runs)

    def _make(self, outcome: Outcome) -> None:
        grouped = grouping(self._plan)

        def result(number: int) -> Sums:
            check()
            stored = self._tiles.get(self._plan.tiles[number].name)
            if stored is None:
                raise StoreUnusable(f"the result of tile {number} is damaged or gone")
            return stored

        def check() -> None:
            if self._stopped.is_set():
                raise Interrupted("stopped")
            self._leases.assure()

        read = [number for number in self._plan.order() if number in outcome.done]
        folds = {tile: place % JACKKNIFE_FOLDS for place, tile in enumerate(read)}
        needed = estimate_bytes(self._plan, grouped, self._execution.buffers, folds)
        if needed > self._memory:
            raise PlanDoesNotFit(
                f"an estimate would take {show_size(needed, up=True)} of memory beside the work,"
                f" and --memory leaves {show_size(self._memory)}",
            )
        self._made += 1
        written = write_runs(
            self._runs,
            [estimate(token, self._made) for token in self._leases.tokens],
            grouped,
            estimated_sums(self._plan, grouped, folds, result),
            self._folder,
            self._execution,
            replace(outcome, complete=False),
            final=False,
            check=check,
            ready=check,
        )
        written.commit()
        for plan in self._runs:
            remove_superseded(self._folder, plan.run)
        self._progress.estimated(written.summaries[-1])


def _is_complete(folder: Folder, store: str, run: str) -> bool:
    if not counting(folder, run):
        return False
    return (True,) in Store(store, only=run).sql(
        "SELECT complete OR followed FROM runs WHERE run = ?", [run]
    ).fetchall()
