"""A run on a card, from the page cache, against what bounds it: the bus, and the products alone.

    python benchmarks/device.py [--checkpoints 154] [--elements 8388608] [--threads 4]

Prints one JSON object. Nothing is read over a network; no Ray, no store.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from pipeline.execute.drive.local import run_local
from pipeline.execute.drive.schedule import Lost
from pipeline.execute.work import device
from pipeline.execute.work.urls import UrlBroker
from pipeline.execute.work.worker import Worker
from pipeline.planning.memory import project
from pipeline.planning.plan import Plan, make_plan
from pipeline.planning.request import Request
from pipeline.sources.base import Source
from pipeline.statistics.gram import one_thread_products
from pipeline.statistics.partial import TileResult
from pipeline.statistics.pieces import PIECE


class Kept:
    """A sink in memory."""

    def __init__(self) -> None:
        self.results: dict[str, TileResult] = {}

    def put(self, tile_name: str, result: TileResult) -> None:
        self.results[tile_name] = result


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=int, default=154)
    parser.add_argument("--elements", type=int, default=8 << 20)
    parser.add_argument("--threads", type=int, default=device.THREADS_OF_A_CARD)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device")
    found: dict[str, object] = vars(options) | {"card": torch.cuda.get_device_name()}
    found["bus_GB_per_s"] = bus()
    found["products_GB_per_s"] = products(options.checkpoints)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.checkpoints, options.elements)
        plan, source = make_plan(Request(folder))
        found["gigabytes"] = round(plan.bytes_total / 1e9, 2)
        on_cpu, _ = run(plan, source, "cpu", options.threads)
        run(plan, source, "cuda", options.threads)  # the first time loads libraries
        on_card, found["run_GB_per_s"] = run(plan, source, "cuda", options.threads)
        device.WINDOWS = 1  # each slice in one copy, which nothing of the same thread overlaps
        _, found["without_overlap_GB_per_s"] = run(plan, source, "cuda", options.threads)
        found |= compared(on_cpu, on_card)
    print(json.dumps(found))


def rate(num_bytes: int, work: Callable[[], object]) -> float:
    """Return gigabytes a second, of the best of three."""
    seconds = []
    for _ in range(4):  # the first is not counted
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return round(num_bytes / min(seconds[1:]) / 1e9, 2)


def bus() -> float:
    """Copy one large pinned run."""
    size = 1 << 30
    here = torch.from_dlpack(device.pinned(size))
    there = torch.empty(size, dtype=torch.uint8, device="cuda")
    return rate(size, lambda: there.copy_(here, non_blocking=True))


def products(checkpoints: int) -> float:
    """Multiply pieces that are on the card, as gigabytes of float16 weights."""
    rows = torch.randn((checkpoints, PIECE), device="cuda")

    def work() -> None:
        for _ in range(200):
            torch.mm(rows, rows.T)

    with one_thread_products():
        return rate(200 * 2 * rows.numel(), work)


def run(plan: Plan, source: Source, kind: str, threads: int) -> tuple[Kept, float]:
    """Return the results of all tiles, and gigabytes a second."""
    memory = project(plan.tensors, plan.tiles, 8 << 30, threads)
    kept = Kept()
    worker = Worker(plan, kept, UrlBroker(plan, source), kind, threads, memory)
    started = time.perf_counter()
    outcomes = list(run_local(worker, threads, [tile.index for tile in plan.tiles]))
    seconds = time.perf_counter() - started
    assert not any(isinstance(outcome, Lost) for outcome in outcomes), outcomes
    return kept, round(plan.bytes_total / seconds / 1e9, 2)


def write(folder: Path, count: int, elements: int) -> None:
    """Write a suite of one float16 tensor, which is then in the page cache."""
    generator = torch.Generator().manual_seed(0)
    weights, drift = 0.02 * torch.randn((2, elements), generator=generator)
    for k in range(count):
        (folder / f"step{k}").mkdir()
        values = {"layers.0.w.weight": weights.half().view(-1, 1024)}
        save_file(values, folder / f"step{k}" / "model.safetensors")
        weights += 0.1 / (1 + k) * (drift + 0.02 * torch.randn(elements, generator=generator))


def compared(first: Kept, second: Kept) -> dict[str, object]:
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
