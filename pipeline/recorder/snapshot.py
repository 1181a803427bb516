"""The state dict of a network, copied to the host as the safetensors file that it becomes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.checkpoint.safetensors import head_of
from pipeline.errors import RequestError, quoted
from pipeline.recorder.network import COMPILED

DTYPE_NAMES = {dtype.torch: dtype.name for dtype in DTYPES.values() if dtype.torch}
"""What safetensors calls a dtype of torch."""


class Snapshot:
    """A copy in one buffer, which is allocated once: the layout of a network seldom changes.

    Of tensors that share their memory, as tied weights do, one is kept, under the first name; the header
    says which names it has besides, in the way that `safetensors.torch.load_model` understands.
    """

    def __init__(self) -> None:
        self._layout: object = None
        self._head = b""
        self._values = torch.empty(0, dtype=torch.uint8)
        self._places: list[Tensor] = []

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors as they are now; when this returns they may change."""
        kept, tied = _without_ties(tensors)
        ordered = sorted(kept.items(), key=lambda each: -each[1].element_size())  # all are aligned
        layout = [(name, tensor.dtype, tensor.shape) for name, tensor in ordered], tied
        on_gpu = any(tensor.is_cuda for _, tensor in ordered)
        if layout != self._layout:
            self._allocate(ordered, tied, on_gpu)
            self._layout = layout
        for place, (_, tensor) in zip(self._places, ordered, strict=True):
            place.copy_(tensor, non_blocking=on_gpu)
        if on_gpu:
            torch.cuda.synchronize()

    def write(self, file: IO[bytes]) -> None:
        """Write the file; the interpreter's lock is free meanwhile."""
        file.write(self._head)
        file.write(self._values.numpy())

    def _allocate(
        self, ordered: list[tuple[str, Tensor]], tied: Mapping[str, str], pinned: bool
    ) -> None:
        entries = [
            (name, _dtype_name(tensor), tensor.shape, tensor.numel() * tensor.element_size())
            for name, tensor in ordered
        ]
        self._head, starts = head_of(entries, {"format": "pt", **tied})
        total = sum(num_bytes for *_, num_bytes in entries)
        self._values = torch.empty(total, dtype=torch.uint8, pin_memory=pinned)
        self._places = [
            self._values[start : start + num_bytes].view(tensor.dtype).view(tensor.shape)
            for (_, tensor), (*_, num_bytes), start in zip(ordered, entries, starts, strict=True)
        ]


def tensors_of(model: Any) -> dict[str, Tensor]:
    """Return the tensors of a network's state dict, without what `torch.compile` puts into names.

    Raises:
        RequestError: the values of one are not in memory.
    """
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            others.append(name)
            continue
        dtype = str(value.dtype).removeprefix("torch.")
        if value.is_meta or value.layout != torch.strided or dtype not in DTYPE_NAMES:
            what = "on the meta device" if value.is_meta else f"{dtype}, {value.layout}"
            raise RequestError(
                f"state dict: expected tensors with values in memory, found {quoted(name)}: {what}"
            )
        tensors[name.replace(COMPILED, "")] = value
    if others:
        warnings.warn(f"not recorded, as it is no tensor: {', '.join(others)}", stacklevel=2)
    return tensors


def _without_ties(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors, each once, and the names that some have besides: name → name that is kept."""
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    names: dict[object, str] = {}
    for name, tensor in tensors.items():
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        first = names.setdefault(memory, name) if tensor.numel() else name
        if first == name:
            kept[name] = tensor
        else:
            tied[name] = first
    return kept, tied


def _dtype_name(tensor: Tensor) -> str:
    return DTYPE_NAMES[str(tensor.dtype).removeprefix("torch.")]
