"""The groups of weights that figures speak of (docs/contract.md, §4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.planning.align import AlignedTensor
from pipeline.planning.plan import Plan
from pipeline.planning.tiles import elements

SCOPES = ("model", "body", "layer", "component", "layer_component", "tensor", "head")
INCREMENTS_KEPT = ("model", "body", "layer", "component")
"""Scopes whose products of increments are in the tables, and the parts of whose paths are looked at; others on
request: for all scopes similarities would take up to half as much again (docs/decisions/store-contents.md)."""
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
    groups: tuple[int, ...]
    """Numbers of all groups that hold it."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which parts make which groups."""

    keys: tuple[Key, ...]
    """Of all groups, in the order of the tables: a group's number is its place."""
    members: tuple[Member, ...]
    """All parts, in the order in which sums are made: parts of a layer, and of a role in it, follow
    each other, so that their sums are complete early and few are held at once."""
    sizes: tuple[int, ...]
    """How many parts each group has."""
    parameters: tuple[int, ...]
    """How many weights each group has."""
    increments_kept: tuple[bool, ...]
    """Whether products of increments of each group are in the tables."""
    most_open: int
    """How many groups of several parts have some of their sums at one time, and not all."""


def grouping(plan: Plan) -> Grouping:
    """Return the groups of a plan's parts."""
    parts = sorted(
        ((index, number) for index, tensor in plan.counted for number in range(len(tensor.parts))),
        key=lambda part: order_of(plan.tensors[part[0]], part[1]),
    )
    rows: dict[tuple[Any, ...], int] = {}
    sizes: list[int] = []
    parameters: list[int] = []
    members: list[tuple[int, int, list[int]]] = []
    for tensor, part in parts:
        groups = []
        of_part = plan.tensors[tensor]
        weights = elements(of_part.parts[part], 0, of_part.numel)
        for row in _rows(of_part, part):
            group = rows.setdefault(row, len(rows))
            if group == len(sizes):
                sizes.append(0)
                parameters.append(0)
            sizes[group] += 1
            parameters[group] += weights
            groups.append(group)
        members.append((tensor, part, groups))
    keys = [Key(*row) for row in rows]
    order = sorted(range(len(keys)), key=lambda group: sort_key(keys[group]))
    place = {group: number for number, group in enumerate(order)}
    return Grouping(
        tuple(keys[group] for group in order),
        tuple(
            Member(tensor, part, tuple(place[group] for group in groups))
            for tensor, part, groups in members
        ),
        tuple(sizes[group] for group in order),
        tuple(parameters[group] for group in order),
        tuple(keys[group].scope in (*INCREMENTS_KEPT, *plan.windows.scopes) for group in order),
        _most_open([groups for _, _, groups in members], sizes),
    )


def _most_open(members: Sequence[Sequence[int]], sizes: Sequence[int]) -> int:
    """Return how many groups of several parts have some of their sums at one time, and not all."""
    left = list(sizes)
    now = most = 0
    for groups in members:
        for group in groups:
            now += left[group] == sizes[group] > 1
            left[group] -= 1
        most = max(most, now)
        now -= sum(not left[group] and sizes[group] > 1 for group in groups)
    return most


def order_of(tensor: AlignedTensor, number: int) -> tuple[str, int, str, str, int]:
    """Return the place of a part of a tensor among all parts."""
    layer = -1 if tensor.role.layer is None else tensor.role.layer
    return (tensor.role.stack or "", layer, tensor.parts[number].component, tensor.name, number)


def _rows(tensor: AlignedTensor, number: int) -> Iterator[tuple[Any, ...]]:
    """Yield the fields of the keys of all groups that a part is in."""
    role, part = tensor.role, tensor.parts[number]
    component = part.component
    yield "model", None, None, None, None, None, None
    if component not in _OUTSIDE_THE_BODY:
        yield "body", None, None, None, None, None, None
    if role.layer is not None:
        yield "layer", role.stack, role.layer, None, None, None, None
    yield "component", role.stack, None, component, None, None, None
    if role.layer is not None:
        yield "layer_component", role.stack, role.layer, component, None, None, None
    name = f"{tensor.name}[{part.label}]" if part.label else tensor.name
    expert = role.expert if part.expert is None else part.expert
    yield "tensor", role.stack, role.layer, component, name, None, expert
    if part.head is not None:
        yield "head", role.stack, role.layer, component, name, part.head, expert


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
