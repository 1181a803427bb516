"""A network in the loop that trains it: without what wraps it, its tensors, the configuration that it states."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.errors import RequestError, quoted

_NAMES = {dtype.torch: dtype.name for dtype in DTYPES.values() if dtype.torch}


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


def is_sharded(model: nn.Module) -> bool:
    """Return whether each rank holds a part of the tensors, as after `fully_shard` (FSDP2).

    Raises:
        RequestError: they are divided in another way.
    """
    kinds = {type(module).__name__ for module in model.modules()}
    kinds |= {"ZeRO-3"} if any(hasattr(each, "ds_id") for each in model.parameters()) else set()
    for kind in ("FullyShardedDataParallel", "ZeRO-3"):
        if kind in kinds:
            raise RequestError(
                f"model: expected whole tensors or those of fully_shard, found {kind}",
                "shard it with torch.distributed.fsdp.fully_shard",
            )
    return any(type(each).__name__ == "DTensor" for each in model.parameters())


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network's state dict; what else there is in it is said.

    Names are without what `torch.compile` puts into those of modules that it compiles.

    Raises:
        RequestError: the values of one are not in memory.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            check_values(name, value)
            tensors[name.replace("_orig_mod.", "")] = value
        else:
            warnings.warn(f"not recorded, since it is no tensor: {quoted(name)}", stacklevel=4)
    return tensors


def config_of(model: Any, config: Mapping[str, Any] | None) -> bytes | None:
    """Return the configuration of a network, as transformers would save it."""
    if config is not None:
        return json.dumps(dict(config)).encode()
    to_text = getattr(getattr(model, "config", None), "to_json_string", None)
    return None if to_text is None else str(to_text(use_diff=False)).encode()


def dtype_name(tensor: Tensor) -> str | None:
    """Return what safetensors calls the dtype of a tensor; None if it has no name for it."""
    return _NAMES.get(str(tensor.dtype).removeprefix("torch."))


def check_values(name: str, tensor: Tensor, hint: str = "") -> None:
    """Refuse a tensor of a state dict whose values are not in memory one by one.

    Raises:
        RequestError: it is such a one.
    """
    if tensor.is_meta or tensor.layout != torch.strided or dtype_name(tensor) is None:
        dtype = str(tensor.dtype).removeprefix("torch.")
        what = "on the meta device" if tensor.is_meta else f"{dtype}, {tensor.layout}"
        raise RequestError(
            f"state dict: expected tensors with values in memory, found {quoted(name)}: {what}",
            hint,
        )
