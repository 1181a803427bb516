"""One name for one tensor, where checkpoints of a run call it differently.

Names stay as stored where all checkpoints agree, and wherever another spelling would not bring more
tensors together. What is tried, in this order: names without the parts that wrappers add; without
those of the networks that hold networks (`model.`, `transformer.`); and experts of one tensor under
the names of single ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pipeline.checkpoint.blocks import split
from pipeline.checkpoint.roles import MOST_EXPERTS
from pipeline.checkpoint.stored import StoredTensor

Stored = dict[str, tuple[int, StoredTensor]]
"""By name: index of the file, place in it."""

_HOLDERS = frozenset({"model", "transformer", "state"})
# torch 2.1 keeps weight norm as a parametrization: original0 is g, original1 is v.
_PARAMETRIZED = re.compile(r"parametrizations\.([^.]+)\.original([01]?)$")
_SUFFIXES = {"0": "_g", "1": "_v", "": "_orig"}
_ALL_EXPERTS = re.compile(r"(.*\.experts\.)(gate_up_proj|down_proj)")


def bridged(contents: Sequence[Stored]) -> list[Stored]:
    """Return the tensors of all checkpoints, each under one name as far as that can be told."""
    if all(stored.keys() == contents[0].keys() for stored in contents):
        return list(contents)
    best, shared = list(contents), _shared(contents)
    for rename in (_without_wrappers, _without_holders):
        tried = _renamed(contents, rename)
        if tried is not None and (common := _shared(tried)) > shared:
            best, shared = tried, common
    apart = _experts_apart(best)
    return apart if _shared(apart) > shared else best


def _shared(contents: Sequence[Mapping[str, object]]) -> int:
    """Return how many names all checkpoints have in common."""
    distinct = {frozenset(stored) for stored in contents}
    return len(frozenset.intersection(*distinct))


def _renamed(contents: Sequence[Stored], rename: Callable[[str], str]) -> list[Stored] | None:
    """Return the tensors under other names; None where that would make two of them one."""
    spelled = {name: rename(name) for name in {name for stored in contents for name in stored}}
    renamed: list[Stored] = []
    for stored in contents:
        renamed.append({spelled[name]: place for name, place in stored.items()})
        if len(renamed[-1]) < len(stored):
            return None
    return renamed


def _without_wrappers(name: str) -> str:
    plain = ".".join(split(name))
    return _PARAMETRIZED.sub(lambda match: match[1] + _SUFFIXES[match[2]], plain)


def _without_holders(name: str) -> str:
    plain = _without_wrappers(name)
    return ".".join(part for part in plain.split(".") if part not in _HOLDERS) or plain


def _experts_apart(contents: Sequence[Stored]) -> list[Stored]:
    """Return the tensors with experts that lie in one tensor under their own names.

    That is done where another checkpoint has those names, and the shapes fit: (experts, 2 · inner,
    outer) holds the rows of the gate before those of the way up, (experts, outer, inner) the way
    down. Each expert's rows lie side by side.
    """
    shapes = {name: place.shape for stored in contents for name, (_, place) in stored.items()}
    return [
        {
            name: (file, place)
            for fused, (file, whole) in stored.items()
            for name, place in _experts(fused, whole, shapes)
        }
        for stored in contents
    ]


def _experts(
    fused: str, whole: StoredTensor, shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, StoredTensor]]:
    match = _ALL_EXPERTS.fullmatch(fused)
    if match is None or len(whole.shape) != 3 or whole.order or whole.extents or whole.scales:
        return [(fused, whole)]
    labels = ("gate_proj", "up_proj") if match[2] == "gate_up_proj" else ("down_proj",)
    count, rows, columns = whole.shape
    shape = (rows // len(labels), columns)
    names = [
        f"{match[1]}{expert}.{label}.weight"
        for expert in range(min(count, MOST_EXPERTS))
        for label in labels
    ]
    if count > MOST_EXPERTS or any(shapes.get(name) != shape for name in names):
        return [(fused, whole)]
    size = (whole.stop - whole.start) // len(names)
    return [
        (
            name,
            replace(
                whole,
                shape=shape,
                start=whole.start + number * size,
                stop=whole.start + (number + 1) * size,
            ),
        )
        for number, name in enumerate(names)
    ]
