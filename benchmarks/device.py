"""A run on a GPU, from the page cache, against what bounds it: the bus, and the products alone.

    PYTHONPATH=. python benchmarks/device.py [--checkpoints 154] [--elements 8388608] [--threads 4] [--workers 2 4]

Prints one JSON object. To reach: `share_of_the_bus` ≥ 0.8, of the measured rate from pinned memory to the GPU,
for half-precision weights; and the accuracy of docs/method.md, §4. Exits with 1 if digests or accuracy are not
what they must be; a rate that is not reached is only printed. Without a GPU the processor stands in for it, to
try this out. Nothing is read over a network; no Ray, no store, no packages but what `pipeline/execute/work` needs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from pipeline.checkpoint.parts import Part
from pipeline.execute.work import device
from pipeline.execute.work.urls import UrlBroker
from pipeline.execute.work.worker import Receipt, Worker
from pipeline.planning.make import make_plan
from pipeline.planning.memory import project
from pipeline.planning.plan import Plan
from pipeline.planning.request import Request
from pipeline.sources.base import Source
from pipeline.statistics.digest import Digest
from pipeline.statistics.gpu import launched
from pipeline.statistics.gram import Gram
from pipeline.statistics.parts import PartKey, Sums
from pipeline.statistics.piece import PiecePlace, Scratch, TensorFacts, one_thread_products
from pipeline.statistics.pieces import PIECE, batch_elements, bounds
from pipeline.statistics.statistic import unpacked

NAME = "layers.0.mlp.up_proj.weight"
TO_REACH = 0.8
ACCURACY = 2e-7
"""Of cosines, and of relative ones times the fold (docs/method.md, §4)."""
_EXACT_CHECKPOINTS = 48
_MOST_EXACT = 1 << 20
"""Elements whose sums are made in float64 to compare with."""
_BUS_BYTES = 1 << 30
PASSES = 5


class Kept:
    """A sink in memory."""

    def __init__(self) -> None:
        self.results: dict[str, Sums] = {}

    def put(self, tile_name: str, result: Sums) -> None:
        self.results[tile_name] = result

    def gram(self) -> NDArray[np.float64]:
        """Return the sum of all tiles: (K, K), of the increment basis."""
        name = Gram().arrays(1)[0].name
        return sum(unpacked(result.arrays[name]).sum(0) for result in self.results.values())

    def digests(self) -> dict[str, bytes]:
        """Return the digests of every tile."""
        name = Digest().arrays(1)[0].name
        return {tile: result.arrays[name].tobytes() for tile, result in self.results.items()}


@dataclass(frozen=True)
class Run:
    """What a run gave, and how fast."""

    kept: Kept
    threads: int
    gigabytes_per_s: float
    pull_seconds: float
    compute_seconds: float
    """Of a tile."""


@dataclass(frozen=True)
class Shared:
    """How fast several workers are together that share a GPU, each a process."""

    workers: int
    threads: int
    """Of each."""
    gigabytes_per_s: float


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=int, default=154)
    parser.add_argument("--elements", type=int, default=8 << 20)
    parser.add_argument("--threads", type=int, nargs="+", default=[4, device.THREADS_OF_A_GPU, 16])
    parser.add_argument("--workers", type=int, nargs="*", default=[2, 4, 8])
    options = parser.parse_args()
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    gpu = torch.cuda.get_device_name() if kind == "cuda" else "none: the processor stands in"
    found: dict[str, object] = vars(options) | {"gpu": gpu, "torch": torch.__version__}
    found["bus_GB_per_s"] = bus_rate = bus(kind)
    found["products_GB_per_s"] = products(kind, options.checkpoints)
    most = max(options.threads)
    with planned(*suite(options.checkpoints, options.elements, "float16")) as (plan, source, files):
        found["gigabytes"] = round(plan.bytes_total / 1e9, 2)
        found["reading_GB_per_s"] = reading(plan, most)
        found["digests_GB_per_s"] = digests(most)
        on_cpu = run(plan, source, "cpu", most)
        found["processor_GB_per_s"] = on_cpu.gigabytes_per_s
        runs = [run(plan, source, kind, threads) for threads in options.threads]
        found["runs"] = [
            {name: value for name, value in vars(each).items() if name != "kept"} for each in runs
        ]
        folder = str(files[0].parent.parent)
        shared = [
            run_together(folder, kind, max(1, most // workers), workers)
            for workers in options.workers
        ]
        found["several_workers"] = [vars(each) for each in shared]
        found["digests_equal"] = all(each.kept.digests() == on_cpu.kept.digests() for each in runs)
        fastest = max(each.gigabytes_per_s for each in (*runs, *shared))
        found["share_of_the_bus"] = round(fastest / bus_rate, 3)
        found["reached"] = found["share_of_the_bus"] >= TO_REACH
    elements = min(_MOST_EXACT, options.elements)
    worst = {dtype: accuracy(kind, dtype, elements) for dtype in ("float16", "bfloat16", "float32")}
    found["worst_over_what_is_allowed"] = worst
    print(json.dumps(found, indent=2))
    if not found["digests_equal"] or max(worst.values()) > 1:
        sys.exit("digests or accuracy are not what they must be")


def rate(kind: str, num_bytes: int, work: Callable[[], object]) -> float:
    """Return gigabytes a second, of the best of three."""
    seconds = []
    for _ in range(4):  # the first is not counted
        _settle(kind)
        started = time.perf_counter()
        work()
        _settle(kind)
        seconds.append(time.perf_counter() - started)
    return round(num_bytes / min(seconds[1:]) / 1e9, 2)


def _settle(kind: str) -> None:
    if kind == "cuda":
        torch.cuda.synchronize()


def bus(kind: str) -> float:
    """Copy one large run of pinned memory to the GPU."""
    size = _BUS_BYTES if kind == "cuda" else _BUS_BYTES >> 4
    here = torch.from_dlpack(device.pinned(size)) if kind == "cuda" else torch.ones(size // 4)
    there = torch.empty_like(here, device=kind)
    return rate(kind, size, lambda: there.copy_(here, non_blocking=True))


def products(kind: str, checkpoints: int) -> float:
    """Multiply a batch that is decoded on the GPU, as gigabytes of float16 weights."""
    elements = batch_elements(checkpoints, on_gpu=True)
    values = torch.randn((checkpoints, elements), device=kind)
    scratch = Scratch(checkpoints, values.device, on_gpu=True)
    facts = TensorFacts(Part("", "other", 1, 0, 1), elements, ("F16",) * checkpoints)
    places = [
        PiecePlace(PartKey(0, 0), facts, start, stop, slice(0, PIECE), start)
        for start, stop in bounds(0, elements, PIECE)
    ]
    times = 50 if kind == "cuda" else 1

    def work() -> None:
        for _ in range(times):
            launched(values, places, scratch)

    with one_thread_products():
        return rate(kind, times * 2 * values.numel(), work)


def reading(plan: Plan, threads: int) -> float:
    """Read all files from the page cache, 1 MiB at a time, on so many threads."""
    files = [Path(file.where) for file in plan.files]

    def read(share: int) -> None:
        buffer = memoryview(bytearray(1 << 20))
        for path in files[share::threads]:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    with ThreadPoolExecutor(threads) as pool:
        total = sum(path.stat().st_size for path in files)
        return rate("cpu", total, lambda: list(pool.map(read, range(threads))))


def digests(threads: int) -> float:
    """Hash memory that is in no cache, 1 MiB at a time, on so many threads."""
    data = np.ones((threads, 64 << 20), np.uint8)

    def hashed(row: NDArray[np.uint8]) -> None:
        for start in range(0, len(row), 1 << 20):
            xxhash.xxh3_128(row[start : start + (1 << 20)].data).digest()

    with ThreadPoolExecutor(threads) as pool:
        return rate("cpu", data.size, lambda: list(pool.map(hashed, data)))


def run(plan: Plan, source: Source, kind: str, threads: int) -> Run:
    """Work through all tiles, in one process."""
    kept = Kept()
    ends, receipts = passes(plan, source, kind, threads, kept)
    first, last = len(plan.tiles), len(ends) - threads
    timed = receipts[first:last]
    return Run(
        kept,
        threads,
        round(sum(each.bytes for each in timed) / (ends[last - 1] - ends[first - 1]) / 1e9, 2),
        round(sum(each.pull_seconds for each in timed) / len(timed), 4),
        round(sum(each.gram_seconds for each in timed) / len(timed), 4),
    )


def passes(
    plan: Plan, source: Source, kind: str, threads: int, kept: Kept, sharers: int = 1
) -> tuple[list[float], list[Receipt]]:
    """Work through all tiles PASSES times; return when each was done, and what its worker said.

    What is timed goes from the end of as many tiles as there are, since the first ones pin memory, to where
    as many are under way as then.
    """
    memory = project(plan.tensors, plan.tiles, (8 << 30) // sharers, threads)
    worker = Worker(plan, kept, UrlBroker(plan, source), kind, threads, memory, sharers=sharers)
    tiles = [tile.index for tile in plan.tiles]
    ends: list[float] = []
    receipts: list[Receipt] = []
    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(worker.run, tile, n) for n, tile in enumerate(tiles * PASSES)]
        for future in as_completed(running):
            ends.append(time.perf_counter())
            receipts.append(future.result())
    worker.close()
    return ends, receipts


def run_together(folder: str, kind: str, threads: int, processes: int) -> Shared:
    """Have several workers share the GPU, a process each, which work through all tiles of the same files.

    Timed while all of them are at work.
    """
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(processes), context.SimpleQueue()
    arguments = folder, kind, threads, processes, ready, answers
    workers = [context.Process(target=_one_of_several, args=arguments) for _ in range(processes)]
    for worker in workers:
        worker.start()
    done = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    began = max(ends[tiles - 1] for ends, _, tiles in done)
    ended = min(ends[-threads - 1] for ends, _, _ in done)
    total = sum(
        size
        for ends, sizes, _ in done
        for end, size in zip(ends, sizes, strict=True)
        if began < end <= ended
    )
    return Shared(processes, threads, round(total / (ended - began) / 1e9, 2))


def _one_of_several(
    folder: str, kind: str, threads: int, processes: int, ready: Any, answers: Any
) -> None:
    plan, source = make_plan(Request(folder))
    ready.wait()
    ends, receipts = passes(plan, source, kind, threads, Kept(), processes)
    answers.put((ends, [receipt.bytes for receipt in receipts], len(plan.tiles)))


def suite(count: int, elements: int, dtype: str) -> tuple[int, torch.Tensor, torch.Tensor, str]:
    """Return what `planned` writes: a drift plus noise, in steps that shrink."""
    weights, drift = 0.02 * torch.randn((2, elements), generator=torch.Generator().manual_seed(0))
    return count, weights, drift, dtype


@contextmanager
def planned(
    count: int, weights: torch.Tensor, drift: torch.Tensor, dtype: str
) -> Iterator[tuple[Plan, Source, Sequence[Path]]]:
    """Write checkpoints of one tensor, which are then in the page cache; yield their plan."""
    generator = torch.Generator().manual_seed(1)
    files = []
    with tempfile.TemporaryDirectory(prefix="hallmarks-device-") as folder:
        for k in range(count):
            files.append(Path(folder) / f"step{k}" / "model.safetensors")
            files[-1].parent.mkdir()
            stored = weights.to(getattr(torch, dtype)).view(-1, 1024)
            save_file({NAME: stored}, files[-1])
            noise = 0.02 * torch.randn(len(weights), generator=generator)
            weights = weights + 0.1 / (1 + k) * (drift + noise)
        yield *make_plan(Request(folder)), files


def accuracy(kind: str, dtype: str, elements: int) -> float:
    """Return the worst error of cosines and relative cosines, over what is allowed."""
    with planned(*suite(_EXACT_CHECKPOINTS, elements, dtype)) as (plan, source, files):
        found = run(plan, source, kind, 2).kept.gram()
        rows = np.stack([load_file(file)[NAME].double().numpy().reshape(-1) for file in files])
    steps = np.concatenate((rows[:1], np.diff(rows, axis=0)))
    truth = steps @ steps.T
    worst = 0.0
    for basis in (0, 1):  # of the checkpoints, and of their displacements
        one, other = _cosines(found[basis:, basis:]), _cosines(truth[basis:, basis:])
        allowed = ACCURACY * (_folds(truth) if basis else np.ones_like(other))
        worst = max(worst, float(np.max(np.abs(one - other) / allowed)))
    return round(worst, 3)


def _cosines(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    dots = gram.cumsum(0).cumsum(1)
    norms = np.sqrt(np.diagonal(dots))
    return dots / np.outer(norms, norms)


def _folds(truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how much the path to each of two displacements folds back, whichever is more."""
    moved = truth[1:, 1:]
    lengths = np.diagonal(moved.cumsum(0).cumsum(1))
    folds = np.maximum(1, np.diagonal(moved).cumsum() / lengths)
    return np.maximum.outer(folds, folds)


if __name__ == "__main__":
    main()
