"""One worker: pulls the slices of a tile, adds them up, and puts the result where it belongs.

The same in every executor. Where a tile runs, how many run side by side and how much of one is
held at once decide nothing about its bits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol

from pipeline.errors import HallmarksError
from pipeline.execute.work.addresses import Addresses
from pipeline.execute.work.device import Device, Lane, pieces_of
from pipeline.execute.work.pull import Block, Blocks, Counters, Places, Puller
from pipeline.execute.work.receipt import Receipt
from pipeline.execute.work.verify import Place, Verifier
from pipeline.planning.memory import Memory
from pipeline.planning.plan import Plan
from pipeline.planning.slices import Placed, Slice, slices
from pipeline.planning.tiles import files_of, results
from pipeline.sources.base import Access
from pipeline.statistics.gram import TORCH_DTYPES, PartAccumulator, one_thread_products
from pipeline.statistics.partial import TileResult


class Sink(Protocol):
    """Where results go. Picklable."""

    def put(self, tile_name: str, result: TileResult) -> None: ...

    def probe(self, node: str) -> None:
        """Raise StoreUnusable if results from this node would not be where the driver looks."""
        ...


class Worker:
    """Computes tiles, several side by side when called from several threads.

    More calls than `threads` may be under way: they pull while the others compute.
    """

    def __init__(
        self,
        plan: Plan,
        sink: Sink,
        addresses: Addresses,
        device: str,
        threads: int,
        memory: Memory,
        verified: Sequence[int] = (),
        elsewhere: Blocks | None = None,
        sharers: int = 1,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            verified: files of the plan whose hashes are checked here.
            elsewhere: where blocks come from if they are not pulled here.
            sharers: workers that compute on the same card, this one included.
        """
        self._plan, self._sink, self._memory = plan, sink, memory
        self._addresses = addresses
        self._device = Device(device, plan.tensors, memory.row_bytes, threads, sharers)
        self._local = threading.local()
        self._counters, self._counting = Counters(), threading.Lock()
        self._puller = Puller(plan, addresses, self.count)
        self._blocks = elsewhere.of if elsewhere else None
        self._verifier = Verifier(plan, verified, self._puller.read)
        self._pinned = ExitStack()
        self._pinned.enter_context(one_thread_products())

    def close(self) -> None:
        """Restore what the process had set."""
        self._puller.close()
        self._pinned.close()

    @property
    def counters(self) -> Counters:
        """What was done so far."""
        return self._counters

    def count(self, **more: float) -> None:
        """Add to the counters."""
        with self._counting:
            self._counters.add(more)

    def probe(self, files: Sequence[Access]) -> None:
        """Look at the device, and read a byte of each of these files.

        Raises:
            RequestError: there is no such device here.
            DeviceFull: it cannot even be looked at.
            ReadError: one of the files is not here, or is another.
        """
        self._device.open()
        self._puller.prove(files)

    def pause(self, host: str, seconds: float) -> None:
        """Leave a host alone: another worker was told to."""
        self.count(rate_limited_seconds=seconds)
        self._puller.transport.pause(host, seconds)

    def run(self, index: int, position: int) -> Receipt:
        """Compute one tile, by its number in the plan, and put its result.

        Args:
            position: how many tiles were handed to this worker before; each of them has its call.

        Raises:
            ReadError: bytes could not be had.
            DeviceFull: the card has no memory for a single piece.
        """
        tile = self._plan.tiles[index]
        try:
            with self._verifier.order.place(position) as place:
                accumulators = self._accumulators(index)
                pull_seconds, gram_seconds = self._work(index, accumulators, place)
            parts = {key: accumulator.result() for key, accumulator in accumulators.items()}
            self._sink.put(tile.name, TileResult(parts, self._device.name))
        except HallmarksError:
            self.count(tiles_failed=1)
            raise
        self.count(tiles_done=1, pulling_seconds=pull_seconds, computing_seconds=gram_seconds)
        return Receipt(index, tile.bytes, pull_seconds, gram_seconds, self._device.name)

    def verify(self) -> None:
        """Compare the hashes of the files that are verified here.

        Raises:
            Corrupted: one of them is another.
            ReadError: bytes could not be had.
        """
        files = self._verifier.files
        self._addresses.prepare(files)
        for _ in self._puller.readers.map(self._verifier.finish, files):
            pass

    def _accumulators(self, index: int) -> dict[tuple[int, int, int], PartAccumulator]:
        tensors = self._plan.tensors
        return {
            key: PartAccumulator(
                tensors[key[0]].parts[key[1]],
                tensors[key[0]].numel,
                tensors[key[0]].dtypes,
                self._plan.firsts,
            )
            for fragment in self._plan.tiles[index].fragments
            for key in results(fragment, tensors)
        }

    def _work(
        self,
        index: int,
        accumulators: dict[tuple[int, int, int], PartAccumulator],
        place: Place,
    ) -> tuple[float, float]:
        """Pull and add a tile's slices; return the seconds of each."""
        pull_seconds = gram_seconds = 0.0
        started = time.perf_counter()
        for piece, block in self._blocks(index) if self._blocks else self._pulled(index, place):
            pull_seconds += time.perf_counter() - started
            with self._device.lane() as lane:
                started = time.perf_counter()
                self._add(piece, block, accumulators, lane)
                gram_seconds += time.perf_counter() - started
            del block  # it may be in an object store that has room for few
            self.count(slices=1)
            started = time.perf_counter()
        return pull_seconds, gram_seconds

    def _pulled(self, index: int, place: Place) -> Iterator[tuple[Slice, Block]]:
        """Pull a tile's slices here, one after the other, into this thread's block."""
        tile, tensors = self._plan.tiles[index], self._plan.tensors
        self._addresses.prepare(files_of(tile, tensors))
        for piece in slices(tile, tensors, self._memory.row_bytes):
            block = self._block(piece.row_bytes)
            places = self._puller.fill(block, piece)
            if self._verifier.files:
                self._verify(places, place)
            yield piece, block

    def _verify(self, places: Places, place: Place) -> None:
        """Hash what was read of each file, after the tiles before this one."""
        spans: dict[int, list[tuple[int, memoryview]]] = {}
        for (file, start, _), (first, *_) in sorted(places.items(), key=lambda entry: entry[0]):
            spans.setdefault(file, []).append((start, first.data))
        place.wait()
        for _ in self._puller.readers.map(
            lambda file: self._verifier.take(file, spans[file]), spans
        ):
            pass

    def _block(self, row_bytes: int) -> Block:
        """Return this thread's table; it is used again for the next slice."""
        count = len(self._plan.checkpoints)
        flat = getattr(self._local, "flat", None)
        if flat is None:
            flat = self._local.flat = self._device.table(count * self._memory.row_bytes)
        return flat[: count * row_bytes].reshape(count, row_bytes)

    def _add(
        self,
        piece: Slice,
        block: Block,
        accumulators: dict[tuple[int, int, int], PartAccumulator],
        lane: Lane,
    ) -> None:
        pieces = []
        for placed in piece.placed:
            dtypes = self._plan.tensors[placed.fragment.tensor].dtypes
            stored = _rows(block, placed, dtypes)
            adding = [accumulators[key] for key in results(placed.fragment, self._plan.tensors)]
            for accumulator in adding:
                accumulator.add_bytes(stored, placed.fragment.first)
            pieces += pieces_of(placed, dtypes, adding)
        lane.add(block, pieces)


def _rows(block: Block, placed: Placed, dtypes: tuple[str, ...]) -> list[Block]:
    length = placed.fragment.stop - placed.fragment.first
    return [
        row[placed.column : placed.column + length * TORCH_DTYPES[dtype].itemsize]
        for row, dtype in zip(block, dtypes, strict=True)
    ]
