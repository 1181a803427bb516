"""The reduction: partial Gram matrices of tiles, summed by scope in a fixed order.

Order of every sum: over the tiles of a part in tile order, over the parts of a group in the order
of `members`. SQL sums of doubles would not be reproducible, so none are left to the views.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import lru_cache

import numpy as np

from pipeline.numerics.basis import Basis
from pipeline.planning.plan import Plan
from pipeline.planning.sample import JACKKNIFE_GROUPS
from pipeline.planning.tiles import elements
from pipeline.reduce.batches import FigureBatch, figure_batches
from pipeline.reduce.estimate import Estimate, Stratum
from pipeline.reduce.figures import GroupSums, Times
from pipeline.reduce.groups import Key, Member, members
from pipeline.statistics.partial import PartialGram, TileResult
from pipeline.statistics.rounding import energies

_RESULTS_HELD = 16  # neighbouring parts mostly share a tile
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / golden ratio, odd: makes a sum of digests ordered

PartSums = tuple[Member, dict[int, PartialGram] | None]
"""A part, and its sums by jackknife group; None if a tile of it was lost."""
_Result = Callable[[str], TileResult | None]


def reduce(
    plan: Plan, sums: Iterable[tuple[list[Key], GroupSums | None]], threads: int
) -> Iterator[FigureBatch]:
    """Yield the figures of every group, many at a time, as their sums become complete.

    Args:
        sums: of `group_sums` or `estimated_sums`.
        threads: batches worked on side by side; decides nothing about the figures.
    """
    basis = Basis(plan.firsts, len(plan.checkpoints))
    return figure_batches(sums, _times(plan), basis, threads)


def sums_of_tiles(plan: Plan, result: _Result) -> Iterator[PartSums]:
    """Yield the sums of every part, in the order of `members`.

    Args:
        result: gives the result of the tile of that name, None if the tile was lost.
    """
    tiles = _tiles_of_tensors(plan)
    read = lru_cache(_RESULTS_HELD)(result)
    for member in members(plan):
        total: dict[int, PartialGram] | None = {}
        for number in tiles[member.tensor]:
            found = read(plan.tiles[number].name)
            if found is None:
                total = None
                break
            for group in _groups(found, member):
                _add(total, group, found.parts[member.tensor, member.part, group])
        yield member, total


def group_sums(
    plan: Plan, parts: Iterable[PartSums]
) -> Iterator[tuple[list[Key], GroupSums | None]]:
    """Yield the sums of every group; groups of the same single part come together, as one."""
    sizes = Counter(key for member in members(plan) for key in member.keys)
    left = Counter(sizes)
    sums: dict[Key, GroupSums | None] = {}
    for member, by_group in parts:
        part = None if by_group is None else _part_sums(plan, member, by_group)
        yield [key for key in member.keys if sizes[key] == 1], part
        for key in member.keys:
            if sizes[key] == 1:
                continue
            sums[key] = _sum(sums[key], part) if key in sums else part
            left[key] -= 1
            if not left[key]:
                yield [key], sums.pop(key)


def estimated_sums(
    plan: Plan, done: Mapping[int, int], result: _Result
) -> Iterator[tuple[list[Key], GroupSums | None]]:
    """Yield the sums of every group as the tiles read so far let them be estimated.

    Strata are the roles within a group; what has been read of one stands for it by its size. A
    group with a stratum that nothing has been read of has no sums.

    Args:
        done: the tiles that have been read, each with its jackknife group. They must have been
            taken at random.
        result: gives the result of the tile of that name.
    """
    groups = len(set(done.values()))
    strata = _strata(plan, done)
    tiles = _tiles_of_tensors(plan)
    read = lru_cache(_RESULTS_HELD)(result)
    everything = members(plan)
    left = Counter(key for member in everything for key in member.keys)
    count = len(plan.checkpoints)
    estimates: dict[Key, Estimate | None] = {
        key: Estimate(of_key, groups, count) if all(s.read for s in of_key.values()) else None
        for key, of_key in strata.items()
    }
    totals: dict[Key, PartialGram] = {}
    for member in everything:
        component = plan.tensors[member.tensor].parts[member.part].component
        wanted = [found for key in member.keys if (found := estimates[key]) is not None]
        part = PartialGram.empty(count)
        for number in tiles[member.tensor]:
            found = read(plan.tiles[number].name) if number in done else None
            if found is None:
                continue
            for group in _groups(found, member):
                piece = found.parts[member.tensor, member.part, group]
                part = part + piece
                for estimate in wanted:
                    estimate.add(component, done[number], piece.increments)
        if part.numel:
            for estimate in wanted:
                estimate.add_rounding(component, _energies(plan, member, part))
        for key in member.keys:
            totals[key] = _mixed(totals[key], part) if key in totals else part
            left[key] -= 1
            if not left[key]:
                yield [key], _estimated(estimates.pop(key), totals.pop(key))


def _estimated(estimate: Estimate | None, total: PartialGram) -> GroupSums | None:
    return None if estimate is None else _sums(estimate, total)


def _sums(estimate: Estimate, total: PartialGram) -> GroupSums:
    increments, changes = estimate.result()
    return GroupSums(
        increments,
        total.digests,
        total.non_finite > 0,
        estimate.rounding,
        changes,
        estimate.errors_known,
        estimate.groups,
    )


def _strata(plan: Plan, done: Mapping[int, int]) -> dict[Key, dict[Hashable, Stratum]]:
    """Return what was read of every role in every group, in elements."""
    sizes: dict[tuple[Key, str], int] = Counter()
    read: dict[tuple[Key, str], Counter[int]] = defaultdict(Counter)
    tiles: dict[tuple[Key, str], set[int]] = defaultdict(set)
    of_tensor: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for number in done:
        for fragment in plan.tiles[number].fragments:
            of_tensor[fragment.tensor].append((number, fragment.first, fragment.stop))
    for member in members(plan):
        tensor = plan.tensors[member.tensor]
        part = tensor.parts[member.part]
        for key in member.keys:
            sizes[key, part.component] += elements(part, 0, tensor.numel)
        for number, first, stop in of_tensor[member.tensor]:
            if found := elements(part, first, stop):
                for key in member.keys:
                    read[key, part.component][done[number]] += found
                    tiles[key, part.component].add(number)
    strata: dict[Key, dict[Hashable, Stratum]] = defaultdict(dict)
    for (key, component), size in sizes.items():
        own = key, component
        strata[key][component] = Stratum(size, read[own], len(tiles[own]))
    return strata


def _part_sums(plan: Plan, member: Member, by_group: dict[int, PartialGram]) -> GroupSums:
    draw = plan.drawn(member.tensor, member.part)
    total = PartialGram.empty(len(plan.checkpoints))
    for group in sorted(by_group):
        total = total + by_group[group]
    rounding = _energies(plan, member, total)
    if draw.whole:
        return GroupSums(total.increments, total.digests, total.non_finite > 0, rounding)
    stratum = Stratum(draw.cells, draw.counts, len(draw.groups))
    estimate = Estimate({0: stratum}, JACKKNIFE_GROUPS, len(plan.checkpoints))
    for group in sorted(by_group):
        estimate.add(0, group, by_group[group].increments)
    estimate.add_rounding(0, rounding)
    return _sums(estimate, total)


def _energies(plan: Plan, member: Member, read: PartialGram) -> np.ndarray:
    """Return the rounding energies, (K,), of what was read of a part."""
    dtypes = plan.tensors[member.tensor].dtypes
    scale = read.numel / max(1, read.sampled)
    return energies(read.exponent_sums, read.represented, dtypes, scale)


def _sum(first: GroupSums | None, second: GroupSums | None) -> GroupSums | None:
    """Return the sum; a group that a lost tile touches has none."""
    if first is None or second is None:
        return None
    changes = dict(first.changes)
    for group, change in second.changes.items():
        changes[group] = changes[group] + change if group in changes else change
    return GroupSums(
        first.increments + second.increments,
        first.digests * _MIX + second.digests,
        first.absent | second.absent,
        first.rounding + second.rounding,
        changes,
        first.errors_known and second.errors_known,
        max(first.groups, second.groups),
    )


def _mixed(first: PartialGram, second: PartialGram) -> PartialGram:
    """Return what tells equal checkpoints and absent ones of two parts together."""
    return PartialGram(
        first.increments,
        first.digests * _MIX + second.digests,
        first.non_finite + second.non_finite,
        first.exponent_sums,
        first.represented,
        first.numel + second.numel,
        first.sampled + second.sampled,
    )


def _add(total: dict[int, PartialGram], group: int, found: PartialGram) -> None:
    total[group] = total[group] + found if group in total else found


def _groups(found: TileResult, member: Member) -> list[int]:
    """Return the jackknife groups that a tile holds of a part, in order."""
    own = (member.tensor, member.part)
    return sorted(group for *place, group in found.parts if tuple(place) == own)


def _tiles_of_tensors(plan: Plan) -> dict[int, list[int]]:
    """Return the tiles that hold some of each tensor, in order, by its number."""
    found: dict[int, dict[int, None]] = defaultdict(dict)
    for tile in plan.tiles:
        for fragment in tile.fragments:
            found[fragment.tensor][tile.index] = None
    return {tensor: list(tiles) for tensor, tiles in found.items()}


def _times(plan: Plan) -> Times:
    def column(values: list[float | None]) -> np.ndarray:
        return np.array([np.nan if value is None else value for value in values], float)

    return Times(
        steps=column([checkpoint.step for checkpoint in plan.checkpoints]),
        elapsed=column([checkpoint.elapsed for checkpoint in plan.checkpoints]),
    )
