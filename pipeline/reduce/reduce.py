"""The reduction: partial Gram matrices of tiles, summed by scope in a fixed order.

Order of every sum: over the tiles of a part in tile order, over the parts of a group in the order
of `members`. SQL sums of doubles would not be reproducible, so none are left to the views.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from pipeline.numerics.partial import PartialGram, TileResult
from pipeline.numerics.rounding import energies
from pipeline.planning.plan import Plan
from pipeline.reduce.figures import Figures, GroupSums, Times, figures
from pipeline.reduce.groups import Key, Member, members

_RESULTS_HELD = 16  # neighbouring parts mostly share a tile
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / golden ratio, odd: makes a sum of digests ordered


def reduce(
    plan: Plan, result: Callable[[str], TileResult | None], threads: int
) -> Iterator[tuple[Key, Figures]]:
    """Yield the figures of every group, as their sums become complete.

    Args:
        result: gives the result of the tile of that name, None if the tile was lost.
        threads: groups worked on side by side; decides nothing about the figures.
    """
    times = _times(plan)
    with ThreadPoolExecutor(threads, thread_name_prefix="figures") as pool:
        pending = (
            (keys, pool.submit(figures, sums, times, plan.firsts))
            for keys, sums in group_sums(plan, result)
        )
        for batch in _batches(pending, 2 * threads):
            for keys, future in batch:
                for key in keys:
                    yield key, future.result()


def group_sums(
    plan: Plan, result: Callable[[str], TileResult | None]
) -> Iterator[tuple[list[Key], GroupSums | None]]:
    """Yield the sums of every group; groups of the same single part come together, as one."""
    everything = members(plan)
    sizes = Counter(key for member in everything for key in member.keys)
    left = Counter(sizes)
    tiles = _tiles_of_tensors(plan)
    read = lru_cache(_RESULTS_HELD)(result)
    sums: dict[Key, GroupSums | None] = {}
    for member in everything:
        part = _part_sums(plan, member, tiles[member.tensor], read)
        yield [key for key in member.keys if sizes[key] == 1], part
        for key in member.keys:
            if sizes[key] == 1:
                continue
            sums[key] = _sum(sums[key], part) if key in sums else part
            left[key] -= 1
            if not left[key]:
                yield [key], sums.pop(key)


def _part_sums(
    plan: Plan, member: Member, tiles: list[str], read: Callable[[str], TileResult | None]
) -> GroupSums | None:
    total = PartialGram.empty(len(plan.checkpoints))
    for name in tiles:
        found = read(name)
        if found is None:
            return None
        total = total + found.parts[member.tensor, member.part]
    dtypes = plan.tensors[member.tensor].dtypes
    return GroupSums(
        total.increments,
        total.digests,
        total.non_finite > 0,
        energies(
            total.exponent_sums, total.represented, dtypes, total.numel / max(1, total.sampled)
        ),
    )


def _sum(first: GroupSums | None, second: GroupSums | None) -> GroupSums | None:
    """Return the sum; a group that a lost tile touches has none."""
    if first is None or second is None:
        return None
    return GroupSums(
        first.increments + second.increments,
        first.digests * _MIX + second.digests,
        first.absent | second.absent,
        first.rounding + second.rounding,
    )


def _tiles_of_tensors(plan: Plan) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for tile in plan.tiles:
        for fragment in tile.fragments:
            found[fragment.tensor].append(tile.name)
    return found


def _times(plan: Plan) -> Times:
    def column(values: list[float | None]) -> np.ndarray:
        return np.array([np.nan if value is None else value for value in values], float)

    return Times(
        steps=column([checkpoint.step for checkpoint in plan.checkpoints]),
        elapsed=column([checkpoint.elapsed for checkpoint in plan.checkpoints]),
    )


def _batches(items: Iterator, size: int) -> Iterator[list]:
    batch: list = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    yield batch
