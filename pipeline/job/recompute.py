"""Runs written again from their stored sums: today's figures, without reading a weight."""

from __future__ import annotations

from dataclasses import replace

from pipeline.job.outcome import Outcome
from pipeline.job.runs import Leases, Runs
from pipeline.job.spectra import Spectra
from pipeline.job.summary import Execution
from pipeline.job.write import Written, write_runs
from pipeline.planning.plan import Plan
from pipeline.reduce.groups import grouping
from pipeline.reduce.reduce import group_sums
from pipeline.reduce.ties import settled
from pipeline.store.attempts import final
from pipeline.store.folder import Folder
from pipeline.store.sums import SumFolder


def recomputed(
    plan: Plan,
    leases: Leases,
    sums: SumFolder,
    folder: Folder,
    execution: Execution,
    read: Outcome | None = None,
) -> Written:
    """Write the runs of a plan from its sums, all but the rows that count.

    Args:
        read: what has been read for them in this job; default: nothing.

    Raises:
        StoreUnusable: sums are damaged or gone.
        LeaseLost: another driver has taken a run over.
    """
    plan = settled(plan, sums.read)
    grouped = grouping(plan)
    outcome = replace(
        read or Outcome(already_complete=True, recomputed=True),
        done=frozenset(tile.index for tile in plan.tiles),
        devices=frozenset(sums.device.split(" + ")),
    )
    return write_runs(
        Runs.of(plan),
        [final(token) for token in leases.tokens],
        grouped,
        group_sums(plan, grouped, sums.read, execution.buffers.stack),
        folder,
        execution,
        outcome,
        rows=sums.rows(),
        matrices=Spectra(folder, plan).figures() if plan.spectra else (),
        final=True,
        check=leases.assure,
        ready=leases.assure,
    )
