"""Runs of a store made again with this version: from their sums and the plans beside them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pipeline.errors import HallmarksError, Interrupted, RequestError, names_like, quoted
from pipeline.job.memory import assure_room_for_figures, reduction_buffers
from pipeline.job.patience import Patience
from pipeline.job.progress import Progress, Silent
from pipeline.job.recompute import recomputed
from pipeline.job.run import commit
from pipeline.job.runs import Leases, Runs
from pipeline.job.summary import FIGURES_FORMAT, Execution
from pipeline.planning.plan import Plan
from pipeline.planning.request import Resources
from pipeline.store.attempts import remove_superseded
from pipeline.store.contents import contents
from pipeline.store.folder import Folder
from pipeline.store.names import stored_spectra, stored_windows
from pipeline.store.plans import AGAIN, kept_plans, read_plan
from pipeline.store.query import Store
from pipeline.store.sums import SumFolder
from pipeline.store.training import keeping


@dataclass(frozen=True, slots=True)
class Updated:
    """What became of one run."""

    run: str
    state: Literal["updated", "current", "not updated"]
    reason: str = ""
    """Why it is not updated."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the store says of a run."""

    plan: str
    complete: bool
    followed: bool
    figures: int
    trouble: str | None

    @property
    def is_current(self) -> bool:
        whole = self.complete or self.followed
        return whole and self.figures == FIGURES_FORMAT and self.trouble is None

    @property
    def why_not(self) -> str:
        """Why it is not updated, where no plan is kept with its sums."""
        if self.followed:
            return "it is followed; `hallmarks follow` with its SOURCE makes it again"
        return f"{'no sums of it are kept' if self.complete else 'it is not complete'}; {AGAIN}"


def update(
    store: str = "hallmarks-store", run: str | None = None, *, progress: Progress | None = None
) -> list[Updated]:
    """Make the figures of stored runs again with this version; reads no weight.

    A run that is current is left alone. One that cannot be made again stays as it is; the others are
    replaced, each as a whole when all of it is written. Runs of one joint analysis are made together.

    Args:
        run: only this one, and those that were made in the same read.

    Raises:
        StoreUnusable: there is no store, or no run in it.
        RequestError: there is no such run.
    """
    progress = progress or Silent()
    folder, rows, states = Folder(store), *_stored(store)
    if run is not None and run not in {*rows, *states}:
        names = names_like(run, {*rows, *states})
        raise RequestError(f"no run {quoted(run)} in {store}", f"there are: {names}")
    wanted = {*rows, *states} if run is None else {run}
    states |= {name: Updated(name, "current") for name, each in rows.items() if each.is_current}
    pending = wanted - states.keys()
    for plan in _plans(folder, rows, pending, states):
        made = _made_by(plan, rows)
        wanted |= {*made}
        try:
            _made_again(plan, folder, store, rows, progress)
            states |= {name: Updated(name, "updated") for name in made}
        except Interrupted:
            raise
        except HallmarksError as error:
            states |= {name: Updated(name, "not updated", _told(error)) for name in made}
        pending -= {*made}
    for name in pending - states.keys():
        states[name] = Updated(name, "not updated", rows[name].why_not)
    return [states[name] for name in sorted(wanted)]


def _stored(store: str) -> tuple[dict[str, _Stored], dict[str, Updated]]:
    """Return what the store says of each run, and those of which it says nothing that can be read."""
    opened, listed = Store(store), contents(Folder(store))
    columns = ("run", "plan", "complete", "final", "followed", "figures")
    rows = zip(*(listed.rows[name].to_pylist() for name in columns), strict=True)
    stored = {
        run: _Stored(plan, bool(complete and final), bool(followed), figures, opened.trouble(run))
        for run, plan, complete, final, followed, figures in rows
    }
    unread = {run: Updated(run, "not updated", why) for run, why in listed.damaged.items()}
    return stored, unread


def _plans(
    folder: Folder, rows: dict[str, _Stored], pending: set[str], states: dict[str, Updated]
) -> Iterator[Plan]:
    """Yield the plans whose sums the pending runs were made from; `states` gets what cannot be read."""
    for owner, digest in kept_plans(folder):
        if not pending - states.keys():
            return
        try:
            plan = read_plan(folder, owner, digest)
        except HallmarksError as error:
            if owner in pending and rows[owner].plan == digest:
                states[owner] = Updated(owner, "not updated", _told(error))
            continue
        if pending & {*_made_by(plan, rows)}:
            yield plan


def _told(error: HallmarksError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message


def _made_by(plan: Plan, rows: dict[str, _Stored]) -> list[str]:
    """Return the runs of the store that were made by a plan: one of several may have been replaced."""
    runs = {each.run: each.digest for each in Runs.of(plan)}
    return [run for run, digest in runs.items() if run in rows and rows[run].plan == digest]


def _made_again(
    plan: Plan, folder: Folder, store: str, rows: dict[str, _Stored], progress: Progress
) -> None:
    """Write the runs of a plan again.

    Raises:
        HallmarksError: they cannot be made again.
    """
    for each in Runs.of(plan):
        if each.run not in _made_by(plan, rows):
            raise RequestError(f"run {each.run} of the same read has been replaced", AGAIN)
        if rows[each.run].figures > FIGURES_FORMAT:
            raise RequestError(
                f"the figures of run {each.run} are of a later version", "update hallmarks"
            )
    renamed = plan.renamed()
    if renamed is None:
        raise RequestError("this version divides its tensors into other parts", AGAIN)
    plan = replace(
        renamed,
        windows_asked=stored_windows(folder, renamed),
        spectra=stored_spectra(folder, renamed),
    )
    plan, resources = keeping(folder, plan), Resources(executor="local")
    assure_room_for_figures(plan, resources)
    buffers = reduction_buffers(plan, resources)
    execution = Execution(store, resources.executor, 0, time.monotonic(), buffers)
    sums = SumFolder(folder, plan.run, plan.digest, plan.specs, buffers.held)
    runs = Runs.of(plan)
    with Leases(folder, runs).held() as leases:
        written = recomputed(plan, leases, sums, folder, execution)
        commit(written, Patience(progress.note))
        leases.check()
        for each in runs:  # tiles stay: another analysis of this name may have left them
            remove_superseded(folder, each.run)
