"""Checkpoints that hold no values where the others hold weights.

A rank of DeepSpeed's ZeRO-3 that saves without gathering writes tensors of no elements; a quantized copy
holds packed integers. What most checkpoints hold tells what is missing in one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise

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
    holding = [{n: t for n, (_, t) in stored.items() if has_values(t)} for stored in contents]
    usual = _usual(holding)
    most = MOST_WITHOUT * sum(usual.values())
    lacking = {
        k: why
        for k, (stored, held) in enumerate(zip(contents, holding, strict=True))
        if (why := _lacks(stored, usual, [name for name in usual if name not in held], most))
    }
    for first, stop in pairwise([*firsts, len(contents)]):
        if sum(k not in lacking for k in range(first, stop)) < 2:
            for k in range(first, stop):
                lacking.pop(k, None)
    return lacking


def has_values(tensor: StoredTensor) -> bool:
    """Return whether a tensor's values are read as weights."""
    return not tensor.unreadable and 0 not in tensor.shape and tensor.dtype in WEIGHT_DTYPES


def _usual(holding: Sequence[Mapping[str, StoredTensor]]) -> dict[str, int]:
    """Return the weights that half of the checkpoints hold, and their sizes.

    Args:
        holding: what has values in each.
    """
    counts = Counter(chain.from_iterable(holding))
    last = {name: tensor for held in holding for name, tensor in held.items()}
    return {name: last[name].numel for name, count in counts.items() if 2 * count >= len(holding)}


def _lacks(
    stored: Stored, usual: Mapping[str, int], without_values: Sequence[str], most: float
) -> str:
    """Return what a checkpoint holds in place of more than `most` weights; empty: it holds weights.

    Args:
        without_values: those of the usual ones that have none in it.
    """
    lacking: Counter[str] = Counter()
    packed = any(tensor.lost for _, tensor in stored.values())
    for name in without_values:
        if name not in stored:
            lacking[_PACKED] += usual[name] * packed
        elif 0 in stored[name][1].shape:
            lacking[_EMPTY] += usual[name]
        else:
            lacking[_PACKED] += usual[name]
    if sum(lacking.values()) <= most:
        return ""
    (what, numel), *_ = lacking.most_common()
    return f"{what} in place of {numel:,} of {sum(usual.values()):,} weights: {_CAUSES[what]}"
