"""The main job: plan, work through the tiles, reduce, write. Every other module is below this one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Protocol

from pipeline.execute.local import run_local
from pipeline.execute.queue import Lost
from pipeline.execute.worker import Receipt, Worker, available_cores, choose_device
from pipeline.numerics.gram import one_thread_products
from pipeline.planning.memory import Memory, project, total_memory
from pipeline.planning.plan import Plan, make_joint_plan, make_plan
from pipeline.planning.request import Request, Resources
from pipeline.reduce.groups import Key, members, sort_key
from pipeline.reduce.reduce import reduce
from pipeline.sources.base import Access, Source
from pipeline.store.folder import Folder
from pipeline.store.lease import Lease
from pipeline.store.query import Store, views_sql
from pipeline.store.tiles import TileFolder, discard
from pipeline.store.write import RunWriter

DEFAULT_SHARE_OF_MEMORY = 0.5
"""Of the machine's or container's memory, over all workers: the rest is for the page cache, for
Ray and for whatever else runs there."""


class Progress(Protocol):
    """Told what happens; prints it or not."""

    def planned(self, plan: Plan, finished_bytes: int) -> None: ...
    def tile_done(self, num_bytes: int) -> None: ...
    def tile_lost(self, lost: Lost) -> None: ...
    def reducing(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Summary:
    """What `analyze --json` prints (docs/contract.md, §1)."""

    run: str
    store: str
    checkpoints: int
    tensors: int
    parameters: int
    bytes_total: int
    bytes_read: int
    fraction: float
    seconds: float
    gram_seconds: float
    pull_seconds: float
    device: str
    executor: str
    workers: int
    mds: float | None
    relative_mds: float | None
    findings: dict[str, int] | None
    """Counts by severity; None: not looked for."""
    complete: bool
    resumed_tiles: int
    """Tiles that an earlier attempt had finished."""
    already_complete: bool = False
    lost: list[str] = field(default_factory=list)
    """Why tiles failed for good."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


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
    if not fresh:
        done = [_finished(folder, store, each, resources, started) for each in plans]
        if None not in done:
            return [summary for summary in done if summary is not None]
    with (
        _executor(plan, source, resources) as (work, workers, executor_name),
        contextlib.ExitStack() as leases,
    ):
        for each in plans:
            lease = Lease(folder, each.run)
            lease.acquire()
            leases.callback(lease.release)
        job = _Job(plan, folder, progress)
        if fresh:
            discard(folder, plan.run)
        job.work_through(work)
        return job.write(plans, store, started, workers, executor_name)


_Outcomes = Iterator[Receipt | Lost]
_Work = Callable[[list[int], TileFolder], _Outcomes]


class _Job:
    """One run of one plan."""

    def __init__(self, plan: Plan, folder: Folder, progress: Progress | None) -> None:
        self._plan, self._folder, self._progress = plan, folder, progress
        self._tiles = TileFolder(folder, plan.run, plan.digest)
        self._receipts: list[Receipt] = []
        self._lost: list[Lost] = []
        self._resumed = 0

    def work_through(self, work: _Work) -> None:
        """Compute every tile that has no result yet."""
        there = self._tiles.finished()
        # A damaged result is done again, so each is looked at before it is counted on.
        finished = [
            tile
            for tile in self._plan.tiles
            if tile.name in there and self._tiles.get(tile.name) is not None
        ]
        self._resumed = len(finished)
        pending = sorted({tile.index for tile in self._plan.tiles} - {t.index for t in finished})
        if self._progress:
            self._progress.planned(self._plan, sum(tile.bytes for tile in finished))
        for outcome in work(pending, self._tiles) if pending else ():
            if isinstance(outcome, Lost):
                self._lost.append(outcome)
                if self._progress:
                    self._progress.tile_lost(outcome)
            else:
                self._receipts.append(outcome)
                if self._progress:
                    self._progress.tile_done(outcome.bytes)

    def write(
        self,
        plans: Sequence[Plan],
        store: str,
        started: float,
        workers: int,
        executor: str,
    ) -> list[Summary]:
        """Reduce, write the tables of each run, and drop the results of tiles if none is missing.

        Args:
            plans: what each path of this plan is alone, if it has several, and this plan.
        """
        if self._progress:
            self._progress.reducing()
        plan, devices = self._plan, set()
        writers = [RunWriter(self._folder, each.run) for each in plans]
        numbers = _group_numbers(plan)

        def result(name: str):
            found = self._tiles.get(name)
            if found is not None:
                devices.add(found.device)
            return found

        models: list[dict[str, float]] = [{} for _ in plans]
        unfinished = list(writers)
        try:
            with one_thread_products():
                for key, found in reduce(plan, result, available_cores()):
                    each = (*found.paths, found)
                    for writer, own in zip(writers, each, strict=True):
                        writer.add(numbers[key], key, own)
                    if key.scope == "model":
                        models = [own.indicators for own in each]
            lost = {lost.tile for lost in self._lost}
            self._folder.replace("views.sql", views_sql().encode())
            summaries = []
            for each, writer, model in zip(plans, writers, models, strict=True):
                read = sum(tile.bytes for tile in each.tiles if tile.index not in lost)
                summary = Summary(
                    run=each.run,
                    store=store,
                    checkpoints=len(each.checkpoints),
                    tensors=len(each.tensors),
                    parameters=each.parameters,
                    bytes_total=each.bytes_total,
                    bytes_read=sum(each.tiles[receipt.tile].bytes for receipt in self._receipts),
                    fraction=read / each.bytes_total,
                    seconds=time.monotonic() - started,
                    gram_seconds=sum(receipt.gram_seconds for receipt in self._receipts),
                    pull_seconds=sum(receipt.pull_seconds for receipt in self._receipts),
                    device=" + ".join(sorted(devices)),
                    executor=executor,
                    workers=workers,
                    mds=_number(model.get("mds")),
                    relative_mds=_number(model.get("relative_mds")),
                    findings=None,
                    complete=not self._lost,
                    resumed_tiles=self._resumed,
                    lost=[lost.error.message for lost in self._lost],
                )
                writer.finish(each, _run_row(each, summary))
                unfinished.remove(writer)
                summaries.append(summary)
        except BaseException:  # an interrupt, too, must not leave this attempt's files
            for writer in unfinished:
                writer.abandon()
            raise
        if not self._lost:
            discard(self._folder, plan.run)
        return summaries


