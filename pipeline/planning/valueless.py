"""Checkpoints that hold no values where the others hold weights.

A rank of DeepSpeed's ZeRO-3 that saves without gathering writes tensors of no elements; a quantized copy
holds packed integers. What most checkpoints hold tells what is missing in one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

from pipeline.checkpoint.dtypes import WEIGHT_DTYPES
from pipeline.checkpoint.stored import StoredTensor

MOST_WITHOUT = 0.5
"""Share of the weights that most checkpoints hold which one may lack and still count as one: norms and
biases are gathered, or not quantized, and are 1 % of a network."""

_EMPTY, _PACKED = "tensors of no elements", "packed values"
_CAUSES = {_EMPTY: "saved without gathering what ranks hold", _PACKED: "a quantized copy"}

Stored = Mapping[str, tuple[int, StoredTensor]]


def without_values(contents: Sequence[Stored], firsts: Sequence[int]) -> dict[int, str]:
    """Return the checkpoints that hold no values where most hold weights, and what they hold.

    Args:
        firsts: where each path begins; a path of which fewer than two would be left keeps all.
    """
    usual = _usual(contents)
    most = MOST_WITHOUT * sum(usual.values())
    lacking = {k: why for k, stored in enumerate(contents) if (why := _lacks(stored, usual, most))}
    for first, stop in pairwise([*firsts, len(contents)]):
        if sum(k not in lacking for k in range(first, stop)) < 2:
            for k in range(first, stop):
                lacking.pop(k, None)
    return lacking


def has_values(tensor: StoredTensor) -> bool:
    """Return whether a tensor's values are read as weights."""
    return not tensor.unreadable and 0 not in tensor.shape and tensor.dtype in WEIGHT_DTYPES


def _usual(contents: Sequence[Stored]) -> dict[str, int]:
    """Return the weights that half of the checkpoints hold, and their sizes."""
    counts: Counter[str] = Counter()
    sizes: dict[str, int] = {}
    for stored in contents:
        for name, (_, tensor) in stored.items():
            if has_values(tensor):
                counts[name] += 1
                sizes[name] = tensor.numel
    return {name: sizes[name] for name, count in counts.items() if 2 * count >= len(contents)}


def _lacks(stored: Stored, usual: Mapping[str, int], most: float) -> str:
    """Return what a checkpoint holds in place of more than `most` weights; empty: it holds weights."""
    lacking: Counter[str] = Counter()
    packed = any(tensor.lost for _, tensor in stored.values())
    for name, numel in usual.items():
        if name not in stored:
            lacking[_PACKED] += numel * packed
        elif 0 in stored[name][1].shape:
            lacking[_EMPTY] += numel
        elif not has_values(stored[name][1]):
            lacking[_PACKED] += numel
    if sum(lacking.values()) <= most:
        return ""
    (what, numel), *_ = lacking.most_common()
    return f"{what} in place of {numel:,} of {sum(usual.values()):,} weights: {_CAUSES[what]}"
