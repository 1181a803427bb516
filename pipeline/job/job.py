"""One job, from tiles without a result to runs that count, whatever fails in its store meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

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
from pipeline.execute.work.verify import published
from pipeline.execute.work.worker import Receipt
from pipeline.job.executor import WorkThrough
from pipeline.job.results import Summary, Work, Written, write_runs
from pipeline.job.snapshots import Snapshots
from pipeline.planning.memory import results_ahead
from pipeline.planning.plan import Plan
from pipeline.reduce.groups import grouping
from pipeline.reduce.parts import sums_of_parts
from pipeline.reduce.reduce import group_sums
from pipeline.statistics.parts import Sums
from pipeline.statistics.statistic import part_bytes
from pipeline.store.attempts import final, remove_superseded
from pipeline.store.folder import Folder
from pipeline.store.lease import Lease
from pipeline.store.progress import ProgressFile, remove_record
from pipeline.store.sums import SumFolder
from pipeline.store.tiles import TileFolder, discard, discard_all

PAUSES_S = (1, 2, 4, 8, 15, 30)
"""Between tries of a store that fails, a minute in all: someone may make room, or a server come back.
A job that waits longer holds a cluster, and resumes as well tomorrow."""


class Progress(Protocol):
    """Told what happens; prints it or not."""

    def planned(self, plan: Plan, finished_bytes: int) -> None: ...
    def tile_done(self, num_bytes: int) -> None: ...
    def tile_lost(self, lost: Lost) -> None: ...
    def estimated(self, summary: Summary) -> None: ...
    def verified(self, num_files: int) -> None: ...
    def reducing(self) -> None: ...
    def note(self, text: str) -> None: ...


class _Gone(Exception):
    """Results of tiles that had one are damaged or gone."""


class Job:
    """One run of one plan."""

    def __init__(
        self,
        plans: Sequence[Plan],
        folder: Folder,
        tiles: TileFolder,
        sums: SumFolder,
        leases: Sequence[Lease],
        work: Work,
        started: float,
        progress: Progress | None,
        verify: bool,
    ) -> None:
        """`plans`: what each path of the plan is alone, if it has several, and last the plan."""
        self._verify = verify
        self._plans, self._plan, self._folder = plans, plans[-1], folder
        self._tiles, self._sums, self._leases = tiles, sums, leases
        self._work, self._started, self._progress = work, started, progress
        self._record = ProgressFile(folder, self._plan.run, leases[-1].token)
        self._patience = Patience(progress)
        self._order = self._plan.order()
        self._names = {tile.name: tile.index for tile in self._plan.tiles}
        self._done: set[int] = set()
        """Tiles that have a result, as far as is known."""
        self._resumed: set[int] = set()
        """Those of them that an earlier attempt had finished."""
        self._receipts: list[Receipt] = []
        self._bytes_read = 0
        self._lost: dict[int, Lost] = {}
        self._gone: Counter[int] = Counter()
        """How often the result of a tile has gone."""

    def run(self, work: WorkThrough) -> list[Summary]:
        """Compute what has no result yet, write the runs, and clean up.

        What the store does not take is tried again, and results that have gone are made again.

        Raises:
            StoreFailed: the store has failed for too long.
            HallmarksError: whatever else ended the work; what was finished is kept.
        """
        try:
            written = self._written(work)
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
            settle(self._plans, self._leases, self._folder, None if self._lost else self._sums)
        except (StoreUnusable, LeaseLost) as error:
            note(self._progress, f"{error.message}; what is left over goes with the next run")
        return written.summaries

    def _written(self, work: WorkThrough) -> Written:
        while True:
            try:
                with _store_in_use():
                    pending = self._pending()
                self._work_through(work, pending)
                with _store_in_use():
                    return self._write()
            except _Gone:
                continue
            except StoreFailed as error:
                self._patience.wait(error)

    def _pending(self) -> list[int]:
        """Return the tiles that have no result, in the plan's random order."""
        there = self._tiles.finished()
        # A damaged result is done again, so each is looked at before it is counted on.
        found = {
            tile.index
            for tile in self._plan.tiles
            if tile.name in there
            and (tile.index in self._done or self._tiles.get(tile.name) is not None)
        }
        self._resumed |= found - self._done - {receipt.tile for receipt in self._receipts}
        self._done = found
        pending = [n for n in self._order if n not in self._done and n not in self._lost]
        if self._verify:
            pending.sort()  # as files are hashed
        return pending

    def _work_through(self, work: WorkThrough, pending: list[int]) -> None:
        if not (pending or self._verify):
            return
        if self._progress:
            self._progress.planned(self._plan, self._bytes_done)
        told = self._progress.estimated if self._progress else None
        snapshots = Snapshots(
            self._plans,
            self._leases,
            self._folder,
            self._tiles,
            self._work,
            told,
            lambda error: note(self._progress, f"no more estimates: {error.message}"),
        )
        self._renew("reading", now=True)
        try:
            for outcome in work(pending, self._tiles):
                self._take(outcome)
                self._renew("reading")
                if not self._verify:  # else what has been read is no random sample
                    snapshots.consider(self._done_in_order, self._bytes_read)
            if self._verify and self._progress:
                self._progress.verified(len(published(self._plan)))
            self._verify = False
        except Interrupted:
            snapshots.last(self._done_in_order(), self._bytes_read)
            raise
        except Corrupted:
            discard(self._folder, self._plan.run)  # some of it was made from wrong bytes
            raise
        finally:
            snapshots.stop()

    @property
    def _bytes_done(self) -> int:
        return sum(self._plan.tiles[number].bytes for number in self._done)

    def _renew(self, state: str, *, now: bool = False) -> None:
        """Tell those who look at the store how far this is."""
        if not now and not self._record.due:
            return
        self._record.renew(
            state=state,
            tiles=len(self._plan.tiles),
            tiles_done=len(self._done),
            tiles_lost=len(self._lost),
            bytes=self._plan.bytes_to_read,
            bytes_done=self._bytes_done,
            workers=self._work.workers,
        )

    def _take(self, outcome: Receipt | Lost) -> None:
        self._assure()
        if isinstance(outcome, Lost):
            self._lose(outcome)
            return
        self._patience.succeeded()
        self._receipts.append(outcome)
        self._bytes_read += self._plan.tiles[outcome.tile].bytes
        self._done.add(outcome.tile)
        if self._progress:
            self._progress.tile_done(outcome.bytes)

    def _lose(self, lost: Lost) -> None:
        self._lost[lost.tile] = lost
        if self._progress:
            self._progress.tile_lost(lost)

    def _assure(self) -> None:
        for lease in self._leases:
            lease.assure()

    def _done_in_order(self) -> list[int]:
        """Return the tiles that have a result, in the order of the plan."""
        return [number for number in self._order if number in self._done]

    def _write(self) -> Written:
        """Reduce, and write the tables of each run.

        Raises:
            _Gone: results are not there any more.
        """
        if self._progress:
            self._progress.reducing()
        self._renew("reducing", now=True)
        gone: set[int] = set()
        self._sums.write(sums_of_parts(self._plan, self._results(gone)))
        if gone:
            self._forget(gone)
            raise _Gone

        def ready() -> None:
            for lease in self._leases:
                lease.check()
            if not self._lost:
                self._sums.seal()

        grouped = grouping(self._plan)
        lost = {
            fragment.tensor
            for number in self._lost
            for fragment in self._plan.tiles[number].fragments
        }
        return write_runs(
            self._plans,
            [final(lease.token) for lease in self._leases],
            grouped,
            group_sums(self._plan, grouped, self._sums.read, frozenset(lost)),
            self._folder,
            replace(
                self._work,
                bytes_read=self._bytes_read,
                gram_seconds=sum(receipt.gram_seconds for receipt in self._receipts),
                pull_seconds=sum(receipt.pull_seconds for receipt in self._receipts),
                resumed_tiles=len(self._resumed),
                complete=not self._lost,
                lost=tuple(lost.error.message for lost in self._lost.values()),
            ),
            final=True,
            tiles_done=set(self._done),
            devices=self._sums.devices,
            started=self._started,
            check=self._assure,
            ready=ready,
        )

    def _results(self, gone: set[int]) -> Iterator[tuple[int, Sums | None]]:
        """Yield the results of all tiles, in order; `gone` gets those that should be there."""
        each = part_bytes(self._plan.statistics, len(self._plan.checkpoints))
        ahead = results_ahead(self._plan.tiles, self._plan.tensors, each)
        for number, sums in self._tiles.results(self._plan.tiles, ahead):
            self._assure()
            if sums is None and number not in self._lost:
                gone.add(number)
            yield number, sums

    def _forget(self, gone: set[int]) -> None:
        """Have tiles done again whose results are gone, unless that has happened too often."""
        self._done -= gone
        self._gone.update(gone)
        for number in sorted(gone):
            message = f"tile {number}: its result is damaged or gone"
            if self._gone[number] < MAX_FAILURES:
                note(self._progress, f"{message}; it is done again")
            else:
                self._lose(Lost(number, TileLost(f"{message}, {MAX_FAILURES} times")))


