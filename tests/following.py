"""What following keeps of checkpoints: sketches read by the package, and the definition, slowly.

K = checkpoints of a suite that is read as one; each of them alone is a slice of that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.execute.drive.local import run_local
from pipeline.execute.work.urls import UrlBroker
from pipeline.execute.work.worker import Worker
from pipeline.planning.memory import project
from pipeline.planning.plan import Plan
from pipeline.reduce.parts import sums_of_parts
from pipeline.sources.base import Source
from pipeline.statistics.parts import PartKey, Sums

_MASK = (1 << 64) - 1


class Results:
    """A sink in memory."""

    def __init__(self) -> None:
        self.by_name: dict[str, Sums] = {}

    def put(self, tile_name: str, result: Sums) -> None:
        self.by_name[tile_name] = result

    def probe(self, node: str) -> None:
        """Nothing can be elsewhere."""


def read(plan: Plan, source: Source, threads: int = 1, budget: int = 1 << 32) -> Sums:
    """Return the sums of all parts, read in this process."""
    results = Results()
    memory = project(plan.tensors, plan.tiles, budget, threads, plan.statistics)
    worker = Worker(plan, results, UrlBroker(plan, source), "cpu", threads, memory)
    list(run_local(worker, threads, [tile.index for tile in plan.tiles]))
    tiles = [(tile.index, results.by_name[tile.name]) for tile in plan.tiles]
    stacks = list(sums_of_parts(plan, tiles))
    names = stacks[0].arrays
    arrays = {name: np.concatenate([stack.arrays[name] for stack in stacks]) for name in names}
    return Sums(tuple(key for stack in stacks for key in stack.keys), arrays, stacks[0].device)


class OneByOne:
    """What would have been kept, had each checkpoint been read alone."""

    def __init__(self, plan: Plan, sums: Sums) -> None:
        self._count = len(plan.checkpoints)
        self._rows = {key[:2]: row for row, key in enumerate(sums.keys)}
        self._with_checkpoints = {
            spec.name: len(spec.shape) > 0 for spec in plan.specs if not spec.symmetric
        }
        self._arrays = sums.arrays

    def __call__(self, parts: Sequence[tuple[int, int]]) -> list[Sums]:
        """Return the sums of parts at each checkpoint (`estimates.Kept`)."""
        rows = [self._rows[part] for part in parts]
        keys = tuple(PartKey(*part) for part in parts)
        return [
            Sums(
                keys,
                {
                    name: self._arrays[name][rows][:, k : k + 1]
                    if has_checkpoints
                    else self._arrays[name][rows]
                    for name, has_checkpoints in self._with_checkpoints.items()
                },
                "",
            )
            for k in range(self._count)
        ]


def sketched_slowly(
    values: NDArray[np.float64], name: str, seed: int, buckets: int
) -> NDArray[np.float64]:
    """Return the (K, m) sketch of (K, numel) values by docs/method-2.md, §7, added up from the last one on."""
    key = int.from_bytes(hashlib.sha256(f"{name}\n{seed}".encode()).digest()[:8], "big")
    signs, shifts = splitmix64(key), splitmix64(key ^ 0xD1B54A32D192ED03)
    sketch = np.zeros((len(values), buckets))
    for i in reversed(range(values.shape[1])):
        sign = -1.0 if splitmix64(signs + i) >> 63 else 1.0
        shift = splitmix64(shifts + i // buckets) % buckets
        sketch[:, (i + shift) % buckets] += sign * values[:, i]
    return sketch


def splitmix64(state: int) -> int:
    """Return one output of Vigna's splitmix64.c, by Python's integers."""
    z = (state + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
