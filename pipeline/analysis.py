"""The main job: plan, work through the tiles, reduce, write. Every other module is below this one."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from pipeline.errors import (
    Corrupted,
    HallmarksError,
    Interrupted,
    LeaseLost,
    PlanDoesNotFit,
    RequestError,
    StoreFailed,
    StoreUnusable,
    TileLost,
)
from pipeline.execute.addresses import FrontDesk, InProcess
from pipeline.execute.device import THREADS_OF_A_CARD, choose_device
from pipeline.execute.local import run_local
from pipeline.execute.schedule import MAX_FAILURES, Lost
from pipeline.execute.verify import published
from pipeline.execute.worker import Receipt, Worker
from pipeline.numerics.partial import TileResult
from pipeline.planning.machine import available_cores, total_memory
from pipeline.planning.memory import Memory, default_budget, idle_bytes, project, show_size
from pipeline.planning.plan import Plan, make_joint_plan, make_plan
from pipeline.planning.request import Request, Resources
from pipeline.reduce.groups import members
from pipeline.reduce.reduce import group_sums, sums_of_tiles
from pipeline.results import Snapshots, Summary, Work, Written, stored_summary, write_runs
from pipeline.sources.base import Access, Source
from pipeline.store.attempts import final, has_superseded, remove_superseded
from pipeline.store.folder import Folder
from pipeline.store.lease import Lease
from pipeline.store.names import refuse_to_replace
from pipeline.store.progress import ProgressFile, remove_record
from pipeline.store.sums import SumFolder
from pipeline.store.tiles import TileFolder, discard, discard_all, is_left

_MOST_TASKS_A_WORKER = 16
"""Tiles that a worker has pulled for it beside those that it computes. A tile of many checkpoints is
one block, so that fewer would leave CPUs of other nodes idle (benchmarks/results/pull.md)."""
PAUSES_S = (1, 2, 4, 8, 15, 30)
"""Between tries of a store that fails, a minute in all: someone may make room, or a server come back.
A job that waits longer holds a cluster, and resumes as well tomorrow."""
_FILES_PROVEN = 64  # of a local source, on each node, before it gets a tile


class Progress(Protocol):
    """Told what happens; prints it or not."""

    def planned(self, plan: Plan, finished_bytes: int) -> None: ...
    def tile_done(self, num_bytes: int) -> None: ...
    def tile_lost(self, lost: Lost) -> None: ...
    def estimated(self, summary: Summary) -> None: ...
    def verified(self, num_files: int) -> None: ...
    def reducing(self) -> None: ...
    def note(self, text: str) -> None: ...


def analyze(
    request: Request,
    store: str = "hallmarks-store",
    resources: Resources | None = None,
    *,
    fresh: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Analyse a source and write the run; finished tiles of an earlier attempt are taken up.

    Args:
        fresh: start over, whatever is there.
        replace: a run of this name may be replaced whatever it is of.

    Raises:
        RequestError: the request is wrong; nothing was written.
        HallmarksError: something else failed; what was finished is kept.
    """
    (summary,) = _analyze(*make_plan(request), store, resources, fresh, replace, progress)
    return summary


def analyze_joint(
    requests: Sequence[Request],
    run: str | None = None,
    store: str = "hallmarks-store",
    resources: Resources | None = None,
    *,
    fresh: bool = False,
    replace: bool = False,
    progress: Progress | None = None,
) -> list[Summary]:
    """Analyse several sources in one read: a run for each, and last the run over all of them.

    Args:
        requests: alike but for their sources; at least two.
        run: name of the run over all of them; default: made from their names.

    Raises:
        RequestError: the request is wrong; nothing was written.
        HallmarksError: something else failed; what was finished is kept.
    """
    return _analyze(*make_joint_plan(requests, run), store, resources, fresh, replace, progress)