def commit(written: Written, patience: Patience) -> None:
    """Make runs count: again while the store fails, since nobody knows whether they do."""
    while True:
        try:
            return written.commit()
        except StoreUnusable as error:
            patience.wait(error)


def settle(
    plans: Sequence[Plan], leases: Sequence[Lease], folder: Folder, sums: SumFolder | None
) -> None:
    """Remove what written runs need no more. May be done again, by whoever holds their leases.

    Args:
        sums: of the plan that is complete; None if tiles were lost: the others' results are kept.
    """
    for plan, lease in zip(plans, leases, strict=True):
        lease.check()
        remove_superseded(folder, plan.run)
    if sums is None:
        remove_record(folder, plans[-1].run)
    else:
        sums.remove_others()
        for plan in plans:
            discard_all(folder, plan.run)  # last: it shows that there is something left to do


class Patience:
    """How long a job waits for a store that fails: with growing pauses, from each success anew."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._pauses = iter(PAUSES_S)

    def succeeded(self) -> None:
        """Begin again with the shortest pause."""
        self._pauses = iter(PAUSES_S)

    def wait(self, error: StoreUnusable | StoreFailed) -> None:
        """Wait before the next try.

        Raises:
            StoreFailed: it has been tried for long enough.
        """
        pause = next(self._pauses, None)
        if pause is None:
            raise StoreFailed(
                f"{error.message} (tried for {sum(PAUSES_S)} s)",
                "what was finished is kept: mend the store and rerun the same command to resume",
            ) from None
        note(self._progress, f"{error.message}; trying again in {pause} s")
        time.sleep(pause)


def note(progress: Progress | None, text: str) -> None:
    if progress:
        progress.note(text)


@contextlib.contextmanager
def _store_in_use() -> Iterator[None]:
    """Tell a store that fails while a job uses it from one that could not be used at all."""
    try:
        yield
    except StoreUnusable as error:
        raise StoreFailed(error.message, error.hint) from None
