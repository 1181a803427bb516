"""Tests of what checkpoints are made of, and files in memory for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.checkpoint.weight_file import WeightFile
from pipeline.planning.plan import Plan


def in_memory(data: bytes, path: str, where: str = "x", *others: WeightFile) -> WeightFile:
    """Return a weight file that has these bytes."""
    return WeightFile(path, len(data), where, lambda start, stop: data[start:stop], others)


def values(plan: Plan, k: int) -> dict[str, np.ndarray]:
    """Return the elements of each tensor of checkpoint k, stored as float32, as a plan reads them."""
    held = {}
    for tensor in plan.tensors:
        data = bytearray(4 * tensor.numel)
        for file, start, stop, offset in tensor.extents(k, 0, tensor.numel):
            with Path(plan.files[file].where).open("rb") as opened:
                opened.seek(start)
                data[offset : offset + stop - start] = opened.read(stop - start)
        held[tensor.name] = np.frombuffer(data, np.float32)
    return held
