"""The worker as Ray sees it: an actor, and what it must find on its node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from pipeline.errors import HallmarksError, StoreUnusable
from pipeline.execute.ray.metrics import Metrics
from pipeline.execute.ray.tasks import TaskBlocks
from pipeline.execute.work.receipt import Receipt
from pipeline.execute.work.urls import DriverUrls, Notice, Request, TileBegun
from pipeline.planning.memory import Memory
from pipeline.planning.plan import Plan
from pipeline.transport.access import Access

if TYPE_CHECKING:
    from pipeline.execute.work.worker import Sink

FOR_TASKS = 8
"""Threads of a worker that answer those who pull for it."""
OTHER_CALLS = 2
"""Calls of a worker beside its tiles: one that waits for messages, one for what the driver says."""
_POLL_S = 5.0  # a worker without messages says so after this


@dataclass(frozen=True, slots=True)
class Probe:
    """What a worker must find on its node before it gets a tile. Holds no secret."""

    sink: Sink
    files: Mapping[int, Access]
    """Some of the files of a local source."""


class WorkerActor:
    """No argument of the constructor is a secret.

    URLs come as arguments of `answer`, each below the size from which Ray would put it into
    its object store, whose pages are spilled to disk in clear text.
    """

    def __init__(
        self,
        plan: Plan,
        sink: Sink,
        device: str,
        threads: int,
        memory: Memory,
        verified: Sequence[int],
        for_tasks: Sequence[Any],
        sharers: int,
    ) -> None:
        """`for_tasks`: a reference to the plan, if tasks pull."""
        from pipeline.execute.work.worker import Worker  # needs torch, which a driver does without

        self._urls = DriverUrls()
        self._blocks = None
        if for_tasks:
            self._blocks = TaskBlocks(plan, for_tasks[0], self._urls, memory.row_bytes)
        self._worker = Worker(
            plan, sink, self._urls, device, threads, memory, verified, self._blocks, sharers
        )
        self._metrics = Metrics(plan.run)

    def probe(self, probe: Probe) -> tuple[str, StoreUnusable | None]:
        """Return which node this is, and what is wrong with it."""
        context, node = ray.get_runtime_context(), ray.util.get_node_ip_address()
        try:
            self._worker.probe(probe.files)
            probe.sink.probe(node)
        except HallmarksError as error:
            hint = error.hint or "store and local checkpoints must be on every node"
            return context.get_node_id(), StoreUnusable(f"node {node}: {error.message}", hint)
        return context.get_node_id(), None

    def run(self, index: int, position: int) -> Receipt:
        self._urls.tell(TileBegun(index))
        try:
            return self._worker.run(index, position)
        finally:
            self._metrics.export(self._worker.counters)

    def verify(self) -> None:
        self._worker.verify()

    def messages(self) -> tuple[int, list[tuple[int, Request | Notice]]]:
        """Return a number that rises with the work, and what was told and asked since the last call."""
        messages = self._urls.requests(_POLL_S)
        counters = self._worker.counters
        self._metrics.export(counters)
        return counters.bytes_pulled + counters.blocks, messages

    def answer(self, request: int, answer: Any) -> None:
        self._urls.answer(request, answer)

    def pause(self, host: str, seconds: float) -> None:
        self._worker.pause(host, seconds)
        if self._blocks:
            self._blocks.pause(host, seconds)

    # What tasks ask that pull for this worker, in threads of their own (`FOR_TASKS`).

    @ray.method(concurrency_group="tasks")
    def accesses(self, files: Sequence[int], after: int) -> dict[int, Access]:
        return self._worker.reader.handed_out(files, after)

    @ray.method(concurrency_group="tasks")
    def read(self, file: int, start: int, stop: int) -> bytes:
        return self._urls.read(file, start, stop)

    @ray.method(concurrency_group="tasks")
    def paused(self, host: str, seconds: float) -> None:
        self.pause(host, seconds)
        self._urls.paused(host, seconds)

    @ray.method(concurrency_group="tasks")
    def waiting(self, host: str, why: str) -> None:
        self._urls.waiting(host, why)

    @ray.method(concurrency_group="tasks")
    def count(self, more: dict[str, float]) -> None:
        self._worker.count(**more)
