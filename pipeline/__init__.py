"""How did the weights travel between the checkpoints of a training run?

import hallmarks
hallmarks.analyze("EleutherAI/pythia-70m", store="results")
hallmarks.open_store("results").sql("FROM indicators WHERE scope = 'model'").show()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import analyze, analyze_joint, average, open_store, plan, update
    from pipeline.averaging.average import AverageSummary
    from pipeline.errors import (
        DamagedRun,
        FormatError,
        HallmarksError,
        NothingMatches,
        PackageMissing,
        PlanDoesNotFit,
        QueryError,
        ReadError,
        RequestError,
        SourceChanged,
        SourceNotFound,
        StoreFailed,
        StoreUnusable,
    )
    from pipeline.follow.python import follow_once
    from pipeline.job.summary import Summary
    from pipeline.job.update import Updated
    from pipeline.planning.plan import Plan
    from pipeline.recorder.recorder import Recorder
    from pipeline.store.maps import TrajectoryMap
    from pipeline.store.query import Store

_HOMES = {
    "pipeline.api": ("analyze", "analyze_joint", "average", "open_store", "plan", "update"),
    "pipeline.averaging.average": ("AverageSummary",),
    "pipeline.errors": (
        *("DamagedRun", "FormatError", "HallmarksError", "NothingMatches", "PackageMissing"),
        *("PlanDoesNotFit", "QueryError", "ReadError", "RequestError", "SourceChanged"),
        *("SourceNotFound", "StoreFailed", "StoreUnusable"),
    ),
    "pipeline.follow.python": ("follow_once",),
    "pipeline.job.summary": ("Summary",),
    "pipeline.job.update": ("Updated",),
    "pipeline.planning.plan": ("Plan",),
    "pipeline.recorder.recorder": ("Recorder",),
    "pipeline.store.maps": ("TrajectoryMap",),
    "pipeline.store.query": ("Store",),
}
"""Where each public name is defined: it is imported when it is first used."""
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AverageSummary",
    "DamagedRun",
    "FormatError",
    "HallmarksError",
    "NothingMatches",
    "PackageMissing",
    "Plan",
    "PlanDoesNotFit",
    "QueryError",
    "ReadError",
    "Recorder",
    "RequestError",
    "SourceChanged",
    "SourceNotFound",
    "Store",
    "StoreFailed",
    "StoreUnusable",
    "Summary",
    "TrajectoryMap",
    "Updated",
    "analyze",
    "analyze_joint",
    "average",
    "follow_once",
    "open_store",
    "plan",
    "update",
]


if not TYPE_CHECKING:  # which would take every name for one that there is

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOME[name]), name)
        return value


def __dir__() -> list[str]:
    return __all__
