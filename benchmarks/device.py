"""Tiles on a CUDA device against the same tiles on the CPU: agreement and time.

    python benchmarks/device.py [--checkpoints 154] [--elements 8388608]

Needs a CUDA device, torch, safetensors and what the worker imports; no Ray, no store.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from pipeline.execute.addresses import InProcess
from pipeline.execute.local import run_local
from pipeline.execute.schedule import Lost
from pipeline.execute.worker import Worker
from pipeline.numerics.partial import TileResult
from pipeline.planning.memory import project
from pipeline.planning.plan import make_plan
from pipeline.planning.request import Request


class Kept:
    """A sink in memory."""

    def __init__(self) -> None:
        self.results: dict[str, TileResult] = {}

    def put(self, tile_name: str, result: TileResult) -> None:
        self.results[tile_name] = result


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=int, default=154)
    parser.add_argument("--elements", type=int, default=8 << 20)
    parser.add_argument("--threads", type=int, default=8)
    options = parser.parse_args()
    found: dict[str, object] = vars(options) | {"torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), options.checkpoints, options.elements)
        plan, source = make_plan(Request(folder))
        tiles = [tile.index for tile in plan.tiles]
        kept = {}
        for device in ("cpu", "cuda", "cuda"):  # the first time on the card loads its libraries
            torch.backends.cuda.matmul.allow_tf32 = True  # what a careless process may have set
            memory = project(plan.tensors, plan.tiles, 8 << 30, options.threads + 1)
            sink = kept[device] = Kept()
            worker = Worker(plan, sink, InProcess(plan, source), device, options.threads, memory)
            started = time.perf_counter()
            outcomes = list(run_local(worker, options.threads + 1, tiles))
            found[f"{device}_seconds"] = round(time.perf_counter() - started, 3)
            assert not any(isinstance(outcome, Lost) for outcome in outcomes), outcomes
        found["gigabytes"] = round(plan.bytes_total / 1e9, 2)
        found |= _compared(kept["cpu"], kept["cuda"])
    print(json.dumps(found))


def _write(folder: Path, count: int, elements: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights, drift = 0.02 * torch.randn((2, elements), generator=generator)
    for k in range(count):
        (folder / f"step{k}").mkdir()
        values = {"layers.0.w.weight": weights.half().view(-1, 1024)}
        save_file(values, folder / f"step{k}" / "model.safetensors")
        weights += 0.1 / (1 + k) * (drift + 0.02 * torch.randn(elements, generator=generator))


def _compared(first: Kept, second: Kept) -> dict[str, object]:
    """Return the largest difference of two increments' cosines, and whether digests agree."""
    worst, equal = 0.0, True
    for name, one in first.results.items():
        for key, partial in one.parts.items():
            other = second.results[name].parts[key]
            scale = np.sqrt(np.outer(*(2 * [np.diagonal(partial.increments)])))
            worst = max(worst, float(np.max(np.abs(partial.increments - other.increments) / scale)))
            equal &= bool((partial.digests == other.digests).all())
    return {"largest_cosine_difference": worst, "digests_equal": equal}


if __name__ == "__main__":
    main()