def _analyze(
    plan: Plan,
    source: Source,
    store: str,
    resources: Resources | None,
    fresh: bool,
    may_replace: bool,
    progress: Progress | None,
) -> list[Summary]:
    started = time.monotonic()
    resources = resources or Resources()
    folder = Folder(store)
    plans = (*plan.alone(), plan)
    if not may_replace:
        refuse_to_replace(folder, plans)
    sums = SumFolder(folder, plan.run, plan.digest)
    tiles = TileFolder(folder, plan.run, plan.digest)
    nothing = Work(store, resources.executor, 0, already_complete=True)
    if resources.verify and plan.sampled:
        raise RequestError(
            "--verify reads whole files, --fraction or --budget a part of them", "leave one out"
        )
    if not fresh:
        if (done := _stored(plans, folder, nothing, started)) is not None:
            if resources.verify:
                with _executor(plan, source, resources) as (work, *_):
                    list(work([], tiles))
                if progress:
                    progress.verified(len(published(plan)))
            _settle_for_another(plans, folder, sums)
            return done
        if sums.complete:
            with _leases(folder, plans) as leases:
                written = _recomputed(plans, leases, sums, folder, nothing, started)
                _commit(written, _Patience(progress))
                _settle(plans, leases, folder, sums)
                return written.summaries
    with (
        _executor(plan, source, resources) as (work, workers, executor_name),
        _leases(folder, plans) as leases,
    ):
        if not may_replace:  # another may have been written meanwhile
            refuse_to_replace(folder, plans)
        if fresh:
            discard(folder, plan.run)
            sums.discard()
        elif (done := _stored(plans, folder, nothing, started)) is not None:
            return done  # another driver has finished it meanwhile
        job = _Job(
            plans,
            folder,
            tiles,
            sums,
            leases,
            Work(store, executor_name, workers),
            started,
            progress,
            resources.verify,
        )
        return job.run(work)


def _stored(
    plans: Sequence[Plan], folder: Folder, nothing: Work, started: float
) -> list[Summary] | None:
    """Return the summaries of the runs if the store has all of them."""
    found = [stored_summary(folder, each, nothing, started) for each in plans]
    return None if None in found else [summary for summary in found if summary is not None]


@contextlib.contextmanager
def _leases(folder: Folder, plans: Sequence[Plan]) -> Iterator[list[Lease]]:
    """Hold the right to write all runs."""
    leases = [Lease(folder, each.run) for each in plans]
    with contextlib.ExitStack() as held:
        for lease in leases:
            lease.acquire()
            held.callback(lease.release)
        yield leases


def _recomputed(
    plans: Sequence[Plan],
    leases: Sequence[Lease],
    sums: SumFolder,
    folder: Folder,
    nothing: Work,
    started: float,
) -> Written:
    """Write runs again from their stored sums."""
    plan, devices = plans[-1], set[str]()

    def check() -> None:
        for lease in leases:
            lease.assure()

    return write_runs(
        plans,
        [final(lease.token) for lease in leases],
        group_sums(plan, sums.read(members(plan), devices)),
        folder,
        replace(nothing, recomputed=True),
        final=True,
        tiles_done={tile.index for tile in plan.tiles},
        devices=devices,
        started=started,
        check=check,
        ready=check,
    )


def _commit(written: Written, patience: _Patience) -> None:
    """Make runs count: again while the store fails, since nobody knows whether they do."""
    while True:
        try:
            return written.commit()
        except StoreUnusable as error:
            patience.wait(error)


