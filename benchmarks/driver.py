"""What a driver costs that has very many tiles and workers, none of which does anything.

    PYTHONPATH=. python benchmarks/driver.py [--tiles 100000] [--workers 1000] [--alone 1000000]

First the real pool on a real Ray: its workers are simulated by methods of a few async actors, which
take a tile's call and answer a moment later. Then the schedule alone, in one process, with receipts.
Memory is RssAnon + RssShmem of this process; the tiles of a plan are made before it is looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import ray

from benchmarks.memory import resident
from pipeline.execute.drive.schedule import Schedule
from pipeline.execute.ray.actor import Probe
from pipeline.execute.ray.pool import RayPool
from pipeline.execute.ray.session import Layout
from pipeline.execute.work.receipt import Receipt
from pipeline.execute.work.urls import UrlBroker
from pipeline.planning.tiles import TensorRange, Tile

ACTORS = 2
SECONDS_A_TILE = 0.5  # that a simulated worker has it
IN_HAND = 2


class Simulated:
    """Many workers at once."""

    async def probe(self) -> tuple[str, None]:
        return "node", None

    async def run(self, tile: int, _: int) -> Receipt:
        await asyncio.sleep(SECONDS_A_TILE)
        return Receipt(tile, 1 << 26, 0.0, 0.0, "none")

    async def messages(self) -> tuple[float, list]:
        await asyncio.sleep(5)
        return time.monotonic(), []


class Worker:
    """One simulated worker, as the pool sees an actor."""

    def __init__(self, actor: Any) -> None:
        self.probe = SimpleNamespace(remote=lambda _: actor.probe.remote())
        self.run = SimpleNamespace(remote=actor.run.remote)
        self.messages = SimpleNamespace(remote=actor.messages.remote)


def on_ray(num_tiles: int, num_workers: int) -> dict[str, str]:
    """Work through tiles with simulated workers; return the figures."""
    ray.init(address="local", include_dashboard=False, log_to_driver=False, num_cpus=ACTORS)
    remote: Any = ray.remote(Simulated).options(max_concurrency=100_000, num_cpus=1)
    actors = [remote.remote() for _ in range(ACTORS)]
    nothing: Any = None
    shape = Layout(num_workers, 1, "cpu", "actor", 0, 0)
    made = RayPool(nothing, nothing, lambda _: shape, IN_HAND, nothing, Probe(nothing, {}))
    made._start = lambda share: Worker(actors[share % ACTORS])
    held: dict[int, int] = {}
    started = time.perf_counter()
    done = 0
    with patch("ray.kill", lambda _: None):  # simulated workers are no actors
        for _ in made.run(list(range(num_tiles)), UrlBroker(nothing, nothing)):
            done += 1
            if done % (num_tiles // 10) == 0:
                held[10 * done // num_tiles] = resident(os.getpid())
    seconds = time.perf_counter() - started
    ray.shutdown()
    assert done == num_tiles
    return {
        f"{num_tiles:,} tiles, {num_workers:,} simulated workers": "",
        "seconds": f"{seconds:.1f}",
        "ms a tile": f"{1e3 * seconds / num_tiles:.3f}",
        "memory after a tenth": f"{held[1] / 2**20:.0f} MiB",
        "memory after nine tenths, over that": f"{held[9] / held[1]:.3f}",
    }


def alone(num_tiles: int, num_workers: int) -> dict[str, str]:
    """Hand tiles over and take receipts, in this process; return the figures."""
    tiles = tuple(
        Tile(
            n,
            (TensorRange(n // 100, n << 18, (n + 1) << 18),),
            1 << 26,
            f"{n:06d}-0123456789abcdef",
        )
        for n in range(num_tiles)
    )
    schedule = Schedule(range(num_tiles), IN_HAND)
    for worker in range(num_workers):
        schedule.join(worker)
    receipts, in_hand = [], []
    started = time.perf_counter()
    while not schedule.over:
        now = time.perf_counter()
        while (handed := schedule.next(now)) is not None:
            in_hand.append(handed)
        for worker, tile in in_hand:
            schedule.begun(worker, tile)
            if schedule.done(worker, tile, now):
                receipts.append(Receipt(tile, tiles[tile].bytes, 0.1, 0.1, "cpu"))
        in_hand.clear()
    seconds = time.perf_counter() - started
    assert len(receipts) == num_tiles
    resumed = time.perf_counter()
    names = {tile.name for tile in tiles}  # as a listing gives them
    pending = [tile.index for tile in tiles if tile.name not in names]
    resumed = time.perf_counter() - resumed
    assert not pending
    return {
        f"{num_tiles:,} tiles in one process": "",
        "µs a tile ": f"{1e6 * seconds / num_tiles:.1f}",
        "memory with plan and receipts": f"{resident('self') / 2**20:.0f} MiB",
        "µs a tile to see from a list of names that it is done": f"{1e6 * resumed / num_tiles:.1f}",
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiles", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--alone", type=int, default=1_000_000)
    options = parser.parse_args()
    print("| | |\n|---|---|")
    for found in (on_ray(options.tiles, options.workers), alone(options.alone, options.workers)):
        for name, value in found.items():
            print(f"| {name} | {value} |", flush=True)


if __name__ == "__main__":
    main()
