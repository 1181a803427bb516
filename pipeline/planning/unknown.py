"""What no table knows: weights that are `other`, and which patterns of names they have."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from pipeline.checkpoint.components import OTHER
from pipeline.planning.plan import Plan

WORTH_A_WARNING = 0.01
"""Of the weights of numbered layers. Of 218 language models of transformers 9 have more (the largest
shares: bottlenecks of MobileBERT 23 %, adapters of X-MOD 8 %); nearly all have biases or scalars below it."""
_PATTERNS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Unknown:
    """Weights of no known role."""

    share: float
    """Of all weights."""
    share_of_layers: float
    """Of those of numbered layers of several matrices; 0 where there are none."""
    patterns: tuple[tuple[str, int], ...]
    """Names with N for each number, and their weights, the most first: of layers, where there are."""

    @property
    def worth_a_warning(self) -> bool:
        """True where figures by component leave out too much of the layers."""
        return self.share_of_layers >= WORTH_A_WARNING

    def __str__(self) -> str:
        shown = ", ".join(f"{name} ({numel:,})" for name, numel in self.patterns[:_PATTERNS_SHOWN])
        more = len(self.patterns) - _PATTERNS_SHOWN
        return f"{shown} and {more} more patterns" if more > 0 else shown


def unknown(plan: Plan) -> Unknown:
    """Return the weights of a plan whose role is not known."""
    matrices = Counter(
        (tensor.role.stack, tensor.role.layer)
        for _, tensor in plan.counted
        if len(tensor.shape) > 1
    )
    whole: Counter[bool] = Counter()
    other: Counter[bool] = Counter()
    patterns: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for _, tensor in plan.counted:
        # a layer of one matrix has no roles to tell apart: a plain perceptron is understood
        in_layer = (
            tensor.role.layer is not None and matrices[tensor.role.stack, tensor.role.layer] > 1
        )
        whole[in_layer] += tensor.numel
        if tensor.role.component == OTHER:
            other[in_layer] += tensor.numel
            patterns[in_layer][re.sub(r"\d+", "N", tensor.name)] += tensor.numel
    return Unknown(
        other.total() / max(1, whole.total()),
        other[True] / max(1, whole[True]),
        tuple(patterns[bool(patterns[True])].most_common()),
    )
