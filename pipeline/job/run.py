"""One job, from tiles without a result to runs that count, whatever fails in its store meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from pipeline.errors import (
    Corrupted,
    HallmarksError,
    Interrupted,
    LeaseLost,
    StoreFailed,
    StoreUnusable,
    TileLost,
)
from pipeline.execute.drive.schedule import MAX_FAILURES, Lost
from pipeline.execute.work.receipt import Receipt
from pipeline.execute.work.verify import published
from pipeline.job.executor import Executor
from pipeline.job.memory import give_back
from pipeline.job.outcome import Account
from pipeline.job.patience import Patience, store_in_use
from pipeline.job.progress import Progress
from pipeline.job.runs import Leases, Runs
from pipeline.job.snapshots import Snapshots
from pipeline.job.spectra import Spectra
from pipeline.job.summary import Execution, Summary
from pipeline.job.write import Written, write_runs
from pipeline.planning.memory import largest_result
from pipeline.planning.request import Resources
from pipeline.reduce.groups import grouping
from pipeline.reduce.parts import sums_of_parts
from pipeline.reduce.reduce import group_sums
from pipeline.reduce.ties import settled
from pipeline.statistics.parts import Sums
from pipeline.statistics.statistic import part_bytes
from pipeline.store.attempts import final, remove_superseded
from pipeline.store.folder import Folder
from pipeline.store.plans import write_plan
from pipeline.store.progress import ProgressFile, remove_record
from pipeline.store.records import discard_records
from pipeline.store.sums import SumFolder
from pipeline.store.tiles import TileFolder, discard, discard_all

MOST_AHEAD = 16
"""Results of tiles that are read ahead: on object storage a request takes 10 to 100 ms."""


class _Gone(Exception):
    """Results of tiles that had one are damaged or gone."""


class Job:
    """The work of one plan, whose tables are written as one run or several."""

    def __init__(
        self,
        runs: Runs,
        folder: Folder,
        tiles: TileFolder,
        sums: SumFolder,
        leases: Leases,
        execution: Execution,
        progress: Progress,
        resources: Resources,
    ) -> None:
        """Prepare; nothing is done yet."""
        self._runs, self._plan, self._folder = runs, runs.whole, folder
        self._tiles, self._sums, self._leases = tiles, sums, leases
        self._execution, self._progress, self._verify = execution, progress, resources.verify
        self._resources = resources
        self._record = ProgressFile(folder, self._plan.run, leases.tokens[-1])
        self._patience = Patience(progress.note)
        self._order = self._plan.order()
        self._account = Account()
        self._worked_s = 0.0
        self._gone: Counter[int] = Counter()
        """How often the result of a tile has gone."""

    def run(self, executor: Executor) -> list[Summary]:
        """Compute what has no result yet, write the runs, and clean up.

        What the store does not take is tried again, and results that have gone are made again.

        Raises:
            StoreFailed: the store has failed for too long.
            HallmarksError: whatever else ended the work; what was finished is kept.
        """
        try:
            written = self._written(executor)
            commit(written, self._patience)
        except Interrupted:
            self._renew("interrupted", now=True)
            raise
        except LeaseLost:
            raise  # the record is another driver's, too
        except HallmarksError:
            self._renew("failed", now=True)
            raise
        try:
            sums = None if self._account.lost else self._sums
            settle(self._runs, self._leases, self._folder, sums)
        except (StoreUnusable, LeaseLost) as error:
            self._progress.note(f"{error.message}; the next run will remove the leftovers")
        return written.summaries

    def _written(self, executor: Executor) -> Written:
        while True:
            try:
                with store_in_use():
                    pending = self._pending()
                self._work_through(executor, pending)
                with store_in_use():
                    return self._write()
            except _Gone:
                continue
            except StoreFailed as error:
                self._patience.wait(error)

    def _pending(self) -> list[int]:
        """Return the tiles that have no result, in the plan's random order."""
        stored = self._tiles.finished()
        devices: dict[int, str] = {}
        for tile in self._plan.tiles:
            if tile.name not in stored:
                continue
            if tile.index in self._account.done:
                devices[tile.index] = self._account.done[tile.index]
            elif (result := self._tiles.get(tile.name)) is not None:
                devices[tile.index] = result.device
            # a damaged result is done again, so each is looked at before it is counted on
        self._account.stored(devices)
        lost = self._account.lost
        pending = [n for n in self._order if n not in devices and n not in lost]
        if self._verify:
            pending.sort()  # as files are hashed
        return pending

    def _work_through(self, executor: Executor, pending: list[int]) -> None:
        if not (pending or self._verify):
            return
        self._progress.planned(self._plan, self._bytes_done)
        snapshots = Snapshots(
            self._runs,
            self._leases,
            self._folder,
            self._tiles,
            self._execution,
            self._progress,
            executor.for_estimates,
        )
        self._renew("reading", now=True)
        started = time.monotonic()
        try:
            for outcome in executor.work(pending, self._tiles):
                self._take(outcome)
                self._renew("reading")
                if not self._verify:  # else what has been read is no random sample
                    snapshots.consider(self._account.outcome)
            if self._verify:
                self._progress.verified(len(published(self._plan)))
            self._verify = False
        except Interrupted:
            snapshots.last(self._account.outcome())
            raise
        except Corrupted:
            discard(self._folder, self._plan.run)  # some of it was made from wrong bytes
            raise
        finally:
            snapshots.stop()
            self._worked_s += time.monotonic() - started

    @property
    def _bytes_done(self) -> int:
        return sum(self._plan.tiles[number].bytes for number in self._account.done)

    def _renew(self, state: str, *, now: bool = False) -> None:
        """Tell those who look at the store how far this is."""
        if not now and not self._record.due:
            return
        self._record.renew(
            state=state,
            tiles=len(self._plan.tiles),
            tiles_done=len(self._account.done),
            tiles_lost=len(self._account.lost),
            bytes=self._plan.bytes_to_read,
            bytes_done=self._bytes_done,
            workers=self._execution.workers,
        )

    def _take(self, outcome: Receipt | Lost) -> None:
        self._leases.assure()
        if isinstance(outcome, Lost):
            self._give_up(outcome)
            return
        self._patience.succeeded()
        self._account.finished(outcome)
        self._progress.tile_done(outcome.bytes)

    def _give_up(self, lost: Lost) -> None:
        self._account.gave_up(lost)
        self._progress.tile_lost(lost)

    def _write(self) -> Written:
        """Reduce, and write the tables of each run.

        Raises:
            _Gone: results are not there any more.
        """
        self._progress.reducing()
        self._renew("reducing", now=True)
        outcome = replace(self._account.outcome(), work_seconds=self._worked_s)
        gone: set[int] = set()
        give_back()  # blocks of tiles: the reduction takes memory of its own
        self._sums.write(sums_of_parts(self._plan, self._results(gone)))
        write_plan(self._folder, self._plan)
        if gone:
            self._do_again(gone)
            raise _Gone
        lost = frozenset(
            range_.tensor
            for number in self._account.lost
            for range_ in self._plan.tiles[number].ranges
        )

        def ready() -> None:
            self._leases.check()
            if outcome.complete:
                self._sums.seal()

        plan = settled(self._plan, self._sums.read, lost)
        spectra = Spectra(self._folder, plan) if plan.spectra else None
        if spectra and spectra.pending(self._resources):
            spectra, plan = None, replace(plan, spectra=0)  # until they have been read
        grouped = grouping(plan)
        return write_runs(
            Runs.of(plan),
            [final(token) for token in self._leases.tokens],
            grouped,
            group_sums(plan, grouped, self._sums.read, self._execution.buffers.stack, lost),
            self._folder,
            self._execution,
            outcome,
            rows=self._sums.rows(),
            lost=lost,
            matrices=spectra.figures() if spectra else (),
            final=True,
            check=self._leases.assure,
            ready=ready,
        )

    def _results(self, gone: set[int]) -> Iterator[tuple[int, Sums | None]]:
        """Yield the results of all tiles, in order; `gone` gets those that should be there."""
        each = part_bytes(self._plan.statistics, len(self._plan.checkpoints))
        largest = largest_result(self._plan.tiles, self._plan.tensors, each, self._plan.rows)
        ahead = max(1, min(MOST_AHEAD, self._execution.buffers.ahead // largest))
        for number, sums in self._tiles.results(self._plan.tiles, ahead):
            self._leases.assure()
            if sums is None and number not in self._account.lost:
                gone.add(number)
            yield number, sums

    def _do_again(self, gone: set[int]) -> None:
        """Have tiles done again whose results are gone, unless that has happened too often."""
        self._account.gone(gone)
        self._gone.update(gone)
        for number in sorted(gone):
            message = f"tile {number}: its result is damaged or gone"
            if self._gone[number] < MAX_FAILURES:
                self._progress.note(f"{message}; recomputing it")
            else:
                self._give_up(Lost(number, TileLost(f"{message}, {MAX_FAILURES} times")))


def commit(written: Written, patience: Patience) -> None:
    """Make runs count: again while the store fails, since nobody knows whether they do."""
    while True:
        try:
            return written.commit()
        except StoreUnusable as error:
            patience.wait(error)


def settle(runs: Runs, leases: Leases, folder: Folder, sums: SumFolder | None) -> None:
    """Remove what written runs need no more. May be done again, by whoever holds their leases.

    Args:
        sums: of the plan that is complete; None if tiles were lost: the others' results are kept.
    """
    leases.check()
    for plan in runs:
        remove_superseded(folder, plan.run)
    if sums is None:
        remove_record(folder, runs.whole.run)
    else:
        sums.remove_others()
        for plan in runs:
            discard_records(folder, plan.run)
            discard_all(folder, plan.run)  # last: it shows that there is something left to do
