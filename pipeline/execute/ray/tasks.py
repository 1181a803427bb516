"""Pulling by Ray tasks that are spread over the cluster: blocks travel through the object store.

For clusters of few GPUs and many network cards. A worker asks the driver for room (`admission.py`),
starts the task that pulls the block, and owns it: if the worker dies, its tasks and blocks go with
it. A task has no way to the driver; what it lacks it asks the worker that it pulls for, so that
URLs travel as small answers between processes, and no object store holds one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import ray

from pipeline.errors import TileLost, TransientReadError
from pipeline.execute.ray.session import result
from pipeline.execute.work.pull import Block, Counters, Puller
from pipeline.execute.work.urls import (
    FILES_A_REQUEST,
    BlockReleased,
    BlockRequest,
    DriverUrls,
)
from pipeline.planning.blocks import BlockLayout, block_layouts
from pipeline.planning.plan import Plan
from pipeline.planning.tiles import files_of
from pipeline.transport.access import Access
from pipeline.transport.reader import Reader

AHEAD = 2  # blocks of a tile that are asked for at once: one is computed, the next on its way
_TELL_S = 1.0  # so often a task says how far it is: silence means that its worker is stuck


@dataclass(frozen=True, slots=True)
class BlockToPull:
    """Which block a task pulls. Holds no secret."""

    plan: tuple[Any, ...]
    """A reference to the plan; not resolved by Ray, since a process fetches it once."""
    tile: int
    block: int
    """Its number in the tile."""
    row_bytes: int
    """Of a whole block."""
    pauses: dict[str, float]
    """Hosts that requested a back-off, and for how many seconds."""


class TaskBlocks:
    """The blocks of one worker's tiles, pulled by tasks. Safe in threads."""

    def __init__(self, plan: Plan, reference: Any, urls: DriverUrls, row_bytes: int) -> None:
        """`reference`: to the plan in the object store."""
        self._plan, self._reference, self._row_bytes = plan, reference, row_bytes
        self._urls = urls
        self._worker = ray.get_runtime_context().current_actor
        self._pauses: dict[str, float] = {}  # hosts to leave alone, and until when

    def pause(self, host: str, seconds: float) -> None:
        """Have the next tasks leave a host alone for so long."""
        self._pauses[host] = time.monotonic() + seconds

    def of(self, index: int) -> Iterator[tuple[BlockLayout, Block]]:
        """Yield the blocks of a tile, in order; a block is to be let go before the next one.

        Raises:
            ReadError: bytes could not be had.
        """
        tile = self._plan.tiles[index]
        layouts = enumerate(block_layouts(tile, self._plan.tensors, self._row_bytes))
        under_way = deque(self._asked(index, *layout) for layout in islice(layouts, AHEAD))
        try:
            while under_way:
                yield under_way[0].layout, under_way[0].block()
                under_way.popleft().let_go()
                under_way.extend(self._asked(index, *layout) for layout in islice(layouts, 1))
        finally:
            for pulling in under_way:
                pulling.let_go()

    def _asked(self, index: int, number: int, layout: BlockLayout) -> _Pulling:
        """Ask for room for a block, and have it pulled as soon as there is."""
        size = len(self._plan.checkpoints) * layout.row_bytes

        def start() -> Any:
            now = time.monotonic()
            pauses = {
                host: until - now for host, until in list(self._pauses.items()) if until > now
            }
            wanted = BlockToPull((self._reference,), index, number, self._row_bytes, pauses)
            return _pull.remote(wanted, self._worker)

        return _Pulling(layout, size, self._urls, start)


class _Pulling:
    """One block on its way."""

    def __init__(
        self, layout: BlockLayout, size: int, urls: DriverUrls, start: Callable[[], Any]
    ) -> None:
        self.layout, self._size, self._urls, self._start = layout, size, urls, start
        self._wanted = True
        self._task: Future[Any] = Future()
        urls.ask(BlockRequest(size)).add_done_callback(self._granted)

    def block(self) -> Block:
        """Return the block as soon as it is here."""
        return _result(self._task.result())

    def let_go(self) -> None:
        """Give the room back, as soon as nothing fills it."""
        self._wanted = False
        self._task.add_done_callback(self._ended)

    def _granted(self, room: Future[Any]) -> None:
        try:
            room.result()
            self._task.set_result(self._start() if self._wanted else None)
        except Exception as error:  # else nobody would hear of it
            self._task.set_exception(error)

    def _ended(self, task: Future[Any]) -> None:
        if task.exception() is None and task.result() is not None:
            ray.wait([task.result()])  # if its tile has failed it may still be pulled
        self._urls.tell(BlockReleased(self._size))


@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def _pull(wanted: BlockToPull, worker: Any) -> Block:
    """Pull a block for a worker. If this process or its node dies, Ray has it done elsewhere."""
    process = _PullProcess.of(wanted.plan[0])
    return process.pull(wanted, worker)


class _PullProcess:
    """What a process that pulls keeps from task to task: the plan, URLs, connections."""

    last: tuple[str, _PullProcess] | None = None

    @classmethod
    def of(cls, reference: Any) -> _PullProcess:
        """Return what there is for a plan."""
        name = reference.hex()
        if cls.last is None or cls.last[0] != name:
            cls.last = name, cls(ray.get(reference))  # a job has one plan
        return cls.last[1]

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._relay = _Relay()
        self._reader = Reader(self._relay, self._relay.count)
        self._puller = Puller(plan, self._reader)

    def pull(self, wanted: BlockToPull, worker: Any) -> Block:
        self._relay.worker = worker
        for host, seconds in wanted.pauses.items():
            self._reader.pause(host, seconds)
        tile = self._plan.tiles[wanted.tile]
        layouts = block_layouts(tile, self._plan.tensors, wanted.row_bytes)
        layout = next(islice(layouts, wanted.block, None))
        block = np.empty((len(self._plan.checkpoints), layout.row_bytes), np.uint8)
        try:
            self._reader.accesses(files_of(tile, self._plan.tensors))
            self._puller.fill(block, layout)
        finally:
            self._relay.tell()
        return block


class _Relay:
    """Gives access to files in a process that pulls: the worker that it pulls for has it, or asks."""

    def __init__(self) -> None:
        self.worker: Any = None
        self._counters, self._told = Counters(), time.monotonic()
        self._counting = threading.Lock()

    def accesses(self, files: Sequence[int], after: int) -> dict[int, Access]:
        batches = [
            files[first : first + FILES_A_REQUEST]
            for first in range(0, len(files), FILES_A_REQUEST)
        ]
        answers = [self.worker.accesses.remote(batch, after) for batch in batches]
        return {file: access for answer in answers for file, access in _result(answer).items()}

    def read(self, file: int, start: int, stop: int) -> bytes:
        return _result(self.worker.read.remote(file, start, stop))

    def paused(self, host: str, seconds: float) -> None:
        self.worker.paused.remote(host, seconds)

    def waiting(self, host: str, why: str) -> None:
        self.worker.waiting.remote(host, why)

    def count(self, **more: float) -> None:
        """Add to what the worker is told of now and then."""
        with self._counting:
            self._counters.add(more)
        if time.monotonic() - self._told > _TELL_S:
            self.tell()

    def tell(self) -> None:
        """Tell the worker what has been done since it was told last."""
        with self._counting:
            news, self._counters = self._counters, Counters()
            self._told = time.monotonic()
        self.worker.count.remote(asdict(news))


def _result(call: Any) -> Any:
    try:
        return result(call)
    except TileLost as error:
        raise TransientReadError(f"a block was lost: {error.message}") from None