def _settle(
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


def _settle_for_another(plans: Sequence[Plan], folder: Folder, sums: SumFolder) -> None:
    """Remove what the driver that completed these runs did not come to."""
    if any(has_superseded(folder, plan.run) or is_left(folder, plan.run) for plan in plans):
        # where another driver holds a lease it is busy with a run of this name, and cleans up
        with contextlib.suppress(StoreUnusable, LeaseLost), _leases(folder, plans) as leases:
            _settle(plans, leases, folder, sums)


class _Patience:
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
        _note(self._progress, f"{error.message}; trying again in {pause} s")
        time.sleep(pause)


class _Gone(Exception):
    """Results of tiles that had one are damaged or gone."""


_Outcomes = Iterator[Receipt | Lost]
_Work = Callable[[list[int], TileFolder], _Outcomes]


class _Job:
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
        self._patience = _Patience(progress)
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

    def run(self, work: _Work) -> list[Summary]:
        """Compute what has no result yet, write the runs, and clean up.

        What the store does not take is tried again, and results that have gone are made again.

        Raises:
            StoreFailed: the store has failed for too long.
            HallmarksError: whatever else ended the work; what was finished is kept.
        """
        try:
            written = self._written(work)
            _commit(written, self._patience)
        except Interrupted:
            self._renew("interrupted", now=True)
            raise
        except LeaseLost:
            raise  # the record is another driver's, too
        except HallmarksError:
            self._renew("failed", now=True)
            raise
        try:
            _settle(self._plans, self._leases, self._folder, None if self._lost else self._sums)
        except (StoreUnusable, LeaseLost) as error:
            _note(self._progress, f"{error.message}; what is left over goes with the next run")
        return written.summaries

    def _written(self, work: _Work) -> Written:
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

    def _work_through(self, work: _Work, pending: list[int]) -> None:
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
            lambda error: _note(self._progress, f"no more estimates: {error.message}"),
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
        devices: set[str] = set()
        gone: set[int] = set()

        def result(name: str) -> TileResult | None:
            if self._names[name] in self._lost:
                return None
            found = self._tiles.get(name)
            if found is None:
                gone.add(self._names[name])
            else:
                devices.add(found.device)
            return found

        def ready() -> None:
            for lease in self._leases:
                lease.check()
            if gone:
                self._forget(gone)
                raise _Gone
            if not self._lost:
                self._sums.seal()

        parts = sums_of_tiles(self._plan, result)
        if not self._lost:
            parts = self._sums.kept(parts, devices)
        return write_runs(
            self._plans,
            [final(lease.token) for lease in self._leases],
            group_sums(self._plan, parts),
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
            devices=devices,
            started=self._started,
            check=self._assure,
            ready=ready,
        )

    def _forget(self, gone: set[int]) -> None:
        """Have tiles done again whose results are gone, unless that has happened too often."""
        self._done -= gone
        self._gone.update(gone)
        for number in sorted(gone):
            message = f"tile {number}: its result is damaged or gone"
            if self._gone[number] < MAX_FAILURES:
                _note(self._progress, f"{message}; it is done again")
            else:
                self._lose(Lost(number, TileLost(f"{message}, {MAX_FAILURES} times")))


def _note(progress: Progress | None, text: str) -> None:
    if progress:
        progress.note(text)


@contextlib.contextmanager
def _store_in_use() -> Iterator[None]:
    """Tell a store that fails while a job uses it from one that could not be used at all."""
    try:
        yield
    except StoreUnusable as error:
        raise StoreFailed(error.message, error.hint) from None


@contextlib.contextmanager
def _executor(plan: Plan, source: Source, resources: Resources) -> Iterator[tuple[_Work, int, str]]:
    """Yield how to work through tiles, on how many workers, and the executor's name.

    The plan is checked against the memory before anything is written.
    """

    addresses = InProcess(plan, source, resources.cache)
    verified = published(plan) if resources.verify else []
    if resources.executor == "local":
        device = choose_device(resources.device)
        most = THREADS_OF_A_CARD if device == "cuda" else available_cores()
        threads = resources.threads or min(most, available_cores())
        calls = threads + source.waits
        memory = worker_memory(plan, resources, calls)

        def work_here(tiles: list[int], sink: TileFolder) -> _Outcomes:
            worker = Worker(plan, sink, addresses, device, threads, memory, verified)
            return run_local(worker, calls, tiles)

        yield work_here, 1, "local"
        return

    # Ray takes a second to import: not for those who do without it.
    from pipeline.execute.admission import largest_block
    from pipeline.execute.pool import Proof, RayPool
    from pipeline.execute.ray import layout, ray_session

    pull = "actor" if resources.verify else resources.pull
    with ray_session(resources.address, pull):
        room = partial(layout, resources.device, resources.max_workers, pull, source.waits)
        shape = room()
        tasks = shape.pull == "tasks"
        ahead = min(shape.pulling, _MOST_TASKS_A_WORKER) if tasks else source.waits
        calls = shape.threads + ahead
        largest = largest_block(shape.store_bytes) if tasks else None
        memory = worker_memory(plan, resources, calls, shape.together, largest)

        def work_there(tiles: list[int], sink: TileFolder) -> _Outcomes:
            sink.mark()
            pool = RayPool(
                plan, sink, room, calls, memory, Proof(sink, local_files(plan, source)), verified
            )
            try:
                yield from pool.run(tiles, FrontDesk(addresses))
            finally:
                with contextlib.suppress(StoreUnusable):  # what ended the work is to be told
                    sink.unmark()

        yield work_there, shape.workers, "ray"


def local_files(plan: Plan, source: Source) -> tuple[Access, ...]:
    """Return access to some files, if they lie in a directory, that every node must see too."""
    if source.waits:
        return ()
    every = -(-len(plan.files) // _FILES_PROVEN)
    return tuple(source.access(file) for file in plan.files[::every])


def worker_memory(
    plan: Plan,
    resources: Resources,
    calls: int,
    workers: int = 1,
    largest_block: int | None = None,
) -> Memory:
    """Return how one worker with `calls` tiles in hand spends its budget.

    Args:
        workers: how many share a machine.
        largest_block: what an object store takes, if blocks travel through one.

    Raises:
        PlanDoesNotFit: the budget, the machine or the store is too small.
    """
    total, on_ray = total_memory(), resources.executor == "ray"
    budget = resources.memory or default_budget(total, workers, on_ray)
    memory = project(plan.tensors, plan.tiles, budget, calls, largest_block)
    if not on_ray and memory.projected + idle_bytes(1, on_ray) > total:
        raise PlanDoesNotFit(
            f"--memory {show_size(budget)}: the plan takes {show_size(memory.projected)} beside the"
            f" {show_size(idle_bytes(1, on_ray))} of an idle process, and this machine or container"
            f" has {show_size(total)}",
            "leave --memory out, or raise the limit",
        )
    return memory
