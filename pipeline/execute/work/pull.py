"""Pulling: the byte ranges of a block, read into its memory. The same wherever it is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.execute.work.byte_ranges import byte_ranges
from pipeline.execute.work.unpack import unpack
from pipeline.planning.align import AlignedTensor
from pipeline.planning.blocks import BlockLayout
from pipeline.transport.access import Access
from pipeline.transport.reader import Reader

_READERS = 32  # threads that wait for network reads, shared by all blocks that a process pulls
_CALLS_A_READER = 4  # at least, of one block: so that none is left with most of the work

Block = NDArray[np.uint8]
"""A table of bytes, one row per checkpoint."""

Read = tuple[int, int, memoryview]
"""A file, the first byte of a range of it, and the part of a block that the range fills."""


class Blocks(Protocol):
    """A tile's bytes, pulled elsewhere."""

    def of(self, index: int) -> Iterator[tuple[BlockLayout, Block]]:
        """Yield the blocks of a tile, in order; each is to be let go before the next one.

        Raises:
            ReadError: bytes could not be had.
        """
        ...


@dataclass(slots=True)
class Counters:
    """What a worker has done so far, and what it has in hand."""

    bytes_pulled: int = 0
    bytes_in_flight: int = 0
    blocks: int = 0
    tiles_done: int = 0
    tiles_failed: int = 0
    pulling_seconds: float = 0.0
    computing_seconds: float = 0.0
    retries: int = 0
    rate_limited_seconds: float = 0.0

    def add(self, more: Mapping[str, float]) -> None:
        """Add to some of them, by name."""
        for name, number in more.items():
            setattr(self, name, getattr(self, name) + number)


class Tensors(Protocol):
    """A plan as far as blocks are filled by it."""

    @property
    def tensors(self) -> Sequence[AlignedTensor]: ...


class Puller:
    """Fills blocks. Safe in threads."""

    def __init__(self, plan: Tensors, reader: Reader[int]) -> None:
        self._plan, self.reader = plan, reader
        self.threads = ThreadPoolExecutor(_READERS, thread_name_prefix="reader")

    def close(self) -> None:
        """Stop at the next read."""
        self.reader.close()
        self.threads.shutdown(wait=False, cancel_futures=True)

    def probe(self, files: Mapping[int, Access]) -> None:
        """Read a byte of each of these files.

        Raises:
            ReadError: one of them is not here, or is another.
        """
        for file, access in files.items():
            self.reader.hold(file, access)
            self.reader.read(file, [(0, memoryview(bytearray(1)))])

    def fill(self, block: Block, layout: BlockLayout) -> list[Read]:
        """Read a block and unpack its codes; return where each range of a file lies in it.

        Raises:
            ReadError: bytes could not be had.
        """
        rows = [memoryview(row) for row in block]
        reads: list[Read] = []
        copies: list[tuple[memoryview, memoryview]] = []
        buffers: dict[tuple[int, int, int], memoryview] = {}
        for file, start, stop, row, column in byte_ranges(layout, self._plan.tensors):
            buffer = rows[row][column : column + stop - start]
            first = buffers.setdefault((file, start, stop), buffer)
            if first is buffer:
                reads.append((file, start, buffer))
            else:  # checkpoints that share a file
                copies.append((buffer, first))
        if any(self.reader.access(file).is_remote for file in {file for file, _, _ in reads}):
            self._read_in_threads(reads)
        else:  # one thread copies from the page cache at 11-22 GB/s; a second gains nothing
            self._read(reads)
        for buffer, first in copies:
            buffer[:] = first
        unpack(block, layout, self._plan.tensors)
        return reads

    def read(self, file: int, start: int, buffer: memoryview) -> None:
        """Fill a buffer from a byte of a file, given by number, on."""
        self.reader.read(file, [(start, buffer)])

    def _read_in_threads(self, reads: Sequence[Read]) -> None:
        # few calls for many small ranges: to hand one over costs a fifth of a range's own time
        size = -(-len(reads) // (_READERS * _CALLS_A_READER))
        batches = [reads[first : first + size] for first in range(0, len(reads), size)]
        pending = [self.threads.submit(self._read, batch) for batch in batches]
        try:
            for future in pending:
                future.result()
        finally:
            # no thread may write into the block once it is used for something else
            for future in pending:
                if not future.cancel():
                    future.exception()

    def _read(self, reads: Sequence[Read]) -> None:
        for file, ranges in groupby(reads, key=itemgetter(0)):
            self.reader.read(file, [(start, buffer) for _, start, buffer in ranges])
