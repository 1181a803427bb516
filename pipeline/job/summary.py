"""What a job says of a run when it is over: what `analyze --json` prints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pipeline.findings.finding import Finding, counts
from pipeline.findings.observe import SeenModel
from pipeline.job.outcome import Outcome
from pipeline.planning.plan import Plan
from pipeline.reduce.memory import Buffers
from pipeline.store.attempts import counting
from pipeline.store.folder import Folder
from pipeline.store.query import Store
from pipeline.store.training import stored_training
from pipeline.training.settings import as_text
from pipeline.version import VERSION

FIGURES_FORMAT = 11
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
    start_seconds: float
    """Of `seconds`, until workers could begin: mostly Ray's start."""
    work_seconds: float
    """Of `seconds`, while tiles were read and multiplied; the rest made figures and tables."""
    gram_seconds: float
    """Summed over workers, like `pull_seconds`."""
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
    followed: bool
    """The figures are estimates from what was kept of each checkpoint (docs/method-2.md, §7)."""
    resumed_tiles: int
    """Tiles that an earlier attempt had finished."""
    already_complete: bool = False
    """Nothing was read: the store had this very run, or all that its figures are made from."""
    recomputed: bool = False
    """The figures were made again from stored sums."""
    lost: list[str] = field(default_factory=list)
    """Why tiles failed for good."""
    estimates: dict[str, Any] | None = None
    """Of a run that was followed before: how far its figures were off (`followed.compared`)."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Execution:
    """Where a job is done, and since when."""

    store: str
    executor: str
    workers: int
    started: float
    """By the monotonic clock."""
    buffers: Buffers
    """What figures and tables are made with."""
    start_seconds: float = 0.0
    """How long it took until workers could begin."""


def summary(
    plan: Plan,
    execution: Execution,
    outcome: Outcome,
    fraction: float,
    model: SeenModel | None = None,
    findings: Sequence[Finding] = (),
) -> Summary:
    """Return the summary of a run.

    Args:
        fraction: share of the weights that the figures are made from.
        model: figures of the whole model, if there are any.
    """
    values = {} if model is None else model.indicators
    errors = {} if model is None else model.indicator_errors
    return Summary(
        run=plan.run,
        store=execution.store,
        checkpoints=len(plan.checkpoints),
        first_step=plan.checkpoints[0].step,
        tensors=len(plan.counted),
        parameters=plan.parameters,
        bytes_total=plan.bytes_total,
        bytes_read=outcome.bytes_read,
        fraction=fraction,
        seconds=time.monotonic() - execution.started,
        start_seconds=execution.start_seconds,
        work_seconds=outcome.work_seconds,
        gram_seconds=outcome.gram_seconds,
        pull_seconds=outcome.pull_seconds,
        device=" + ".join(sorted(outcome.devices)),
        executor=execution.executor,
        workers=execution.workers,
        mds=_number(values.get("mds")),
        relative_mds=_number(values.get("relative_mds")),
        mds_stderr=_number(errors.get("mds")),
        relative_mds_stderr=_number(errors.get("relative_mds")),
        findings=counts(findings),
        complete=outcome.complete,
        followed=plan.sketch is not None,
        resumed_tiles=outcome.resumed_tiles,
        already_complete=outcome.already_complete,
        recomputed=outcome.recomputed,
        lost=[lost.error.message for lost in outcome.lost],
    )


def stored_summary(folder: Folder, plan: Plan, execution: Execution) -> Summary | None:
    """Return the summary of this very plan if the store holds all of it, with today's figures.

    And with all that the plan knows of the training.
    """
    if not counting(folder, plan.run):
        return None
    stored, run = Store(execution.store, only=plan.run), [plan.run]
    columns = "fraction, device, tensors, parameters, plan, complete, figures, windows"
    rows = stored.sql(f"SELECT {columns} FROM attempts WHERE run = ?", run).fetchall()
    whole = plan.sketch is None  # a run that is followed never is
    asked = (plan.digest, whole, FIGURES_FORMAT, plan.windows.words)
    if not rows or rows[0][4:] != asked:
        return None
    if stored.trouble(plan.run) is not None:
        return None
    if stored_training(folder, plan.run) != (plan.settings, plan.training):
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
    fraction, device, tensors, parameters = rows[0][:4]
    outcome = Outcome(devices=frozenset({device}), complete=whole, already_complete=True)
    without_figures = summary(plan, execution, outcome, fraction)
    return replace(
        without_figures,
        tensors=tensors,
        parameters=parameters,
        mds=values["mds"][0],
        relative_mds=values["relative_mds"][0],
        mds_stderr=values["mds"][1],
        relative_mds_stderr=values["relative_mds"][1],
        findings=without_figures.findings | dict(severities),
    )


def run_row(plan: Plan, summary: Summary, final: bool) -> dict[str, Any]:
    """Return what the table `runs` says of a run, beside its files.

    Args:
        final: False of an estimate from the tiles read so far.
    """
    return {
        "final": final,
        "plan": plan.digest,
        "source": plan.source,
        "selection": plan.selection,
        "statistics": list(plan.statistics_asked),
        "spectra": plan.spectra if final else 0,
        "windows": plan.windows.words,
        "created_at": datetime.now(UTC),
        "version": VERSION,
        "figures": FIGURES_FORMAT,
        "settings": as_text(plan.settings),
        **summary.as_dict(),
    }


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else value
