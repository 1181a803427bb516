"""From parts to groups: sums by scope in a fixed order, and the figures of them.

The order of every sum over parts is that of `Grouping.members`. SQL sums of doubles would not be
reproducible, so none are left to the views.

Letters: Q parts of a stack, K checkpoints.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.numerics.basis import Basis
from pipeline.planning.plan import Plan
from pipeline.planning.sample import JACKKNIFE_FOLDS
from pipeline.planning.tiles import elements
from pipeline.reduce.batches import FigureBatch, OfGroups, figure_batches
from pipeline.reduce.estimate import Estimate, Stratum, varying
from pipeline.reduce.figures import GroupSums, Times
from pipeline.reduce.groups import Grouping, Member
from pipeline.reduce.memory import MOST_STACK, Buffers, group_bytes, projected_estimate
from pipeline.reduce.sub_paths import Parts
from pipeline.statistics.groups import PartStack
from pipeline.statistics.parts import PartKey, Sums
from pipeline.statistics.statistic import MERGES, Rule, specs, unpacked
from pipeline.statistics.straight import squared_moves, straight_sums
from pipeline.statistics.table import on_request

_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / golden ratio, odd: makes a sum of digests ordered


def reduce(
    plan: Plan, grouped: Grouping, sums: Iterable[OfGroups], buffers: Buffers
) -> Iterator[FigureBatch]:
    """Yield the figures of every group, many at a time, as their sums become complete.

    Args:
        sums: of `group_sums` or `estimated_sums`.
        buffers: decide nothing about the figures.
    """
    basis = Basis(plan.firsts, len(plan.checkpoints))
    return figure_batches(
        sums,
        grouped.keys,
        _times(plan),
        basis,
        buffers.threads,
        buffers.batch,
        Parts.asked(plan),
        grouped.increments_kept,
    )


def group_sums(
    plan: Plan,
    grouped: Grouping,
    parts: Callable[[Sequence[tuple[int, int]]], Sums],
    stack_bytes: int = MOST_STACK,
    lost: frozenset[int] = frozenset(),
) -> Iterator[OfGroups]:
    """Yield the sums of every group; groups of the same single part come together, as one.

    Args:
        parts: gives the sums of some parts, in their order.
        stack_bytes: of Gram matrices that are added up at once; decides nothing about the sums.
        lost: tensors of which some weights could not be read: their groups have no sums.
    """
    totals: dict[int, _Total] = {}
    left = list(grouped.sizes)
    unknown = {g for member in grouped.members if member.tensor in lost for g in member.groups}
    for members in _stacks(plan, grouped.members, stack_bytes):
        present = [member for member in members if member.tensor not in lost]
        stack = _Stack(plan, present, parts([(m.tensor, m.part) for m in present]))
        rows: dict[int, list[int]] = defaultdict(list)
        for row, member in enumerate(present):
            single = [group for group in member.groups if grouped.sizes[group] == 1]
            if single:
                yield single, stack.of(row)
            for group in member.groups:
                if grouped.sizes[group] > 1:
                    rows[group].append(row)
        for member in members:
            for group in member.groups:
                left[group] -= 1
                if not left[group] and group in unknown:
                    yield [group], None
        for group, rows_of_group in rows.items():
            if group in unknown:
                continue
            totals[group] = stack.added(totals.get(group), rows_of_group)
            if not left[group]:
                yield [group], totals.pop(group).sums()


@dataclass
class _Total:
    """Sums over the parts of a group so far."""

    increments: NDArray[np.float64]
    digests: NDArray[np.uint64]
    absent: NDArray[np.bool_]
    straight: NDArray[np.float64]
    changes: dict[int, NDArray[np.float64]]
    errors_known: bool
    folds: int
    tables: dict[str, dict[str, NDArray[Any]]]

    def sums(self) -> GroupSums:
        return GroupSums(
            self.increments,
            self.digests,
            self.absent,
            self.straight,
            self.changes,
            self.errors_known,
            self.folds,
            tables=self.tables,
        )


class _Stack:
    """The sums of some parts, side by side."""

    def __init__(self, plan: Plan, members: Sequence[Member], parts: Sums) -> None:
        count = len(plan.checkpoints)
        arrays = parts.arrays
        firsts = _first_rows(members, parts.keys)
        self._changes: list[dict[int, NDArray[np.float64]]] = [{} for _ in members]
        self._errors_known, self._folds = [True] * len(members), [0] * len(members)
        if len(parts.keys) > len(members):  # several folds
            arrays = _over_folds(plan, arrays, firsts)
        self._digests = arrays["digest.words"]
        self._absent = arrays["non_finite.count"] > 0
        stack = _part_stack(plan, members, arrays)
        moves = squared_moves(arrays["gram.increments"], stack.basis)
        self._straight = straight_sums(stack, moves)
        self._increments = unpacked(arrays["gram.increments"])
        self._rules = {each.name: each.group_rules for each in on_request(plan.statistics_asked)}
        self._tables = {
            each.name: dict(each.of_parts(stack)) for each in on_request(plan.statistics_asked)
        }
        for row, member in enumerate(members):
            drawn = plan.drawn(member.tensor, member.part)
            if drawn.whole:
                continue
            stratum = Stratum(drawn.segments, drawn.counts, len(drawn.folds))
            estimate = Estimate({0: stratum}, JACKKNIFE_FOLDS, count)
            stop = firsts[row + 1] if row + 1 < len(firsts) else len(parts.keys)
            for at in range(firsts[row], stop):
                of_fold = unpacked(parts.arrays["gram.increments"][at])
                estimate.add(0, parts.keys[at].fold, of_fold)
            self._increments[row], self._changes[row] = estimate.result()
            self._errors_known[row], self._folds[row] = estimate.errors_known, estimate.groups

    def of(self, row: int) -> GroupSums:
        """Return the sums of one part."""
        return GroupSums(
            self._increments[row],
            self._digests[row],
            self._absent[row],
            self._straight[row],
            self._changes[row],
            self._errors_known[row],
            self._folds[row],
            tables={
                name: {array: values[row] for array, values in arrays.items()}
                for name, arrays in self._tables.items()
            },
        )

    def added(self, total: _Total | None, rows: list[int]) -> _Total:
        """Return a total and some parts added up, one after the other."""
        changes = {} if total is None else total.changes
        for row in rows:
            for fold, change in self._changes[row].items():
                changes[fold] = changes[fold] + change if fold in changes else change
        absent = np.logical_or.reduce(self._absent[rows], axis=0)
        return _Total(
            _added(None if total is None else total.increments, self._increments[rows]),
            _mixed(None if total is None else total.digests, self._digests[rows]),
            absent if total is None else total.absent | absent,
            _added(None if total is None else total.straight, self._straight[rows]),
            changes,
            all(self._errors_known[row] for row in rows) and (total is None or total.errors_known),
            max(max(self._folds[row] for row in rows), 0 if total is None else total.folds),
            {
                name: {
                    array: _merged(
                        None if total is None else total.tables[name][array],
                        values[rows],
                        self._rules[name].get(array, "add"),
                    )
                    for array, values in arrays.items()
                }
                for name, arrays in self._tables.items()
            },
        )


def _first_rows(members: Sequence[Member], keys: Sequence[PartKey]) -> list[int]:
    """Return where the rows of each member begin among the keys, which are in their order."""
    firsts, at = [], 0
    for member in members:
        firsts.append(at)
        while at < len(keys) and keys[at][:2] == (member.tensor, member.part):
            at += 1
    return firsts


def _over_folds(
    plan: Plan, arrays: Mapping[str, NDArray[Any]], firsts: list[int]
) -> dict[str, NDArray[Any]]:
    """Return the arrays of parts, given those of their folds, which follow each other."""
    rules = {spec.name: spec for spec in specs(plan.statistics, len(plan.checkpoints))}
    merged = {}
    for name, array in arrays.items():
        merged[name] = array[firsts].copy()
        stops = [*firsts[1:], len(array)]
        for row, (first, stop) in enumerate(zip(firsts, stops, strict=True)):
            for at in range(first + 1, stop):
                rules[name].merge(merged[name][row, ...], array[at])
    return merged


def _added(total: NDArray[np.float64] | None, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum in the order of the rows, which follows the total's: bits depend on it."""
    if total is not None:
        rows = np.concatenate((total[None], rows))
    return np.add.reduce(rows, axis=0)


