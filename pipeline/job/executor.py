"""Where tiles are worked through: in this process, or on Ray; and with how much memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from pipeline.errors import StoreUnusable
from pipeline.execute.drive.local import run_local
from pipeline.execute.drive.schedule import Lost
from pipeline.execute.work.receipt import Receipt
from pipeline.execute.work.urls import UrlBroker
from pipeline.execute.work.verify import published
from pipeline.job.memory import worker_memory
from pipeline.planning.machine import available_cores
from pipeline.planning.plan import Plan
from pipeline.planning.request import Resources
from pipeline.sources.base import Source
from pipeline.store.tiles import TileFolder
from pipeline.transport.access import Access

_MOST_TASKS_A_WORKER = 16
"""Tiles that a worker has pulled for it beside those that it computes. A tile of many checkpoints is
one block, so that fewer would leave CPUs of other nodes idle (benchmarks/results/pull.md)."""
_FILES_PROBED = 64  # of a local source, on each node, before it gets a tile


Outcomes = Iterator[Receipt | Lost]


@dataclass(frozen=True, slots=True)
class Executor:
    """Who works through tiles."""

    name: str
    workers: int
    for_estimates: int
    """Bytes that an estimate may take meanwhile in this process."""
    work: Callable[[list[int], TileFolder], Outcomes]
    """Works through tiles, by their numbers in the plan, into a folder of results."""


@contextlib.contextmanager
def executor(plan: Plan, source: Source, resources: Resources) -> Iterator[Executor]:
    """Yield who works through tiles.

    The plan is checked against the memory before anything is written.
    """

    urls = UrlBroker(plan, source, resources.cache)
    verified = published(plan) if resources.verify else []
    if resources.executor == "local":
        # these need torch: not for those whose tiles are worked through elsewhere
        from pipeline.execute.work.device import THREADS_OF_A_GPU, choose_device
        from pipeline.execute.work.worker import Worker

        device = choose_device(resources.device)
        most = THREADS_OF_A_GPU if device == "cuda" else available_cores()
        threads = resources.threads or min(most, available_cores())
        calls = threads + source.is_remote
        memory = worker_memory(plan, resources, calls)

        def work_here(tiles: list[int], sink: TileFolder) -> Outcomes:
            worker = Worker(plan, sink, urls, device, threads, memory, verified)
            return run_local(worker, calls, tiles)

        yield Executor("local", 1, memory.for_estimates, work_here)
        return

    # Ray takes a second to import: not for those who do without it.
    from pipeline.execute.drive.admission import largest_block
    from pipeline.execute.ray.actor import Probe
    from pipeline.execute.ray.pool import RayPool
    from pipeline.execute.ray.session import layout, ray_session

    pull = "actor" if resources.verify else resources.pull
    with ray_session(resources.address, pull):
        room = partial(layout, resources.device, resources.max_workers, pull, source.is_remote)
        shape = room()
        tasks = shape.pull == "tasks"
        ahead = min(shape.pulling, _MOST_TASKS_A_WORKER) if tasks else source.is_remote
        calls = shape.threads + ahead
        largest = largest_block(shape.store_bytes) if tasks else None
        memory = worker_memory(plan, resources, calls, shape.together, largest)

        def work_on_ray(tiles: list[int], sink: TileFolder) -> Outcomes:
            sink.leave_marker()
            pool = RayPool(
                plan, sink, room, calls, memory, Probe(sink, local_files(plan, source)), verified
            )
            try:
                yield from pool.run(tiles, urls)
            finally:
                with contextlib.suppress(StoreUnusable):  # what ended the work is to be told
                    sink.remove_markers()

        yield Executor("ray", shape.workers, memory.for_estimates, work_on_ray)


def local_files(plan: Plan, source: Source) -> dict[int, Access]:
    """Return access to some files, by number, if they lie in a directory that every node must see."""
    if source.is_remote:
        return {}
    every = -(-len(plan.files) // _FILES_PROBED)
    return {file: source.access(plan.files[file]) for file in range(0, len(plan.files), every)}
