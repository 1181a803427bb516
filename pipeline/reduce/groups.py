"""The groups of weights that figures speak of (docs/contract.md, §4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.planning.align import AlignedTensor
from pipeline.planning.plan import Plan

SCOPES = ("model", "body", "layer", "component", "layer_component", "tensor", "head")
_OUTSIDE_THE_BODY = frozenset({"embed", "position", "unembed"})


@dataclass(frozen=True, slots=True)
class Key:
    """The key columns of the views, besides the run."""

    scope: str
    stack: str | None = None
    layer: int | None = None
    component: str | None = None
    tensor: str | None = None
    head: int | None = None
    expert: int | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """One part of one tensor: what groups are sums of."""

    tensor: int
    part: int
    keys: tuple[Key, ...]
    """Of all groups that hold it."""


def members(plan: Plan) -> list[Member]:
    """Return all parts, in the order in which sums are made.

    Sorted so that the parts of a layer, and of a role in it, follow each other: their sums are
    complete early, and few are held at once.
    """
    found = [
        (_order(tensor, number), Member(index, number, tuple(_keys(tensor, number))))
        for index, tensor in enumerate(plan.tensors)
        for number in range(len(tensor.parts))
    ]
    return [member for _, member in sorted(found, key=lambda pair: pair[0])]


def _order(tensor: AlignedTensor, number: int) -> tuple[str, int, str, str, int]:
    layer = -1 if tensor.role.layer is None else tensor.role.layer
    return (tensor.role.stack or "", layer, tensor.parts[number].component, tensor.name, number)


def _keys(tensor: AlignedTensor, number: int) -> Iterator[Key]:
    role, part = tensor.role, tensor.parts[number]
    yield Key("model")
    if part.component not in _OUTSIDE_THE_BODY:
        yield Key("body")
    if role.layer is not None:
        yield Key("layer", role.stack, role.layer)
    yield Key("component", role.stack, component=part.component)
    if role.layer is not None:
        yield Key("layer_component", role.stack, role.layer, part.component)
    name = f"{tensor.name}[{part.label}]" if part.label else tensor.name
    expert = role.expert if part.expert is None else part.expert
    own = Key("tensor", role.stack, role.layer, part.component, name, expert=expert)
    yield own
    if part.head is not None:
        yield replace(own, scope="head", head=part.head)


def sort_key(key: Key) -> tuple[int | str, ...]:
    """Return the order of groups in the tables."""
    return (
        SCOPES.index(key.scope),
        key.stack or "",
        -1 if key.layer is None else key.layer,
        key.component or "",
        key.tensor or "",
        -1 if key.head is None else key.head,
        -1 if key.expert is None else key.expert,
    )
