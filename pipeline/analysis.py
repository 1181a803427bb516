"""The main job: plan, work through the tiles, reduce, write. Every other module is below this one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from pipeline.errors import (
    Corrupted,
    HallmarksError,
    Interrupted,
    PlanDoesNotFit,
    RequestError,
    StoreUnusable,
)
from pipeline.execute.addresses import FrontDesk, InProcess
from pipeline.execute.device import THREADS_OF_A_CARD, choose_device
from pipeline.execute.local import run_local
from pipeline.execute.schedule import Lost
from pipeline.execute.verify import published
from pipeline.execute.worker import Receipt, Worker
from pipeline.numerics.partial import TileResult
from pipeline.planning.machine import available_cores, total_memory
from pipeline.planning.memory import Memory, default_budget, idle_bytes, project, show_size
from pipeline.planning.plan import Plan, make_joint_plan, make_plan
from pipeline.planning.request import Request, Resources
from pipeline.reduce.groups import members
from pipeline.reduce.reduce import group_sums, sums_of_tiles
from pipeline.results import Snapshots, Summary, Work, stored_summary, write_runs
from pipeline.sources.base import Access, Source
from pipeline.store.folder import Folder
from pipeline.store.lease import Lease
from pipeline.store.progress import ProgressFile
from pipeline.store.sums import SumFolder
from pipeline.store.tiles import TileFolder, discard

_MOST_TASKS_A_WORKER = 16
"""Tiles that a worker has pulled for it beside those that it computes. A tile of many checkpoints is
one block, so that fewer would leave CPUs of other nodes idle (benchmarks/results/pull.md)."""
_FILES_PROVEN = 64  # of a local source, on each node, before it gets a tile


class Progress(Protocol):
    """Told what happens; prints it or not."""

    def planned(self, plan: Plan, finished_bytes: int) -> None: ...
    def tile_done(self, num_bytes: int) -> None: ...
    def tile_lost(self, lost: Lost) -> None: ...
    def estimated(self, summary: Summary) -> None: ...
    def verified(self, num_files: int) -> None: ...
    def reducing(self) -> None: ...


def analyze(
    request: Request,
    store: str = "hallmarks-store",
    resources: Resources | None = None,
    *,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Analyse a source and write the run; finished tiles of an earlier attempt are taken up.

    Args:
        fresh: start over, whatever is there.

    Raises:
        RequestError: the request is wrong; nothing was written.
        HallmarksError: something else failed; what was finished is kept.
    """
    (summary,) = _analyze(*make_plan(request), store, resources, fresh, progress)
    return summary


def analyze_joint(
    requests: Sequence[Request],
    run: str | None = None,
    store: str = "hallmarks-store",
    resources: Resources | None = None,
    *,
    fresh: bool = False,
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
    return _analyze(*make_joint_plan(requests, run), store, resources, fresh, progress)


def _analyze(
    plan: Plan,
    source: Source,
    store: str,
    resources: Resources | None,
    fresh: bool,
    progress: Progress | None,
) -> list[Summary]:
    started = time.monotonic()
    resources = resources or Resources()
    folder = Folder(store)
    plans = (*plan.alone(), plan)
    sums = SumFolder(folder, plan.run, plan.digest)
    if resources.verify and plan.sampled:
        raise RequestError(
            "--verify reads whole files, --fraction or --budget a part of them", "leave one out"
        )
    if not fresh:
        nothing = Work(store, resources.executor, 0, already_complete=True)
        done = [stored_summary(folder, each, nothing, started) for each in plans]
        if None not in done:
            if resources.verify:
                with _executor(plan, source, resources) as (work, *_):
                    list(work([], TileFolder(folder, plan.run, plan.digest)))
                if progress:
                    progress.verified(len(published(plan)))
            return [summary for summary in done if summary is not None]
        if sums.complete:
            with _leases(folder, plans):
                return _recomputed(plans, sums, folder, nothing, started)
    with (
        _executor(plan, source, resources) as (work, workers, executor_name),
        _leases(folder, plans) as leases,
    ):
        if fresh:
            discard(folder, plan.run)
            sums.discard()
        job = _Job(
            plans,
            folder,
            sums,
            leases,
            Work(store, executor_name, workers),
            started,
            progress,
            resources.verify,
        )
        job.work_through(work)
        return job.write()


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
    plans: Sequence[Plan], sums: SumFolder, folder: Folder, nothing: Work, started: float
) -> list[Summary]:
    """Write runs again from their stored sums."""
    plan, devices = plans[-1], set[str]()
    return write_runs(
        plans,
        group_sums(plan, sums.read(members(plan), devices)),
        folder,
        replace(nothing, recomputed=True),
        tiles_done={tile.index for tile in plan.tiles},
        devices=devices,
        started=started,
    )


