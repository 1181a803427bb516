"""Runs written again from their stored sums: today's figures, without reading a weight."""

from __future__ import annotations

from pipeline.job.outcome import Outcome
from pipeline.job.runs import Leases, Runs
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
    plan: Plan, leases: Leases, sums: SumFolder, folder: Folder, execution: Execution
) -> Written:
    """Write the runs of a plan from its sums, all but the rows that count.

    Raises:
        StoreUnusable: sums are damaged or gone.
        LeaseLost: another driver has taken a run over.
    """
    plan = settled(plan, sums.read)
    grouped = grouping(plan)
    outcome = Outcome(
        done=frozenset(tile.index for tile in plan.tiles),
        devices=frozenset(sums.device.split(" + ")),
        already_complete=True,
        recomputed=True,
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
        final=True,
        check=leases.assure,
        ready=leases.assure,
    )
