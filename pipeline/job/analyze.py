"""The main job: what of it is done already, who may do the rest, and doing it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline.errors import (
    LeaseLost,
    RequestError,
    StoreUnusable,
)
from pipeline.execute.work.verify import published
from pipeline.job.executor import executor
from pipeline.job.job import Job, Patience, Progress, commit, settle
from pipeline.job.results import Summary, Work, Written, stored_summary, write_runs
from pipeline.planning.plan import Plan, make_joint_plan, make_plan
from pipeline.planning.request import Request, Resources
from pipeline.reduce.groups import grouping
from pipeline.reduce.reduce import group_sums
from pipeline.sources.base import Source
from pipeline.store.attempts import final, has_superseded
from pipeline.store.folder import Folder
from pipeline.store.lease import Lease
from pipeline.store.names import refuse_to_replace
from pipeline.store.sums import SumFolder
from pipeline.store.tiles import TileFolder, discard, is_left


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
    sums = SumFolder(folder, plan.run, plan.digest, plan.specs)
    tiles = TileFolder(folder, plan.run, plan.digest, plan.specs)
    nothing = Work(store, resources.executor, 0, already_complete=True)
    if resources.verify and plan.sampled:
        raise RequestError(
            "--verify reads whole files, --fraction or --budget a part of them", "leave one out"
        )
    if not fresh:
        if (done := _stored(plans, folder, nothing, started)) is not None:
            if resources.verify:
                with executor(plan, source, resources) as (work, *_):
                    list(work([], tiles))
                if progress:
                    progress.verified(len(published(plan)))
            _settle_for_another(plans, folder, sums)
            return done
        if sums.complete:
            with _leases(folder, plans) as leases:
                written = _recomputed(plans, leases, sums, folder, nothing, started)
                commit(written, Patience(progress))
                settle(plans, leases, folder, sums)
                return written.summaries
    with (
        executor(plan, source, resources) as (work, workers, executor_name),
        _leases(folder, plans) as leases,
    ):
        if not may_replace:  # another may have been written meanwhile
            refuse_to_replace(folder, plans)
        if fresh:
            discard(folder, plan.run)
            sums.discard()
        elif (done := _stored(plans, folder, nothing, started)) is not None:
            return done  # another driver has finished it meanwhile
        job = Job(
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
    plan = plans[-1]
    grouped = grouping(plan)

    def check() -> None:
        for lease in leases:
            lease.assure()

    return write_runs(
        plans,
        [final(lease.token) for lease in leases],
        grouped,
        group_sums(plan, grouped, sums.read),
        folder,
        replace(nothing, recomputed=True),
        final=True,
        tiles_done={tile.index for tile in plan.tiles},
        devices=sums.devices,
        started=started,
        check=check,
        ready=check,
    )


def _settle_for_another(plans: Sequence[Plan], folder: Folder, sums: SumFolder) -> None:
    """Remove what the driver that completed these runs did not come to."""
    if any(has_superseded(folder, plan.run) or is_left(folder, plan.run) for plan in plans):
        # where another driver holds a lease it is busy with a run of this name, and cleans up
        with contextlib.suppress(StoreUnusable, LeaseLost), _leases(folder, plans) as leases:
            settle(plans, leases, folder, sums)