_Outcomes = Iterator[Receipt | Lost]
_Work = Callable[[list[int], TileFolder], _Outcomes]


class _Job:
    """One run of one plan."""

    def __init__(
        self,
        plans: Sequence[Plan],
        folder: Folder,
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
        self._sums, self._work, self._started = sums, work, started
        self._leases = leases
        self._progress = progress
        self._tiles = TileFolder(folder, self._plan.run, self._plan.digest)
        self._record = ProgressFile(folder, self._plan.run)
        self._order = self._plan.order()
        self._receipts: list[Receipt] = []
        self._bytes_read = self._bytes_resumed = 0
        self._lost: list[Lost] = []
        self._resumed: set[int] = set()

    def work_through(self, work: _Work) -> None:
        """Compute every tile that has no result yet, in the plan's random order."""
        there = self._tiles.finished()
        # A damaged result is done again, so each is looked at before it is counted on.
        self._resumed = {
            tile.index
            for tile in self._plan.tiles
            if tile.name in there and self._tiles.get(tile.name) is not None
        }
        pending = [number for number in self._order if number not in self._resumed]
        self._bytes_resumed = sum(self._plan.tiles[number].bytes for number in self._resumed)
        if self._verify:
            pending.sort()  # as files are hashed
        if self._progress:
            self._progress.planned(self._plan, self._bytes_resumed)
        told = self._progress.estimated if self._progress else None
        snapshots = Snapshots(self._plans, self._folder, self._tiles, self._work, told)
        self._renew("reading", now=True)
        try:
            for outcome in work(pending, self._tiles) if pending or self._verify else ():
                self._take(outcome)
                self._renew("reading")
                if not self._verify:  # else what has been read is no random sample
                    snapshots.consider(self._done, self._bytes_read)
            if self._verify and self._progress:
                self._progress.verified(len(published(self._plan)))
        except Interrupted:
            self._renew("interrupted", now=True)
            snapshots.last(self._done(), self._bytes_read)
            raise
        except HallmarksError as error:
            self._renew("failed", now=True)
            if isinstance(error, Corrupted):
                discard(self._folder, self._plan.run)  # some of it was made from wrong bytes
            raise
        finally:
            snapshots.stop()

    def _renew(self, state: str, *, now: bool = False) -> None:
        """Tell those who look at the store how far this is."""
        self._record.renew(
            now=now,
            state=state,
            tiles=len(self._plan.tiles),
            tiles_done=len(self._resumed) + len(self._receipts),
            tiles_lost=len(self._lost),
            bytes=self._plan.bytes_to_read,
            bytes_done=self._bytes_resumed + self._bytes_read,
            workers=self._work.workers,
        )

    def _take(self, outcome: Receipt | Lost) -> None:
        self._assure()
        if isinstance(outcome, Lost):
            self._lost.append(outcome)
            if self._progress:
                self._progress.tile_lost(outcome)
        else:
            self._receipts.append(outcome)
            self._bytes_read += self._plan.tiles[outcome.tile].bytes
            if self._progress:
                self._progress.tile_done(outcome.bytes)

    def _assure(self) -> None:
        for lease in self._leases:
            lease.assure()

    def _done(self) -> list[int]:
        """Return the tiles that have a result, in the order of the plan."""
        done = self._resumed | {receipt.tile for receipt in self._receipts}
        return [number for number in self._order if number in done]

    def write(self) -> list[Summary]:
        """Reduce, write the tables of each run, and drop the results of tiles if none is missing."""
        self._assure()
        if self._progress:
            self._progress.reducing()
        self._renew("reducing", now=True)
        devices: set[str] = set()

        def result(name: str) -> TileResult | None:
            found = self._tiles.get(name)
            if found is not None:
                devices.add(found.device)
            return found

        parts = sums_of_tiles(self._plan, result)
        if not self._lost:
            parts = self._sums.kept(parts, devices)
        summaries = write_runs(
            self._plans,
            group_sums(self._plan, parts),
            self._folder,
            replace(
                self._work,
                bytes_read=self._bytes_read,
                gram_seconds=sum(receipt.gram_seconds for receipt in self._receipts),
                pull_seconds=sum(receipt.pull_seconds for receipt in self._receipts),
                resumed_tiles=len(self._resumed),
                complete=not self._lost,
                lost=tuple(lost.error.message for lost in self._lost),
            ),
            tiles_done=set(self._done()),
            devices=devices,
            started=self._started,
        )
        if not self._lost:
            self._sums.seal()
            discard(self._folder, self._plan.run)
        self._record.remove()
        return summaries


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
