"""From tiles to parts: each part once, complete, whatever the division and whichever tile is lost."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from pipeline.planning.make import make_plan
from pipeline.planning.plan import Plan
from pipeline.planning.request import Request
from pipeline.planning.tiles import results
from pipeline.reduce.parts import sums_of_parts
from pipeline.statistics.parts import PartKey, Sums
from tests.suites import trajectory, write_suite

COUNT = 3


@pytest.fixture(scope="module", params=[None, 0.4])
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Tensors of one tile and of many; of a sample, with folds that some of its tiles do not hold."""
    sizes = {"layers.0.mlp.up_proj.weight": 3_000_000, "layers.0.a": 900, "layers.1.b": 700_000}
    tensors = {name: trajectory("walk", COUNT, numel, 0.1) for name, numel in sizes.items()}
    directory = write_suite(tmp_path_factory.mktemp("parts") / "suite", tensors, "F16")
    found, _ = make_plan(Request(str(directory), fraction=request.param), least_tile_bytes=1 << 20)
    assert len(found.tiles) > 3
    return found


def of_tiles(plan: Plan) -> list[Sums]:
    rng = np.random.default_rng(0)
    made = []
    for tile in plan.tiles:
        keys = tuple(dict.fromkeys(key for r in tile.ranges for key in results(r, plan.tensors)))
        arrays: dict[str, Any] = {
            spec.name: rng.integers(0, 2, (len(keys), *spec.packed_shape)).astype(spec.dtype)
            if spec.rule == "and"
            else rng.integers(0, 1000, (len(keys), *spec.packed_shape)).astype(spec.dtype)
            for spec in plan.specs
        }
        made.append(Sums(keys, arrays, "cpu"))
    return made


def merged_slowly(plan: Plan, tiles: list[Sums | None]) -> dict[PartKey, dict[str, Any]]:
    lost = {r.tensor for t, s in zip(plan.tiles, tiles, strict=True) if s is None for r in t.ranges}
    rows: dict[PartKey, list[dict[str, Any]]] = defaultdict(list)
    for sums in tiles:
        for row, key in enumerate(sums.keys if sums else ()):
            assert sums is not None
            rows[key].append({name: array[row] for name, array in sums.arrays.items()})
    how = {"add": np.sum, "and": np.all, "max": np.max}
    return {
        key: {
            spec.name: how[spec.rule]([r[spec.name] for r in found], axis=0) for spec in plan.specs
        }
        for key, found in rows.items()
        if key.tensor not in lost
    }


def assert_same(plan: Plan, tiles: list[Sums | None]) -> None:
    expected = merged_slowly(plan, tiles)
    seen: list[PartKey] = []
    stacks: dict[tuple[int, int], int] = {}
    for number, stack in enumerate(sums_of_parts(plan, enumerate(tiles))):
        for row, key in enumerate(stack.keys):
            seen.append(key)
            assert stacks.setdefault(key[:2], number) == number  # a part comes in one stack
            for name, array in stack.arrays.items():
                np.testing.assert_array_equal(array[row], expected[key][name], err_msg=name)
    assert sorted(seen) == sorted(expected)


def test_every_part_comes_once_and_whole(plan: Plan) -> None:
    assert_same(plan, list(of_tiles(plan)))


def test_parts_of_tensors_that_a_lost_tile_touches_never_come(plan: Plan) -> None:
    for lost in range(len(plan.tiles)):
        tiles: list[Sums | None] = list(of_tiles(plan))
        tiles[lost] = None
        assert_same(plan, tiles)
