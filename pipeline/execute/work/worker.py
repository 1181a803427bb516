"""One worker: pulls the blocks of a tile, adds them up, and puts the result where it belongs.

The same in every executor. Where a tile runs, how many run side by side and how much of one is
held at once decide nothing about its bits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from operator import itemgetter
from typing import Protocol

from pipeline.errors import HallmarksError
from pipeline.execute.work.device import Device, Lane
from pipeline.execute.work.pull import Block, Blocks, Counters, Puller, Read
from pipeline.execute.work.receipt import Receipt
from pipeline.execute.work.verify import Place, Verifier
from pipeline.numerics.joint import parents
from pipeline.planning.blocks import BlockLayout, block_layouts, width
from pipeline.planning.memory import Memory
from pipeline.planning.plan import Plan
from pipeline.planning.tiles import files_of, results
from pipeline.statistics.accumulator import Accumulator
from pipeline.statistics.matrices import MatrixAccumulator, Room, matrix_bytes
from pipeline.statistics.parts import PartKey, Sums
from pipeline.statistics.piece import TensorFacts, one_thread_products
from pipeline.statistics.rows import RowAccumulator
from pipeline.statistics.sketch import part_name
from pipeline.transport.access import Access
from pipeline.transport.reader import Reader, UrlProvider


class Sink(Protocol):
    """Where results go. Picklable."""

    def put(self, tile_name: str, result: Sums) -> None: ...

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
        urls: UrlProvider[int],
        device: str,
        threads: int,
        memory: Memory,
        verified: Sequence[int] = (),
        elsewhere: Blocks | None = None,
        sharers: int = 1,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            urls: gives access to files.
            verified: files of the plan whose hashes are checked here.
            elsewhere: where blocks come from if they are not pulled here.
            sharers: workers that compute on the same GPU, this one included.
        """
        self._plan, self._sink, self._memory = plan, sink, memory
        self._device = Device(
            device,
            plan.tensors,
            memory.row_bytes,
            threads,
            sharers,
        )
        self._parents = parents(plan.firsts, len(plan.checkpoints))
        self._row_tables = plan.rows.tables
        self._room = Room(memory.budget)  # of a plan of matrices, as much again as blocks may take
        self._known_facts: dict[tuple[int, int], TensorFacts] = {}
        self._tables: list[Block] = []  # that no tile uses now
        self._counters, self._counting = Counters(), threading.Lock()
        self.reader = Reader(urls, self.count)
        self._puller = Puller(plan, self.reader)
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

    def probe(self, files: Mapping[int, Access]) -> None:
        """Look at the device, and read a byte of each of these files.

        Raises:
            RequestError: there is no such device here.
            DeviceFull: it cannot even be looked at.
            ReadError: one of the files is not here, or is another.
        """
        self._device.open()
        self._puller.probe(files)

    def pause(self, host: str, seconds: float) -> None:
        """Send nothing to a host for so long: another worker was told to."""
        self.count(rate_limited_seconds=seconds)
        self.reader.pause(host, seconds)

    def run(self, index: int, position: int) -> Receipt:
        """Compute one tile, by its number in the plan, and put its result.

        Args:
            position: how many tiles were handed to this worker before; each of them has its call.

        Raises:
            ReadError: bytes could not be had.
            DeviceFull: the GPU has no memory for a single piece.
        """
        tile = self._plan.tiles[index]
        try:
            with ExitStack() as held:
                accumulator = self._matrices(index, held) or self._accumulator(index)
                with self._verifier.order.place(position) as place:
                    pull_seconds, gram_seconds = self._work(index, accumulator, place)
                result = accumulator.result(self._device.name)
            self._sink.put(tile.name, result)
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
        self.reader.accesses(files)
        for _ in self._puller.threads.map(self._verifier.finish, files):
            pass

    def _matrices(self, index: int, held: ExitStack) -> MatrixAccumulator | None:
        """Return what puts a tile's matrices together, if that is what they are read for, once they have room."""
        if not self._plan.matrices:
            return None
        (range_,) = self._plan.tiles[index].ranges
        shapes, tensor = self._plan.matrices[range_.tensor], self._plan.tensors[range_.tensor]
        count = len(self._plan.checkpoints)
        held.enter_context(self._room.taken(matrix_bytes(shapes, count, width(tensor))))
        keys = (PartKey(range_.tensor, part) for part in range(len(shapes)))
        return MatrixAccumulator(dict(zip(keys, shapes, strict=True)), count)

    def _accumulator(self, index: int) -> Accumulator:
        keys = {
            key: None
            for range_ in self._plan.tiles[index].ranges
            for key in results(range_, self._plan.tensors)
        }
        count, firsts = len(self._plan.checkpoints), self._plan.firsts
        rows = None
        if self._row_tables:
            ranges = [(r.tensor, r.first, r.stop) for r in self._plan.tiles[index].ranges]
            rows = RowAccumulator(self._row_tables, ranges, firsts, count)
        return Accumulator(tuple(keys), self._plan.statistics, count, rows)

    def _work(
        self,
        index: int,
        accumulator: Accumulator | MatrixAccumulator,
        place: Place,
    ) -> tuple[float, float]:
        """Pull and add a tile's blocks; return the seconds of each."""
        pull_seconds = gram_seconds = 0.0
        started = time.perf_counter()
        for layout, block in self._blocks(index) if self._blocks else self._pulled(index, place):
            pull_seconds += time.perf_counter() - started
            with self._device.lane() as lane:
                started = time.perf_counter()
                self._add(layout, block, accumulator, lane)
                gram_seconds += time.perf_counter() - started
            del block  # it may be in an object store that has room for few
            self.count(blocks=1)
            started = time.perf_counter()
        return pull_seconds, gram_seconds

    def _pulled(self, index: int, place: Place) -> Iterator[tuple[BlockLayout, Block]]:
        """Pull a tile's blocks here, one after the other, into the same memory."""
        tile, tensors = self._plan.tiles[index], self._plan.tensors
        self.reader.accesses(files_of(tile, tensors))
        with self._table() as table:
            for layout in block_layouts(tile, tensors, self._memory.row_bytes):
                count = len(self._plan.checkpoints)
                block = table[: count * layout.row_bytes].reshape(count, layout.row_bytes)
                reads = self._puller.fill(block, layout)
                if self._verifier.files:
                    self._verify(reads, place)
                yield layout, block

    def _verify(self, reads: Sequence[Read], place: Place) -> None:
        """Hash what was read of each file, after the tiles before this one."""
        ranges: dict[int, list[tuple[int, memoryview]]] = {}
        for file, start, buffer in sorted(reads, key=itemgetter(0, 1)):
            ranges.setdefault(file, []).append((start, buffer))
        place.wait()
        for _ in self._puller.threads.map(
            lambda file: self._verifier.take(file, ranges[file]), ranges
        ):
            pass

    @contextmanager
    def _table(self) -> Iterator[Block]:
        """Lend memory for the largest block: as often as tiles are in hand, whichever threads they come in.

        One for each thread was one too many on Ray, where tiles share their threads with other calls: 142 MiB
        beyond the projection with 154 checkpoints.
        """
        try:
            table = self._tables.pop()
        except IndexError:
            table = self._device.table(len(self._plan.checkpoints) * self._memory.row_bytes)
        try:
            yield table
        finally:
            self._tables.append(table)

    def _add(
        self,
        layout: BlockLayout,
        block: Block,
        accumulator: Accumulator | MatrixAccumulator,
        lane: Lane,
    ) -> None:
        ranges = [
            (
                place,
                [(key, self._facts(key)) for key in results(place.range, self._plan.tensors)],
            )
            for place in layout.ranges
        ]
        lane.add(block, ranges, accumulator)

    def _facts(self, key: PartKey) -> TensorFacts:
        facts = self._known_facts.get(key[:2])
        if facts is None:
            tensor = self._plan.tensors[key.tensor]
            facts = TensorFacts(
                tensor.parts[key.part],
                tensor.numel,
                tensor.dtypes,
                self._plan.firsts,
                self._parents,
                tensor.scales,
                part_name(tensor.name, tensor.parts[key.part]),
            )
            self._known_facts[key[:2]] = facts
        return facts
