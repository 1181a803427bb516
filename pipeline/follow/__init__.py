"""Following a run that still grows: each checkpoint is read once, figures between them are estimated."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.follow.python import follow, follow_once
    from pipeline.follow.sketcher import Sketcher

_HOMES = {
    "pipeline.follow.python": ("follow", "follow_once"),
    "pipeline.follow.sketcher": ("Sketcher",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["Sketcher", "follow", "follow_once"]


if not TYPE_CHECKING:  # which would take every name for one that there is

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'pipeline.follow' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOME[name]), name)
        return value
