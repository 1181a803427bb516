"""From tiles to parts: each tile's result is read once, and a part is complete with its last tile.

The order of every sum is that of the tiles in the plan. What is held at once are the parts of tensors
that go on in the next tile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from pipeline.planning.plan import Plan
from pipeline.statistics.parts import PartKey, Sums
from pipeline.statistics.statistic import ArraySpec, specs


def sums_of_parts(plan: Plan, results: Iterable[tuple[int, Sums | None]]) -> Iterator[Sums]:
    """Yield the sums of parts as their last tile comes, a stack a tile.

    Parts of a tensor of which a tile is lost never come.

    Args:
        results: numbers of all tiles, in order, each with its result; None if it has none.
    """
    last = last_tiles(plan)
    rules = {spec.name: spec for spec in specs(plan.statistics, len(plan.checkpoints))}
    open_parts: dict[PartKey, dict[str, Any]] = {}
    lost: set[int] = set()
    for number, result in results:
        if result is None:
            lost |= {range_.tensor for range_ in plan.tiles[number].ranges}
        else:
            _merge(open_parts, result, last, number, rules)
        complete = [key for key in open_parts if last[key.tensor] == number or key.tensor in lost]
        rows = {key: open_parts.pop(key) for key in complete}
        whole = (
            []
            if result is None
            else [
                row
                for row, key in enumerate(result.keys)
                if last[key.tensor] == number and key not in rows and key.tensor not in lost
            ]
        )
        kept = [key for key in rows if key.tensor not in lost]
        if result is not None and (whole or kept or result.rows):
            yield _stack(result, whole, [(key, rows[key]) for key in kept], rules)


def last_tiles(plan: Plan) -> dict[int, int]:
    """Return the number of the last tile that holds some of each tensor, by its number."""
    return {range_.tensor: tile.index for tile in plan.tiles for range_ in tile.ranges}


def _merge(
    open_parts: dict[PartKey, dict[str, Any]],
    result: Sums,
    last: dict[int, int],
    number: int,
    rules: dict[str, ArraySpec],
) -> None:
    """Add a tile's rows to the parts that began before it or go on after it."""
    for row, key in enumerate(result.keys):
        arrays = open_parts.get(key)
        if arrays is None:
            if last[key.tensor] != number:
                open_parts[key] = {n: a[row].copy() for n, a in result.arrays.items()}
            continue
        for name, array in result.arrays.items():
            # 0-d arrays of one number are replaced, all others merged in place
            arrays[name] = np.asarray(arrays[name])
            rules[name].merge(arrays[name], array[row])


def _stack(
    result: Sums,
    whole: list[int],
    merged: list[tuple[PartKey, dict[str, Any]]],
    rules: dict[str, ArraySpec],
) -> Sums:
    """Return the rows of merged parts, and those that a tile holds whole."""
    if len(whole) == len(result.keys) and not merged:
        return result
    keys = (*(key for key, _ in merged), *(result.keys[row] for row in whole))
    arrays = {}
    for name in rules:
        rows = [np.asarray(arrays_of_part[name])[None] for _, arrays_of_part in merged]
        arrays[name] = np.concatenate([*rows, result.arrays[name][whole]])
    return Sums(keys, arrays, result.device, result.rows)
