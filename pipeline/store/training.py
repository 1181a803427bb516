"""What a store has of the training of a run: an analysis that states less of it keeps that."""

from __future__ import annotations

from pipeline.planning.plan import Plan
from pipeline.store.attempts import counting
from pipeline.store.folder import Folder
from pipeline.store.query import Store
from pipeline.training.metrics import UNKNOWN, Curve, Metric, Training
from pipeline.training.settings import Settings, of_text

_QUERY = """SELECT split, metric, list(step ORDER BY step NULLS FIRST, k NULLS FIRST) AS steps,
    list(k ORDER BY step NULLS FIRST, k NULLS FIRST) AS k,
    list(value ORDER BY step NULLS FIRST, k NULLS FIRST) AS value
FROM training WHERE run = ? GROUP BY ALL"""


def stored_training(folder: Folder, run: str) -> tuple[Settings, Training]:
    """Return the settings and the metrics of a run; none if there is no such run."""
    if not counting(folder, run):
        return {}, Training()
    store = Store(folder.root, only=run)
    settings = store.sql("SELECT settings FROM runs WHERE run = ?", [run]).fetchall()
    curves = {
        Metric(split.as_py(), metric.as_py()): Curve(
            steps.values.fill_null(UNKNOWN).to_numpy(),
            k.values.fill_null(UNKNOWN).to_numpy(),
            values.values.to_numpy(zero_copy_only=False),
        )
        for split, metric, steps, k, values in zip(*store.table(_QUERY, [run]), strict=True)
    }
    return of_text(settings[0][0] if settings else None), Training(curves)


def keeping(folder: Folder, plan: Plan) -> Plan:
    """Return the plan with what the store has of the training besides what the plan knows of it.

    Of a setting or a metric that both have, the plan's is the newer.
    """
    paths = plan.paths or (plan,)
    ends = [*(path.first for path in plan.paths[1:]), len(plan.checkpoints)]
    known: list[tuple[Settings, Training]] = []
    first = 0
    for path, end in zip(paths, ends, strict=True):
        settings, training = stored_training(folder, path.run)
        steps = [checkpoint.step for checkpoint in plan.checkpoints[first:end]]
        known.append(({**settings, **path.settings}, training.by_step().at(steps) | path.training))
        first = end
    return plan.knowing(known)