def _group_numbers(plan: Plan) -> dict[Key, int]:
    keys = {key for member in members(plan) for key in member.keys}
    return {key: number for number, key in enumerate(sorted(keys, key=sort_key))}


def _run_row(plan: Plan, summary: Summary) -> dict[str, Any]:
    return {
        "plan": plan.digest,
        "source": plan.source,
        "created_at": datetime.now(UTC),
        "version": version("hallmarks"),
        "settings": None,
        **summary.as_dict(),
    }


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else value


def _finished(
    folder: Folder, store: str, plan: Plan, resources: Resources, started: float
) -> Summary | None:
    """Return the summary of this very plan if the store holds it, complete."""
    if not any(path.startswith(f"runs/run={plan.run}/") for path in folder.list("runs")):
        return None
    stored = Store(store)
    columns = "fraction, device, plan, complete"
    rows = stored.sql(f"SELECT {columns} FROM runs WHERE run = '{plan.run}'").fetchall()
    if not rows or rows[0][2] != plan.digest or not rows[0][3]:
        return None
    values = dict(
        stored.sql(
            "SELECT indicator, value FROM indicators WHERE scope = 'model'"
            f" AND run = '{plan.run}' AND indicator IN ('mds', 'relative_mds')"
        ).fetchall()
    )
    return Summary(
        run=plan.run,
        store=store,
        checkpoints=len(plan.checkpoints),
        tensors=len(plan.tensors),
        parameters=plan.parameters,
        bytes_total=plan.bytes_total,
        bytes_read=0,
        fraction=rows[0][0],
        seconds=time.monotonic() - started,
        gram_seconds=0.0,
        pull_seconds=0.0,
        device=rows[0][1],
        executor=resources.executor,
        workers=0,
        mds=values.get("mds"),
        relative_mds=values.get("relative_mds"),
        findings=None,
        complete=True,
        resumed_tiles=len(plan.tiles),
        already_complete=True,
    )


@contextlib.contextmanager
def _executor(plan: Plan, source: Source, resources: Resources) -> Iterator[tuple[_Work, int, str]]:
    """Yield how to work through tiles, on how many workers, and the executor's name.

    The plan is checked against the memory before anything is written.
    """

    def accesses(index: int) -> Mapping[int, Access]:
        tensors = (plan.tensors[fragment.tensor] for fragment in plan.tiles[index].fragments)
        numbers = {number for tensor in tensors for number in tensor.all_files()}
        return {number: source.access(plan.files[number]) for number in sorted(numbers)}

    if resources.executor == "local":
        device, threads = choose_device(resources.device), resources.threads or available_cores()
        calls = threads + source.waits
        memory = worker_memory(plan, resources, calls)

        def work_here(tiles: list[int], sink: TileFolder) -> _Outcomes:
            worker = Worker(plan, sink, device, threads, memory)
            return run_local(worker, calls, tiles, accesses)

        yield work_here, 1, "local"
        return

    # Ray takes a second to import: not for those who do without it.
    from pipeline.execute.ray import RayPool, layout, ray_session

    with ray_session(resources.address):
        shape = layout(resources.device, resources.max_workers)
        calls = shape.threads + source.waits
        memory = worker_memory(plan, resources, calls, shape.workers)

        def work_there(tiles: list[int], sink: TileFolder) -> _Outcomes:
            return RayPool(plan, sink, shape, calls, memory).run(tiles, accesses)

        yield work_there, shape.workers, "ray"


def worker_memory(plan: Plan, resources: Resources, calls: int, workers: int = 1) -> Memory:
    """Return how one worker with `calls` tiles in hand spends its budget.

    Raises:
        PlanDoesNotFit: the budget is too small.
    """
    budget = resources.memory or int(total_memory() * DEFAULT_SHARE_OF_MEMORY) // workers
    return project(plan.tensors, plan.tiles, budget, calls)
