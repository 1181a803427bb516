"""One worker: pulls the slices of a tile, adds them up, and puts the result where it belongs.

The same in every executor. Where a tile runs, how many run side by side and how much of one is
held at once decide nothing about its bits.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import HallmarksError, Interrupted, RequestError
from pipeline.execute.addresses import Addresses
from pipeline.execute.verify import Turn, Verifier
from pipeline.numerics.gram import TORCH_DTYPES, PartAccumulator, Scratch, one_thread_products
from pipeline.numerics.partial import TileResult
from pipeline.planning.memory import Memory
from pipeline.planning.plan import Plan
from pipeline.planning.slices import Placed, Slice, slices, spans
from pipeline.planning.tiles import results
from pipeline.sources.base import Access
from pipeline.sources.http import Transport

_READERS = 32  # threads that wait for network reads, shared by all tiles of the worker
_CALLS_A_READER = 4  # at least, of one slice: so that none is left with most of the work


@dataclass(frozen=True, slots=True)
class Receipt:
    """A finished tile: its result is in the store."""

    tile: int
    bytes: int
    pull_seconds: float
    gram_seconds: float
    device: str


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


class Sink(Protocol):
    """Where results go. Picklable."""

    def put(self, tile_name: str, result: TileResult) -> None: ...

    def prove(self, node: str) -> None:
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
    ) -> None:
        """`verified`: files of the plan whose hashes are checked here."""
        self._plan, self._sink, self._memory = plan, sink, memory
        self._addresses = addresses
        self._device = torch.device(device)
        self._computing = threading.Semaphore(threads)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="reader")
        self._transport = Transport(addresses)
        self._local = threading.local()
        self._cancelled = threading.Event()
        self._counters, self._counting = Counters(), threading.Lock()
        self._verifier = Verifier(plan, verified, self._read_one)
        self._pinned = ExitStack()
        self._pinned.enter_context(one_thread_products())

    def close(self) -> None:
        """Restore what the process had set."""
        self._cancelled.set()
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._pinned.close()

    @property
    def counters(self) -> Counters:
        """What was done so far."""
        self._counters.retries = self._transport.retries
        self._counters.rate_limited_seconds = self._transport.rate_limited_s
        return self._counters

    def prove(self, files: Sequence[Access]) -> None:
        """Read a byte of each of these files.

        Raises:
            ReadError: one of them is not here, or is another.
        """
        for file in files:
            file.read_into(self._transport, 0, memoryview(bytearray(1)))

    def pause(self, host: str, seconds: float) -> None:
        """Leave a host alone: another worker was told to."""
        self._transport.pause(host, seconds)

    def run(self, index: int, turn: int) -> Receipt:
        """Compute one tile, by its number in the plan, and put its result.

        Args:
            turn: how many tiles were handed to this worker before; each of them has its call.

        Raises:
            ReadError: bytes could not be had.
        """
        tile = self._plan.tiles[index]
        try:
            with self._verifier.turns.turn(turn) as mine:
                accumulators = self._accumulators(index)
                pull_seconds, gram_seconds = self._work(index, accumulators, mine)
            parts = {key: accumulator.result() for key, accumulator in accumulators.items()}
            device = device_name(self._device)
            self._sink.put(tile.name, TileResult(parts, device))
        except HallmarksError:
            self._count(tiles_failed=1)
            raise
        self._count(tiles_done=1, pulling_seconds=pull_seconds, computing_seconds=gram_seconds)
        return Receipt(index, tile.bytes, pull_seconds, gram_seconds, device)

    def verify(self) -> None:
        """Compare the hashes of the files that are verified here.

        Raises:
            Corrupted: one of them is another.
            ReadError: bytes could not be had.
        """
        files = self._verifier.files
        self._addresses.prepare(files)
        for _ in self._readers.map(self._verifier.finish, files):
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
        turn: Turn,
    ) -> tuple[float, float]:
        """Pull and add a tile's slices; return the seconds of each."""
        tile, tensors = self._plan.tiles[index], self._plan.tensors
        pull_seconds = gram_seconds = 0.0
        started = time.perf_counter()
        self._addresses.prepare(files_of(self._plan, index))
        pull_seconds += time.perf_counter() - started
        for piece in slices(tile, tensors, self._memory.row_bytes):
            started = time.perf_counter()
            block = self._pull(piece, turn)
            pulled = time.perf_counter()
            with self._computing:
                computing = time.perf_counter()
                self._add(piece, block, accumulators)
            pull_seconds += pulled - started
            gram_seconds += time.perf_counter() - computing
            self._count(slices=1)
        return pull_seconds, gram_seconds

    def _pull(self, piece: Slice, turn: Turn) -> NDArray[np.uint8]:
        """Return the slice's table of bytes, one row per checkpoint."""
        block = self._block(piece.row_bytes)
        wanted: dict[tuple[int, int, int], list[NDArray[np.uint8]]] = {}
        for row in range(len(block)):
            for span in spans(piece, self._plan.tensors, row):
                there = block[row, span.column : span.column + span.stop - span.start]
                wanted.setdefault((span.file, span.start, span.stop), []).append(there)
        reads = [(file, start, places[0].data) for (file, start, _), places in wanted.items()]
        files = {file for file, _, _ in reads}
        if all(self._addresses.get(file).reads_at_once == 1 for file in files):
            self._read(reads)
        else:
            # few calls for many small ranges: to hand one over costs a fifth of a range's own time
            size = -(-len(reads) // (_READERS * _CALLS_A_READER))
            groups = [reads[first : first + size] for first in range(0, len(reads), size)]
            pending = [self._readers.submit(self._read, group) for group in groups]
            try:
                for future in pending:
                    future.result()
            finally:
                # no thread may write into the block once it is used for something else
                for future in pending:
                    if not future.cancel():
                        future.exception()
        if self._verifier.files:
            self._verify(wanted, turn)
        for first, *others in wanted.values():
            for other in others:  # checkpoints that share a file
                other[:] = first
        return block

    def _read(self, reads: Sequence[tuple[int, int, memoryview]]) -> None:
        for file, start, buffer in reads:
            if self._cancelled.is_set():
                raise Interrupted("stopped")
            self._read_one(file, start, buffer)

    def _read_one(self, file: int, start: int, buffer: memoryview) -> None:
        self._count(bytes_in_flight=len(buffer))
        try:
            self._addresses.get(file).read_into(self._transport, start, buffer)
            self._count(bytes_pulled=len(buffer))
        finally:
            self._count(bytes_in_flight=-len(buffer))

    def _count(self, **more: float) -> None:
        with self._counting:
            for name, number in more.items():
                setattr(self._counters, name, getattr(self._counters, name) + number)

    def _verify(
        self, wanted: Mapping[tuple[int, int, int], list[NDArray[np.uint8]]], turn: Turn
    ) -> None:
        """Hash what was read of each file, after the tiles before this one."""
        spans: dict[int, list[tuple[int, memoryview]]] = {}
        for (file, start, _), places in sorted(wanted.items(), key=lambda entry: entry[0]):
            spans.setdefault(file, []).append((start, places[0].data))
        turn.wait()
        for _ in self._readers.map(lambda file: self._verifier.take(file, spans[file]), spans):
            pass

    def _block(self, row_bytes: int) -> NDArray[np.uint8]:
        """Return this thread's table; it is used again for the next slice."""
        count = len(self._plan.checkpoints)
        flat = getattr(self._local, "flat", None)
        if flat is None:
            size = count * self._memory.row_bytes
            if self._device.type == "cuda":
                flat = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
            else:
                flat = np.empty(size, np.uint8)  # in huge pages, where torch's is in small ones
            self._local.flat = flat
            self._local.scratch = Scratch(count, self._device)
        return flat[: count * row_bytes].reshape(count, row_bytes)

    def _add(
        self,
        piece: Slice,
        block: NDArray[np.uint8],
        accumulators: dict[tuple[int, int, int], PartAccumulator],
    ) -> None:
        table = torch.from_numpy(block)
        if self._device.type == "cuda":
            table = table.to(self._device, non_blocking=True)
        for placed in piece.placed:
            tensor = self._plan.tensors[placed.fragment.tensor]
            values = _typed(table, placed, tensor.dtypes)
            stored = _rows(block, placed, tensor.dtypes)
            for key in results(placed.fragment, self._plan.tensors):
                accumulator = accumulators[key]
                accumulator.add_bytes(stored, placed.fragment.first)
                accumulator.add_values(values, placed.fragment.first, self._local.scratch)


def files_of(plan: Plan, index: int) -> list[int]:
    """Return the numbers of the files that a tile reads."""
    tensors = (plan.tensors[fragment.tensor] for fragment in plan.tiles[index].fragments)
    return sorted({number for tensor in tensors for number in tensor.all_files()})


def _typed(
    table: torch.Tensor, placed: Placed, dtypes: tuple[str, ...]
) -> torch.Tensor | list[torch.Tensor]:
    """Return a fragment's values: one table if all checkpoints store it alike, else rows."""
    length = placed.fragment.stop - placed.fragment.first
    if len(set(dtypes)) == 1:
        dtype = TORCH_DTYPES[dtypes[0]]
        return table[:, placed.column : placed.column + length * dtype.itemsize].view(dtype)
    return [
        row[placed.column : placed.column + length * TORCH_DTYPES[dtype].itemsize].view(
            TORCH_DTYPES[dtype]
        )
        for row, dtype in zip(table, dtypes, strict=True)
    ]


def _rows(
    block: NDArray[np.uint8], placed: Placed, dtypes: tuple[str, ...]
) -> list[NDArray[np.uint8]]:
    length = placed.fragment.stop - placed.fragment.first
    return [
        row[placed.column : placed.column + length * TORCH_DTYPES[dtype].itemsize]
        for row, dtype in zip(block, dtypes, strict=True)
    ]


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(wanted: str) -> str:
    """Return the torch device that `--device` means on this machine.

    Raises:
        RequestError: `cuda` where there is none.
    """
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise RequestError("--device cuda: this machine has no CUDA device", "use --device cpu")
    return "cuda" if wanted in ("cuda", "auto") and has_cuda else "cpu"


def device_name(device: torch.device) -> str:
    """Return the name of the processor or card, as results carry it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "cpu " + torch.backends.cpu.get_cpu_capability()
