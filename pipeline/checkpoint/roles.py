"""What each tensor of a network is: stack, layer, component, expert; and whether it is a weight.

Names say it first (`components.py`), the structure that names and shapes have together where they
are silent: numbered blocks (`blocks.py`), the dimension of the vocabulary, dimensions of tensors.
A tensor that nothing is known of is `other`: still analysed, still in `model`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoint.blocks import Place, places, split
from pipeline.checkpoint.components import ENDS, OTHER, in_a_block, is_expert, is_inner, outside
from pipeline.checkpoint.config import vocabularies
from pipeline.checkpoint.dtypes import WEIGHT_DTYPES

Shape = tuple[int, ...]

_EXPERT = re.compile(r"(?:^|\.)experts\.(\d{1,9})\.")
MOST_EXPERTS = 4096
"""Far above any network; a part each must not be what a shape of a file says."""

# Of two ends that both have the dimension of the vocabulary and no known name.
_LOOKS_UP = re.compile(r"emb|wte|tok|lookup|encoder|input", re.IGNORECASE)
_PREDICTS = re.compile(
    r"head|out|logit|pred|decoder|generator|classif|proj|score|lm_", re.IGNORECASE
)
PADDING = 1024
"""Rows that an embedding may have more than its vocabulary: 256 for 30,522 tokens, 1,024 for prompts."""


# Things in a weight file that no optimizer moves. Sources: `_keys_to_ignore_on_load_unexpected`
# in transformers 5; `register_buffer` of torch's normalisation layers.
_BUFFERS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"(?:^|\.)masked_bias$", "buffer: value of masked positions"),
        (r"(?:^|\.)rotary_emb\.inv_freq$", "buffer: rotary frequencies"),
        (r"(?:^|\.)(?:running_mean|running_var)$", "buffer: batch-norm statistics"),
    )
)
_MASK_NAME = re.compile(r"(?:^|\.)(?:attn|attention|self_attention)\.bias$")


@dataclass(frozen=True, slots=True)
class Role:
    """What one tensor is within its network."""

    stack: str | None
    layer: int | None
    component: str
    expert: int | None
    kind: str
    """`weight` or `bias`."""
    experts: int = 0
    """How many experts it holds one after the other; 0: it is not of several."""


def role(name: str) -> Role:
    """Return what the tensor of this name is, by the name alone."""
    return roles({name: ()})[name]


def roles(shapes: Mapping[str, Shape], config: Mapping[str, Any] | None = None) -> dict[str, Role]:
    """Return what each tensor of a network is, by the names and shapes of all.

    Args:
        shapes: in the order in which the network has them, or a file.
        config: the checkpoint's `config.json`, for the size of the vocabulary.
    """
    located = places(shapes, lambda path: outside((*path, "weight")) in ENDS)
    components = {
        name: outside(split(name))
        if place.layer is None
        else in_a_block(place.inside, shapes[name])
        for name, place in located.items()
    }
    components |= _ends(shapes, located, components, vocabularies(config or {}))
    components |= _by_dimensions(shapes, components)
    counts = _experts(shapes, located, components)
    return {
        name: Role(
            stack=place.stack,
            layer=place.layer,
            component=components[name],
            expert=int(number[1]) if (number := _EXPERT.search(name)) else None,
            kind="bias" if name.endswith("bias") else "weight",
            experts=counts.get(name, 0),
        )
        for name, place in located.items()
    }


def _by_dimensions(shapes: Mapping[str, Shape], components: Mapping[str, str]) -> dict[str, str]:
    """Return the norms and convolutions among what names do not know.

    A module whose weight has one dimension scales what it gets; one with three or more, but no
    expert, is a convolution. Biases go with their weights.
    """
    known: dict[str, str] = {}
    for name, component in components.items():
        path, _, leaf = name.rpartition(".")
        weight = shapes.get(f"{path}.weight", shapes[name]) if leaf == "bias" else shapes[name]
        if component != OTHER or is_expert(name.split(".")):
            continue
        if len(weight) == 1 and leaf in ("weight", "bias") and f"{path}.weight" in shapes:
            known[name] = "norm"
        elif len(weight) >= 3:
            known[name] = "conv"
    return known


def _experts(
    shapes: Mapping[str, Shape], located: Mapping[str, Place], components: Mapping[str, str]
) -> dict[str, int]:
    """Return of how many experts a tensor holds the weights, where it holds several's.

    Those are its first dimension: of three, or of two in their biases.
    """
    counts: dict[str, int] = {}
    for name, place in located.items():
        shape, component = shapes[name], components[name]
        several = len(shape) == 3 or (len(shape) == 2 and name.endswith("bias"))
        named = is_expert(place.inside) and _EXPERT.search(name) is None
        if several and named and component.startswith("mlp_") and 0 < shape[0] <= MOST_EXPERTS:
            counts[name] = shape[0]
    return counts


def _ends(
    shapes: Mapping[str, Shape],
    located: Mapping[str, Place],
    components: Mapping[str, str],
    stated: Sequence[int],
) -> dict[str, str]:
    """Return the embeddings and output heads that names do not know: their size says what they are.

    Matrices outside the numbered blocks that have the dimension of the vocabulary, and vectors of
    its size.
    """
    ends = [
        name
        for name, place in located.items()
        if place.layer is None
        and len(shapes[name]) == 2
        and (components[name] in ENDS or (components[name] == OTHER and not is_inner(place.inside)))
    ]
    inner = {
        size
        for name, place in located.items()
        if place.layer is not None and len(shapes[name]) >= 2
        for size in shapes[name]
    }
    sizes = _vocabulary([(components[n], shapes[n]) for n in ends], inner, stated)
    ends = [name for name in ends if sizes & {*shapes[name]}]
    known = {components[name] for name in ends} - {OTHER}
    made: dict[str, str] = {}
    for name in ends:
        if components[name] == OTHER:
            made[name] = _which_end(name, known)
            known.add(made[name])
    vectors = {
        name: "unembed"
        for name, place in located.items()
        if place.layer is None
        and components[name] == OTHER
        and len(shapes[name]) == 1
        and shapes[name][0] in sizes
    }
    return made | vectors


def _which_end(name: str, known: set[str]) -> str:
    if _PREDICTS.search(name) and not _LOOKS_UP.search(name):
        return "unembed"
    if _LOOKS_UP.search(name) and not _PREDICTS.search(name):
        return "embed"
    return "unembed" if "embed" in known else "embed"


def _vocabulary(
    ends: Sequence[tuple[str, Shape]], inner: set[int], stated: Sequence[int]
) -> set[int]:
    """Return the sizes of vocabularies: stated, or of a known embedding, or what two ends share.

    It is no dimension of a matrix in a block, and the larger one of its own.
    """
    sizes = {size for _, shape in ends for size in shape} - inner
    if stated:
        return {
            size for size in sizes if any(0 <= size - n <= min(n // 8, PADDING) for n in stated)
        }
    known = {shape[0] for component, shape in ends if component == "embed"} & sizes
    wide = [shape for _, shape in ends if min(shape) < max(shape)]
    # without blocks that tell layers from ends, both dimensions must be shared
    often = Counter(tuple(sorted(shape)) if not inner else (max(shape),) for shape in wide)
    shared = [alike[-1] for alike, count in often.items() if count > 1 and alike[-1] in sizes]
    return known or {max(shared, default=0)}


def reason_to_leave_out(name: str, dtype: str, shape: tuple[int, ...]) -> str | None:
    """Return why a stored tensor is not a trained weight, or None if it is one."""
    if _MASK_NAME.search(name) and len(shape) == 4 and shape[:2] == (1, 1):
        return "buffer: causal mask"
    if dtype not in WEIGHT_DTYPES:
        return f"not a weight: stored as {dtype}"
    if 0 in shape:
        return "empty"
    return next((reason for pattern, reason in _BUFFERS if pattern.search(name)), None)
