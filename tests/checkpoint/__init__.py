"""Tests of what checkpoints are made of, and files in memory for them."""

from __future__ import annotations

from pipeline.checkpoint.weight_file import WeightFile


def in_memory(data: bytes, path: str, where: str = "x", *others: WeightFile) -> WeightFile:
    """Return a weight file that has these bytes."""
    return WeightFile(path, len(data), where, lambda start, stop: data[start:stop], others)
