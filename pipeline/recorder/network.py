"""A network in the loop that trains it: without what wraps it, with the configuration that it states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import distributed
from torch.nn.parallel import DataParallel, DistributedDataParallel

COMPILED = "_orig_mod."
"""What torch.compile puts into names."""


def rank() -> int:
    """Return this process's rank in a distributed training; 0 in any other."""
    return (
        distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
    )


def bare(model: Any) -> Any:
    """Return a network without what compiles or distributes it, which changes names."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif (compiled := getattr(model, "_orig_mod", None)) is not None:
            model = compiled
        else:
            return model


def config_of(model: Any, config: Mapping[str, Any] | None) -> bytes | None:
    """Return the configuration of a network, as transformers would save it."""
    if config is not None:
        return json.dumps(dict(config)).encode()
    to_text = getattr(getattr(model, "config", None), "to_json_string", None)
    return None if to_text is None else str(to_text(use_diff=False)).encode()