def _merged(total: NDArray[Any] | None, rows: NDArray[Any], rule: Rule) -> NDArray[Any]:
    """Return a total and rows merged, one after the other."""
    if total is not None:
        rows = np.concatenate((total[None], rows))
    return MERGES[rule].reduce(rows, axis=0)


def _part_stack(
    plan: Plan, members: Sequence[Member], arrays: Mapping[str, NDArray[Any]]
) -> PartStack:
    tensors = [plan.tensors[member.tensor] for member in members]
    parts = [tensor.parts[member.part] for tensor, member in zip(tensors, members, strict=True)]
    return PartStack(
        arrays,
        np.array([elements(p, 0, t.numel) for p, t in zip(parts, tensors, strict=True)], float),
        [tensor.dtypes for tensor in tensors],
        Basis(plan.firsts, len(plan.checkpoints)),
    )


def _mixed(total: NDArray[np.uint64] | None, rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return what tells equal checkpoints of all parts: a polynomial in _MIX, first part first."""
    if total is not None:
        rows = np.concatenate((total[None], rows))
    powers = np.full(len(rows), _MIX)
    powers[0] = 1
    powers = np.multiply.accumulate(powers)[::-1]
    return np.add.reduce(rows * powers[:, None, None], axis=0)


def _stacks(plan: Plan, members: Sequence[Member], stack_bytes: int) -> Iterator[Sequence[Member]]:
    size = max(1, stack_bytes // group_bytes(plan))
    for first in range(0, len(members), size):
        yield members[first : first + size]


def estimated_sums(
    plan: Plan, grouped: Grouping, done: Mapping[int, int], result: Callable[[int], Sums]
) -> Iterator[OfGroups]:
    """Yield the sums of every group as the tiles read so far let them be estimated.

    Strata are the roles within a group; what has been read of one stands for it by its size. A
    group with a stratum that nothing has been read of has no sums.

    Args:
        done: the tiles that have been read, each with its jackknife fold. They must have been
            taken at random.
        result: gives the result of the tile of that number.
    """
    folds, count = len(set(done.values())), len(plan.checkpoints)
    strata = _strata(plan, grouped, done)
    estimates = {
        group: Estimate(of_group, folds, count)
        for group, of_group in strata.items()
        if all(stratum.read for stratum in of_group.values())
    }
    rules = {spec.name: spec for spec in specs(plan.statistics, count)}
    small = [name for name, spec in rules.items() if not spec.symmetric]
    parts = {(member.tensor, member.part): member for member in grouped.members}
    read: dict[tuple[int, int], dict[str, NDArray[Any]]] = {}
    moves: dict[tuple[int, int], NDArray[np.float64]] = {}
    basis = Basis(plan.firsts, count)
    for number in sorted(done):
        sums = result(number)
        for row, key in enumerate(sums.keys):
            member = parts[key[:2]]
            component = plan.tensors[key.tensor].parts[key.part].component
            triangle = sums.arrays["gram.increments"][row]
            moves[key[:2]] = moves.get(key[:2], 0.0) + squared_moves(triangle[None], basis)
            increments = unpacked(triangle)
            for group in member.groups:
                if group in estimates:
                    estimates[group].add(component, done[number], increments)
            of_part = read.setdefault(key[:2], {name: rules[name].empty(1) for name in small})
            for name in small:
                rules[name].merge(of_part[name][0, ...], sums.arrays[name][row])
    nothing = {name: rules[name].empty(1) for name in small}
    left = list(grouped.sizes)
    totals: dict[int, tuple[NDArray[np.uint64], NDArray[np.bool_]]] = {}
    for member in grouped.members:
        arrays = read.pop((member.tensor, member.part), nothing)
        component = plan.tensors[member.tensor].parts[member.part].component
        if arrays["exponents.numel"][0]:
            dtypes = plan.tensors[member.tensor].dtypes
            of_read = PartStack(arrays, arrays["exponents.numel"].astype(float), [dtypes], basis)
            straight = straight_sums(of_read, moves.pop((member.tensor, member.part)))[0]
            for group in member.groups:
                if group in estimates:
                    estimates[group].add_straight(component, straight)
        digests, absent = arrays["digest.words"][0], arrays["non_finite.count"][0] > 0
        for group in member.groups:
            if group in totals:
                before, absent_before = totals[group]
                totals[group] = before * _MIX + digests, absent_before | absent
            else:
                totals[group] = digests, absent
            left[group] -= 1
            if not left[group]:
                yield [group], _estimated(estimates.pop(group, None), *totals.pop(group))


def estimate_bytes(plan: Plan, grouped: Grouping, buffers: Buffers, done: Mapping[int, int]) -> int:
    """Return the most that figures and tables of `estimated_sums` of the same tiles take, beside tiles."""
    of_groups = [
        strata
        for strata in _strata(plan, grouped, done).values()
        if all(stratum.read for stratum in strata.values())
    ]
    folds = [len(varying(strata)) for strata in of_groups]
    matrices = sum(1 + len(strata) for strata in of_groups) + sum(folds)
    return projected_estimate(plan, grouped, buffers, matrices, max(folds, default=0))


def _estimated(
    estimate: Estimate | None, digests: NDArray[np.uint64], absent: NDArray[np.bool_]
) -> GroupSums | None:
    if estimate is None:
        return None
    increments, changes = estimate.result()
    return GroupSums(
        increments,
        digests,
        absent,
        estimate.straight,
        changes,
        estimate.errors_known,
        estimate.groups,
    )


def _strata(
    plan: Plan, grouped: Grouping, done: Mapping[int, int]
) -> dict[int, dict[Hashable, Stratum]]:
    """Return what was read of every role in every group, in elements."""
    sizes: dict[tuple[int, str], int] = Counter()
    read: dict[tuple[int, str], Counter[int]] = defaultdict(Counter)
    tiles: dict[tuple[int, str], set[int]] = defaultdict(set)
    of_tensor: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for number in done:
        for range_ in plan.tiles[number].ranges:
            of_tensor[range_.tensor].append((number, range_.first, range_.stop))
    for member in grouped.members:
        tensor = plan.tensors[member.tensor]
        part = tensor.parts[member.part]
        for group in member.groups:
            sizes[group, part.component] += elements(part, 0, tensor.numel)
        for number, first, stop in of_tensor[member.tensor]:
            if numel := elements(part, first, stop):
                for group in member.groups:
                    read[group, part.component][done[number]] += numel
                    tiles[group, part.component].add(number)
    strata: dict[int, dict[Hashable, Stratum]] = defaultdict(dict)
    for (group, component), size in sizes.items():
        stratum = group, component
        strata[group][component] = Stratum(size, read[stratum], len(tiles[stratum]))
    return strata


def _times(plan: Plan) -> Times:
    def column(values: list[float | None]) -> np.ndarray:
        return np.array([np.nan if value is None else value for value in values], float)

    return Times(
        steps=column([checkpoint.step for checkpoint in plan.checkpoints]),
        elapsed=column([checkpoint.elapsed for checkpoint in plan.checkpoints]),
    )
