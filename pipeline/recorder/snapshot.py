"""The tensors of a network, copied to the host as the safetensors file that they become."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.checkpoint.safetensors import head_of
from pipeline.errors import RequestError, quoted
from pipeline.recorder.network import dtype_name

FILE = "model.safetensors"

T = TypeVar("T")


class Snapshot:
    """A copy in one buffer, which is kept: the layout of a network seldom changes.

    Of tensors that share their memory, as tied weights do, one is copied, under the first name; the header
    says which names it has besides, as `safetensors.torch.load_model` expects it.
    """

    def __init__(self) -> None:
        self._layout: object = None
        self._head = b""
        self._values = torch.empty(0, dtype=torch.uint8)
        self._places: list[Tensor] = []

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors as they are now; when this returns they may change.

        Raises:
            RequestError: of one this rank holds a part.
        """
        for name, tensor in tensors.items():
            if type(tensor).__name__ == "DTensor":
                raise RequestError(
                    f"state dict: expected whole tensors, found {quoted(name)} to be a DTensor",
                    "make the Recorder after fully_shard",
                )
        kept, tied = _without_ties(tensors)
        ordered = sorted(kept.items(), key=lambda each: -each[1].element_size())  # all are aligned
        gpus = {tensor.device for _, tensor in ordered if tensor.is_cuda}
        layout = [(name, tensor.dtype, tensor.shape) for name, tensor in ordered], tied
        if layout != self._layout:
            self._allocate(ordered, tied, pinned=bool(gpus))
            self._layout = layout
        for place, (_, tensor) in zip(self._places, ordered, strict=True):
            place.copy_(tensor, non_blocking=tensor.is_cuda)
        for gpu in gpus:
            torch.cuda.synchronize(gpu)

    def write(self, folder: Path) -> None:
        """Write the file, down to the disk; most of the time without the interpreter's lock."""
        with (folder / FILE).open("wb") as file:
            file.write(self._head)
            file.write(self._values.numpy().data)
            file.flush()
            os.fsync(file.fileno())

    def agree(self, of_rank_0: Callable[[], T]) -> T:
        """Return what rank 0 does, which is alone."""
        return of_rank_0()

    def is_in(self, folder: Path) -> bool:
        """Return whether the file that is there is the one that would be written."""
        if not (folder / FILE).exists():  # but parts of ranks
            return False
        with (folder / FILE).open("rb") as file:
            head = file.read(len(self._head))
            values = np.fromfile(file, np.uint8)
        return head == self._head and np.array_equal(values, self._values.numpy())

    def _allocate(
        self, ordered: Sequence[tuple[str, Tensor]], tied: Mapping[str, str], pinned: bool
    ) -> None:
        sizes = [tensor.numel() * tensor.element_size() for _, tensor in ordered]
        entries = [
            (name, str(dtype_name(tensor)), tensor.shape, size)
            for (name, tensor), size in zip(ordered, sizes, strict=True)
        ]
        self._head, starts = head_of(entries, {"format": "pt", **tied})
        self._values = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=pinned)
        self._places = [
            self._values[start : start + size].view(tensor.dtype).view(tensor.shape)
            for (_, tensor), start, size in zip(ordered, starts, sizes, strict=True)
        ]


def _without_ties(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors, each once, and the names that some have besides: name → the name that is kept."""
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
