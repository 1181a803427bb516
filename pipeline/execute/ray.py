"""Tiles on Ray actors: this machine by default, a cluster if one is named.

The unit of work is many megabytes in, kilobytes out, so nothing goes through Ray's object store:
an actor reads for itself, puts the result itself, and returns a receipt. Restarts and retries are
the driver's (`max_restarts=0`): it knows which tile an actor held.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from pipeline.errors import HallmarksError, RequestError, TileLost
from pipeline.execute.queue import Lost, TileQueue
from pipeline.execute.worker import Receipt, Sink, Worker
from pipeline.planning.memory import Memory
from pipeline.planning.plan import Plan
from pipeline.sources.base import Access

MAX_DEATHS_IN_A_ROW = 5  # workers that died with no tile finished in between: something is wrong
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the work is laid out on the cluster."""

    workers: int
    threads: int
    """Tiles computed side by side in one worker; as many CPUs are reserved for it."""
    device: str


class _Actor:
    """The worker as Ray sees it. No argument of the constructor is a secret."""

    def __init__(self, plan: Plan, sink: Sink, device: str, threads: int, memory: Memory) -> None:
        self._worker = Worker(plan, sink, device, threads, memory)

    def run(self, index: int, accesses: Mapping[int, Access]) -> Receipt:
        return self._worker.run(index, accesses)


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start a Ray of this job's own, and shut it down.

    `address="local"` always starts a new one: the cluster file that a crashed Ray leaves behind
    would make a plain start fail.

    Raises:
        RequestError: an address of another kind, or nothing answers there.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith(("http://", "https://", "ray://")):
        raise RequestError(
            f"--address {address}: this program does not run over a client connection",
            f"submit a job: ray job submit --address {address} -- python -m jobs.analyze …",
        )
    options: dict[str, Any] = {"address": address, "log_to_driver": False}
    if address == "local":
        # Nothing but receipts passes through the object store: 80 MB is Ray's least.
        options |= {"include_dashboard": False, "object_store_memory": 100_000_000}
    try:
        with _without_secrets():
            ray.init(logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"no Ray cluster at {address}: {str(error).splitlines()[0]}",
            "check --address and RAY_ADDRESS, or leave both out",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _without_secrets() -> Iterator[None]:
    """Every process of a local Ray inherits this one's environment."""
    hidden = {name: os.environ.pop(name) for name in _SECRETS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def layout(device: str, max_workers: int | None, threads_per_worker: int = 4) -> Layout:
    """Return how many workers of how many threads the cluster has room for.

    One worker per GPU; without GPUs one per four cores, since each costs 0.3 GB and four threads
    keep the interpreter's lock free (a product of 16,384 columns takes a millisecond or more).
    """
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    if device == "cuda" or (device == "auto" and gpus):
        if not gpus:
            raise RequestError("--device cuda: the cluster has no GPU", "use --device cpu")
        workers = min(gpus, max_workers or gpus)
        return Layout(workers, max(1, min(threads_per_worker, cpus // workers)), "cuda")
    workers = min(max(1, cpus // threads_per_worker), max_workers or cpus)
    return Layout(workers, max(1, min(threads_per_worker, cpus // workers)), "cpu")


class RayPool:
    """A pool of actors and the loop that feeds them."""

    def __init__(self, plan: Plan, sink: Sink, shape: Layout, calls: int, memory: Memory) -> None:
        """`calls`: tiles that an actor has in hand at once, computing or pulling."""
        self._calls = calls
        remote = ray.remote(_Actor).options(
            num_cpus=shape.threads,
            num_gpus=1 if shape.device == "cuda" else 0,
            max_concurrency=self._calls,
            max_restarts=0,
            max_task_retries=0,
        )
        shared = ray.put(plan)
        self._start = lambda: remote.remote(shared, sink, shape.device, shape.threads, memory)
        self._size = shape.workers
        self._deaths = 0

    def run(
        self, tiles: list[int], accesses: Callable[[int], Mapping[int, Access]]
    ) -> Iterator[Receipt | Lost]:
        """Yield each tile's outcome as it comes."""
        queue = TileQueue(tiles)
        actors = [self._start() for _ in range(min(self._size, len(tiles)))]
        running: dict[Any, tuple[Any, int]] = {}  # call → (actor, tile)
        while True:
            self._feed(queue, actors, running, accesses)
            if not running:
                return
            (call,), _ = ray.wait(list(running), num_returns=1)
            if call not in running:
                continue
            actor, tile = running.pop(call)
            outcome = self._outcome(call)
            if isinstance(outcome, Receipt):
                self._deaths = 0
                yield outcome
                continue
            if isinstance(outcome, TileLost):
                self._replace(actor, actors)
                held = [tile, *self._drop_calls(actor, running)]
            else:
                held = [tile]
            for index in held:
                if (lost := queue.put_back(index, outcome)) is not None:
                    yield lost

    def _feed(
        self,
        queue: TileQueue,
        actors: list[Any],
        running: dict[Any, tuple[Any, int]],
        accesses: Callable[[int], Mapping[int, Access]],
    ) -> None:
        """Give every actor the calls it has room for, one each in turn."""
        for _ in range(self._calls):
            for actor in actors:
                load = sum(1 for held, _ in running.values() if held is actor)
                if load < self._calls and (tile := queue.take()) is not None:
                    running[actor.run.remote(tile, accesses(tile))] = (actor, tile)

    def _outcome(self, call: Any) -> Receipt | HallmarksError:
        try:
            return ray.get(call)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, HallmarksError):
                return cause
            raise
        except (RayActorError, RayError) as error:
            return TileLost(f"a worker died: {type(error).__name__}")

    def _drop_calls(self, actor: Any, running: dict[Any, tuple[Any, int]]) -> list[int]:
        calls = [call for call, (held, _) in running.items() if held is actor]
        return [running.pop(call)[1] for call in calls]

    def _replace(self, actor: Any, actors: list[Any]) -> None:
        self._deaths += 1
        if self._deaths > MAX_DEATHS_IN_A_ROW:
            raise HallmarksError(
                f"{self._deaths} workers died in a row with no tile finished",
                "is --memory more than the machine has? finished tiles are kept",
            )
        ray.kill(actor)
        actors.remove(actor)
        actors.append(self._start())
