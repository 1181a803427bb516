"""Pulling: the ranges of a slice, read into one table of bytes. The same wherever it is done."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Interrupted
from pipeline.execute.work.addresses import Addresses
from pipeline.planning.plan import Plan
from pipeline.planning.slices import Slice, spans
from pipeline.sources.base import Access
from pipeline.transport.connections import Count, Transport

_READERS = 32  # threads that wait for network reads, shared by all slices that a process pulls
_CALLS_A_READER = 4  # at least, of one slice: so that none is left with most of the work

Block = NDArray[np.uint8]
"""A slice's table of bytes, one row per checkpoint."""

Places = Mapping[tuple[int, int, int], list[Block]]
"""Where ranges (file, start, stop) lie in a block; twice where checkpoints share a file."""


class Blocks(Protocol):
    """A tile's bytes, pulled elsewhere."""

    def of(self, index: int) -> Iterator[tuple[Slice, Block]]:
        """Yield the slices of a tile, in order; a block is to be let go before the next one.

        Raises:
            ReadError: bytes could not be had.
        """
        ...


@dataclass(slots=True)
class Counters:
    """What a worker has done so far, and what it has in hand."""

    bytes_pulled: int = 0
    bytes_in_flight: int = 0
    slices: int = 0
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


class Puller:
    """Fills blocks. Safe in threads."""

    def __init__(self, plan: Plan, addresses: Addresses, count: Count) -> None:
        """`count`: told of bytes pulled and in flight, and of what the connections tell."""
        self._plan, self._addresses, self._count = plan, addresses, count
        self.readers = ThreadPoolExecutor(_READERS, thread_name_prefix="reader")
        self.transport = Transport(addresses, count)
        self._cancelled = threading.Event()

    def close(self) -> None:
        """Stop at the next read."""
        self._cancelled.set()
        self.readers.shutdown(wait=False, cancel_futures=True)

    def prove(self, files: Sequence[Access]) -> None:
        """Read a byte of each of these files.

        Raises:
            ReadError: one of them is not here, or is another.
        """
        for file in files:
            file.read_into(self.transport, 0, memoryview(bytearray(1)))

    def fill(self, block: Block, piece: Slice) -> Places:
        """Read a slice into its block; return where each range lies in it.

        Raises:
            ReadError: bytes could not be had.
        """
        wanted: dict[tuple[int, int, int], list[Block]] = {}
        for row in range(len(block)):
            for span in spans(piece, self._plan.tensors, row):
                there = block[row, span.column : span.column + span.stop - span.start]
                wanted.setdefault((span.file, span.start, span.stop), []).append(there)
        reads = [(file, start, places[0].data) for (file, start, _), places in wanted.items()]
        files = {file for file, _, _ in reads}
        if all(self._addresses.get(file).reads_at_once == 1 for file in files):
            self._read(reads)
        else:
            self._read_in_threads(reads)
        for first, *others in wanted.values():
            for other in others:  # checkpoints that share a file
                other[:] = first
        return wanted

    def read(self, file: int, start: int, buffer: memoryview) -> None:
        """Fill a buffer from a byte of a file, given by number, on."""
        self._count(bytes_in_flight=len(buffer))
        try:
            self._addresses.get(file).read_into(self.transport, start, buffer)
            self._count(bytes_pulled=len(buffer))
        finally:
            self._count(bytes_in_flight=-len(buffer))

    def _read_in_threads(self, reads: Sequence[tuple[int, int, memoryview]]) -> None:
        # few calls for many small ranges: to hand one over costs a fifth of a range's own time
        size = -(-len(reads) // (_READERS * _CALLS_A_READER))
        groups = [reads[first : first + size] for first in range(0, len(reads), size)]
        pending = [self.readers.submit(self._read, group) for group in groups]
        try:
            for future in pending:
                future.result()
        finally:
            # no thread may write into the block once it is used for something else
            for future in pending:
                if not future.cancel():
                    future.exception()

    def _read(self, reads: Sequence[tuple[int, int, memoryview]]) -> None:
        for file, start, buffer in reads:
            if self._cancelled.is_set():
                raise Interrupted("stopped")
            self.read(file, start, buffer)
