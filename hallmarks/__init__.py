"""How did the weights travel between the checkpoints of a training run?

import hallmarks
hallmarks.analyze("EleutherAI/pythia-70m", store="results")
hallmarks.open_store("results").sql("FROM indicators WHERE scope = 'model'").show()

This is the package `pipeline` under the project's own name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pipeline

__all__ = pipeline.__all__  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    # the names of `pipeline`, whatever they are: type checkers and editors see them only through a star
    from pipeline import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'hallmarks' has no attribute {name!r}")
        return getattr(pipeline, name)


def __dir__() -> list[str]:
    return list(__all__)
