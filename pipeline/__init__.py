"""How did the weights travel between the checkpoints of a training run?

import pipeline
pipeline.analyze("EleutherAI/pythia-70m", store="results")
pipeline.open_store("results").sql("FROM indicators WHERE scope = 'model'").show()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.api import analyze, analyze_joint, open_store, plan

__all__ = ["analyze", "analyze_joint", "open_store", "plan"]


def __getattr__(name: str) -> Any:
    """Import the public functions when first used: they bring torch, which takes a second."""
    if name not in __all__:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    from pipeline import api

    globals().update({public: getattr(api, public) for public in __all__})
    return globals()[name]
