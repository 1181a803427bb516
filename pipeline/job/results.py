"""From sums to a run in the store: figures, findings, tables, and the summary of it all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline.findings.finding import Finding, counts
from pipeline.findings.judge import findings
from pipeline.findings.observe import Observations, SeenModel
from pipeline.planning.machine import available_cores
from pipeline.planning.plan import Plan
from pipeline.reduce.figures import GroupSums
from pipeline.reduce.groups import Key, members, sort_key
from pipeline.reduce.reduce import reduce
from pipeline.signals import uninterrupted
from pipeline.statistics.gram import one_thread_products
from pipeline.store.attempts import counting
from pipeline.store.folder import Folder
from pipeline.store.query import Store, views_sql
from pipeline.store.write import RunWriter
from pipeline.version import VERSION

FIGURES_FORMAT = 2
"""Raised when figures, scopes or findings are added or change: stored runs are then made again from
their sums, without reading a weight."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What `analyze --json` prints (docs/contract.md, §1)."""

    run: str
    store: str
    checkpoints: int
    first_step: int | None
    """Of the checkpoint that displacements are measured from; None where its name states none."""
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
    mds_stderr: float | None
    relative_mds_stderr: float | None
    findings: dict[str, int]
    """Counts by severity."""
    complete: bool
    resumed_tiles: int
    """Tiles that an earlier attempt had finished."""
    already_complete: bool = False
    """Nothing was read: the store had this very run, or all that its figures are made from."""
    recomputed: bool = False
    """The figures were made again from stored sums."""
    lost: list[str] = field(default_factory=list)
    """Why tiles failed for good."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Work:
    """What was done for a run, beside its figures."""

    store: str
    executor: str
    workers: int
    bytes_read: int = 0
    gram_seconds: float = 0.0
    pull_seconds: float = 0.0
    resumed_tiles: int = 0
    complete: bool = True
    already_complete: bool = False
    recomputed: bool = False
    lost: tuple[str, ...] = ()


class Written:
    """The tables of each run of a plan: written, but not counting yet."""

    def __init__(self, writers: Sequence[RunWriter], summaries: Sequence[Summary]) -> None:
        self._writers = writers
        self.summaries = list(summaries)

    def commit(self) -> None:
        """Make them count, whatever signal arrives meanwhile. May be tried again.

        Raises:
            LeaseLost: another driver has taken a run over.
            StoreUnusable: the storage does not answer; they may count all the same.
        """
        with uninterrupted():
            for writer in self._writers:
                writer.commit()


def write_runs(
    plans: Sequence[Plan],
    attempts: Sequence[str],
    sums: Iterable[tuple[list[Key], GroupSums | None]],
    folder: Folder,
    work: Work,
    *,
    final: bool,
    tiles_done: set[int],
    devices: set[str],
    started: float,
    check: Callable[[], None],
    ready: Callable[[], None],
) -> Written:
    """Make the figures and findings of each run and write its tables, all but the row that counts.

    Args:
        plans: what each path of a plan is alone, if it has several, and last the plan itself.
        attempts: the name of the attempt at each of them.
        sums: of all groups of the plan.
        final: False of an estimate from the tiles read so far.
        tiles_done: numbers of the tiles that the sums are of.
        devices: what computed them; may fill while the sums are consumed.
        started: by the monotonic clock.
        check: called between batches of groups.
        ready: called when all is written; what either raises ends the attempt, and nothing stays.
    """
    plan = plans[-1]
    writers = [
        RunWriter(folder, each.run, attempt) for each, attempt in zip(plans, attempts, strict=True)
    ]
    observed = [Observations(each) for each in plans]
    numbers = _group_numbers(plan)
    summaries, earlier = [], []
    try:
        with one_thread_products():
            for batch in reduce(plan, sums, available_cores()):
                groups = np.array([numbers[key] for key in batch.keys], np.int32)
                for writer, seen, own in zip(writers, observed, (*batch.paths, batch), strict=True):
                    writer.add(groups, own)
                    seen.add(own)
                check()
        folder.replace("views.sql", views_sql(folder).encode())
        for each, writer, seen in zip(plans, writers, observed, strict=True):
            read = sum(tile.bytes for tile in each.tiles if tile.index in tiles_done)
            fraction = read / each.bytes_total
            found = _found(each, seen, fraction, earlier)
            earlier.append(found)
            summary = _summary(each, seen.model, found, fraction, work, devices, started)
            writer.complete(each, found, _run_row(each, summary, final))
            summaries.append(summary)
        ready()
    except BaseException:  # an interrupt, too, must not leave this attempt's files
        for writer in writers:
            writer.abandon()
        raise
    return Written(writers, summaries)


def _found(
    plan: Plan, seen: Observations, fraction: float, earlier: Sequence[Sequence[Finding]]
) -> list[Finding]:
    """Return a run's findings; those of several paths are the paths' own."""
    if not plan.paths:
        return findings(plan, seen, fraction)
    return [
        replace(
            entry,
            k=None if entry.k is None else entry.k + path.first,
            message=f"{path.run}: {entry.message}",
        )
        for path, own in zip(plan.paths, earlier, strict=True)
        for entry in own
    ]


def _summary(
    plan: Plan,
    model: SeenModel | None,
    found: Sequence[Finding],
    fraction: float,
    work: Work,
    devices: set[str],
    started: float,
) -> Summary:
    values = {} if model is None else model.indicators
    errors = {} if model is None else model.indicator_errors
    return Summary(
        run=plan.run,
        store=work.store,
        checkpoints=len(plan.checkpoints),
        first_step=plan.checkpoints[0].step,
        tensors=len(plan.tensors),
        parameters=plan.parameters,
        bytes_total=plan.bytes_total,
        bytes_read=work.bytes_read,
        fraction=fraction,
        seconds=time.monotonic() - started,
        gram_seconds=work.gram_seconds,
        pull_seconds=work.pull_seconds,
        device=" + ".join(sorted(devices)),
        executor=work.executor,
        workers=work.workers,
        mds=_number(values.get("mds")),
        relative_mds=_number(values.get("relative_mds")),
        mds_stderr=_number(errors.get("mds")),
        relative_mds_stderr=_number(errors.get("relative_mds")),
        findings=counts(found),
        complete=work.complete,
        resumed_tiles=work.resumed_tiles,
        already_complete=work.already_complete,
        recomputed=work.recomputed,
        lost=list(work.lost),
    )


def stored_summary(folder: Folder, plan: Plan, work: Work, started: float) -> Summary | None:
    """Return the summary of this very plan if the store holds all of it, with today's figures."""
    if not counting(folder, plan.run):
        return None
    stored, run = Store(work.store), [plan.run]
    columns = "fraction, device, plan, complete, figures"
    rows = stored.sql(f"SELECT {columns} FROM attempts WHERE run = ?", run).fetchall()
    if not rows or rows[0][2:] != (plan.digest, True, FIGURES_FORMAT):
        return None
    if stored.trouble(plan.run) is not None:
        return None
    values = {
        indicator: (value, stderr)
        for indicator, value, stderr in stored.sql(
            "SELECT indicator, value, stderr FROM indicators WHERE scope = 'model'"
            " AND run = ? AND indicator IN ('mds', 'relative_mds')",
            run,
        ).fetchall()
    }
    severities = stored.sql(
        "SELECT severity, count(*) FROM findings WHERE run = ? GROUP BY ALL", run
    ).fetchall()
    found = _summary(plan, None, (), rows[0][0], work, {rows[0][1]}, started)
    return replace(
        found,
        mds=values["mds"][0],
        relative_mds=values["relative_mds"][0],
        mds_stderr=values["mds"][1],
        relative_mds_stderr=values["relative_mds"][1],
        findings=found.findings | dict(severities),
    )


def _group_numbers(plan: Plan) -> dict[Key, int]:
    keys = {key for member in members(plan) for key in member.keys}
    return {key: number for number, key in enumerate(sorted(keys, key=sort_key))}


def _run_row(plan: Plan, summary: Summary, final: bool) -> dict[str, Any]:
    return {
        "final": final,
        "plan": plan.digest,
        "source": plan.source,
        "selection": plan.selection,
        "created_at": datetime.now(UTC),
        "version": VERSION,
        "figures": FIGURES_FORMAT,
        "settings": None,
        **summary.as_dict(),
    }


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else value
