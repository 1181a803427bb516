"""The main job: what of it is done already, who may do the rest, and doing it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module

from pipeline.errors import LeaseLost, RequestError, StoreUnusable
from pipeline.execute.work.verify import published
from pipeline.job.executor import executor
from pipeline.job.followed import Estimated, compared, estimated, refuse_to_lose
from pipeline.job.memory import assure_room_for_figures, reduction_buffers
from pipeline.job.patience import Patience
from pipeline.job.progress import Progress, Silent
from pipeline.job.recompute import recomputed
from pipeline.job.run import Job, commit, settle
from pipeline.job.runs import Leases, Runs
from pipeline.job.spectra import Spectra
from pipeline.job.summary import Execution, Summary, stored_summary
from pipeline.planning.make import make_joint_plan, make_plan
from pipeline.planning.plan import Plan
from pipeline.planning.request import Request, Resources
from pipeline.reduce.ties import settled
from pipeline.sources.base import Source
from pipeline.store.attempts import has_superseded
from pipeline.store.folder import Folder
from pipeline.store.names import (
    refuse_to_replace,
    stored_spectra,
    stored_statistics,
    stored_windows,
)
from pipeline.store.records import has_records
from pipeline.store.sums import SumFolder
from pipeline.store.tiles import TileFolder, discard, discard_spectra, is_left
from pipeline.store.training import keeping


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
    resources, progress = resources or Resources(), progress or Silent()
    if resources.executor == "local":
        # now: torch takes two seconds to import, which are none of the job's
        import_module("pipeline.execute.work.worker")
    started = time.monotonic()
    folder = Folder(store)
    # what the store has of this run already is not lost by asking for something else besides
    plan = plan.having(stored_statistics(folder, plan))
    plan = replace(plan, windows_asked=plan.windows_asked or stored_windows(folder, plan))
    if not fresh:
        plan = replace(plan, spectra=plan.spectra or stored_spectra(folder, plan))
    runs = Runs.of(plan if fresh else keeping(folder, plan))
    plan = runs.whole
    for note in plan.training.notes:
        progress.note(note)
    if not may_replace:
        refuse_to_replace(folder, list(runs))
    followed = {each.run: estimated(folder, each.run) for each in runs}
    if not may_replace:
        for each in runs:
            refuse_to_lose(each, followed[each.run])
    buffers = reduction_buffers(plan, resources)
    sums = SumFolder(folder, plan.run, plan.digest, plan.specs, buffers.held)
    nothing = Execution(store, resources.executor, 0, started, buffers)
    done = _figures(
        runs, source, folder, sums, resources, fresh, may_replace, followed, nothing, progress
    )
    return _with_spectra(plan, source, folder, sums, resources, nothing, progress, done)


def _figures(
    runs: Runs,
    source: Source,
    folder: Folder,
    sums: SumFolder,
    resources: Resources,
    fresh: bool,
    may_replace: bool,
    followed: Mapping[str, Estimated | None],
    nothing: Execution,
    progress: Progress,
) -> list[Summary]:
    """Do what is left to do of a plan's tiles and tables."""
    plan = runs.whole
    tiles = TileFolder(folder, plan.run, plan.digest, plan.specs)
    if resources.verify and plan.sampled:
        raise RequestError(
            "--verify needs whole files and cannot be combined with --fraction or --budget",
            "drop one of them",
        )
    if not fresh:
        if (done := _stored(runs, folder, nothing)) is not None:
            if resources.verify:
                with executor(plan, source, resources) as chosen:
                    list(chosen.work([], tiles))
                progress.verified(len(published(plan)))
            _settle_for_another(runs, folder, sums)
            return done
        if sums.complete:
            assure_room_for_figures(plan, resources)
            with Leases(folder, runs).held() as leases:
                written = recomputed(plan, leases, sums, folder, nothing)
                commit(written, Patience(progress.note))
                summaries = _compared(written.summaries, followed, folder)
                settle(runs, leases, folder, sums)
                return summaries
    with (
        executor(plan, source, resources) as chosen,
        Leases(folder, runs).held() as leases,
    ):
        if not may_replace:  # another may have been written meanwhile
            refuse_to_replace(folder, list(runs))
        if fresh:
            discard(folder, plan.run)
            discard_spectra(folder, plan.run)
            sums.discard()
        elif (done := _stored(runs, folder, nothing)) is not None:
            return done  # another driver has finished it meanwhile
        execution = replace(
            nothing,
            executor=chosen.name,
            workers=chosen.workers,
            start_seconds=time.monotonic() - nothing.started,
        )
        job = Job(runs, folder, tiles, sums, leases, execution, progress, resources)
        return _compared(job.run(chosen), followed, folder)


def _with_spectra(
    plan: Plan,
    source: Source,
    folder: Folder,
    sums: SumFolder,
    resources: Resources,
    nothing: Execution,
    progress: Progress,
    done: list[Summary],
) -> list[Summary]:
    """Read the matrices that a complete run asks for, and write it again with their spectra."""
    if not plan.spectra:
        return done
    if not done[-1].complete:
        progress.note("--spectra waits until the run is complete")
        return done
    spectra = Spectra(folder, settled(plan, sums.read))
    if not spectra.pending(resources) and stored_spectra(folder, plan) == plan.spectra:
        return done
    before = done[-1]
    with Leases(folder, Runs.of(plan)).held() as leases:
        read = spectra.read(source, resources, progress, leases.assure)
        outcome = replace(
            read,
            resumed_tiles=before.resumed_tiles,
            bytes_read=before.bytes_read + read.bytes_read,
            work_seconds=before.work_seconds + read.work_seconds,
            pull_seconds=before.pull_seconds + read.pull_seconds,
            gram_seconds=before.gram_seconds + read.gram_seconds,
        )
        execution = replace(nothing, workers=before.workers, start_seconds=before.start_seconds)
        written = recomputed(plan, leases, sums, folder, execution, outcome)
        commit(written, Patience(progress.note))
        settle(Runs.of(plan), leases, folder, sums)
        spectra.remove_others()
        return [replace(each, estimates=before.estimates) for each in written.summaries]


def _compared(
    summaries: Sequence[Summary], followed: Mapping[str, Estimated | None], folder: Folder
) -> list[Summary]:
    """Return summaries that say how far estimates were off where a run was followed before."""
    return [
        replace(summary, estimates=compared(before, folder, summary.run))
        if (before := followed[summary.run]) is not None and summary.complete
        else summary
        for summary in summaries
    ]


def _stored(runs: Runs, folder: Folder, nothing: Execution) -> list[Summary] | None:
    """Return the summaries of the runs if the store has all of them."""
    stored = [stored_summary(folder, plan, nothing) for plan in runs]
    return None if None in stored else [summary for summary in stored if summary is not None]


def _settle_for_another(runs: Runs, folder: Folder, sums: SumFolder) -> None:
    """Remove what the driver that completed these runs did not come to."""
    left = (has_superseded, is_left, has_records)
    if any(is_there(folder, plan.run) for plan in runs for is_there in left):
        # where another driver holds a lease it is busy with a run of this name, and cleans up
        with (
            contextlib.suppress(StoreUnusable, LeaseLost),
            Leases(folder, runs).held() as leases,
        ):
            settle(runs, leases, folder, sums)
