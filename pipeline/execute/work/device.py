"""The blocks of tiles on the device that computes them: how their bytes get there, how many at once.

A GPU gets a block in transfers of whole batches: while one is computed the next is copied, on a
stream of its own, from pinned memory. Where the GPU's memory runs out transfers are halved, and the
work goes on with the pieces that are not in yet. The processor uses a block where it lies, by the same
functions.

Letters: K checkpoints.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import LifoQueue
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import DeviceFull, HallmarksError, RequestError
from pipeline.execute.work.batches import Batch, Transfer, transfers
from pipeline.execute.work.pull import Block
from pipeline.planning.align import AlignedTensor
from pipeline.planning.blocks import ROW_ALIGNMENT, width
from pipeline.planning.memory import scratch_bytes, show_size
from pipeline.statistics.accumulator import Accumulator
from pipeline.statistics.gram import SHORT_SUM
from pipeline.statistics.piece import PiecePlace, Pieces, Scratch, decoded
from pipeline.statistics.pieces import PIECE, batch_elements
from pipeline.statistics.scaling import scaled
from pipeline.statistics.statistic import Statistic
from pipeline.statistics.table import ALWAYS

SHARE_OF_FREE = 0.5
"""Of a GPU's free memory, for all who compute on it: the rest is for what cuBLAS takes for itself
(on Hopper 32 MiB for each stream that a thread has used), for gaps in the allocator's memory and for
other programs."""

TRANSFERS = 4
"""Of a block, at least, if it has as many pieces: only the first copy is waited for."""

THREADS_OF_A_GPU = 4
"""Without --threads: each holds memory on the GPU, and all launch what it does under one lock."""

_PAGE = 4096


def affordable_transfer(free: int, lanes: int, num_checkpoints: int, beside: int) -> int:
    """Return the bytes of a row of a transfer for which a GPU has memory, twice in each lane.

    Args:
        free: bytes of the GPU.
        lanes: blocks computed side by side on it, by all workers.
        beside: bytes that a lane takes beside its transfers.
    """
    each = int(SHARE_OF_FREE * free) // lanes - beside
    return each // (2 * num_checkpoints) // ROW_ALIGNMENT * ROW_ALIGNMENT


class Device:
    """What computes in this process, and how much of a block it takes at once. Safe in threads."""

    def __init__(
        self,
        kind: str,
        tensors: Sequence[AlignedTensor],
        row_bytes: int,
        lanes: int,
        sharers: int = 1,
        transfer: int | None = None,
        statistics: Sequence[Statistic] = ALWAYS,
    ) -> None:
        """Prepare; the device is not touched yet.

        Args:
            kind: `cpu` or `cuda`.
            row_bytes: of a row of the largest block.
            lanes: blocks computed side by side.
            sharers: workers that compute on the same GPU, this one included.
            transfer: bytes of a row that are copied at once; default: what a GPU affords, and on
                the processor no copies.
        """
        self.torch = torch.device(kind)
        self.transfer = transfer
        self._num_checkpoints = len(tensors[0].dtypes)
        longest = batch_elements(self._num_checkpoints)
        self.least = longest * max(map(width, tensors)) + ROW_ALIGNMENT
        """Bytes of a row that hold any batch, wherever it begins."""
        # as in a host's memory, and the batch of products of short sums
        self._beside = (
            scratch_bytes(tensors, statistics) + 4 * (PIECE // SHORT_SUM) * self._num_checkpoints**2
        )
        self._row_bytes, self._lanes, self._sharers = row_bytes, lanes, sharers
        self._idle: LifoQueue[Lane] | None = None
        self._changing = threading.Lock()

    @property
    def name(self) -> str:
        """The name of the processor or GPU, as results carry it."""
        if self.torch.type == "cuda":
            return torch.cuda.get_device_name(self.torch)
        return "cpu " + torch.backends.cpu.get_cpu_capability()

    def open(self) -> None:
        """See what the device has free, before anything is computed on it.

        Raises:
            RequestError: there is none.
            DeviceFull: it cannot even be looked at.
        """
        with self._changing:
            if self._idle is not None:
                return
            if self.torch.type == "cuda":
                choose_device("cuda")
                if self.transfer is None:
                    self.transfer = self._first_transfer()
            self._idle = LifoQueue()
            for _ in range(self._lanes):
                self._idle.put(Lane(self))

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """Wait for a lane that nobody uses; the one used last is warm.

        Raises:
            RequestError: there is no such device.
            DeviceFull: it has no memory left.
        """
        self.open()
        assert self._idle is not None
        lane = self._idle.get()
        try:
            yield lane
        finally:
            self._idle.put(lane)

    def table(self, num_bytes: int) -> Block:
        """Return host memory for blocks: pinned if a GPU is to read it.

        Raises:
            HallmarksError: so much cannot be pinned.
        """
        if self.torch.type == "cpu":
            return np.empty(num_bytes, np.uint8)  # in huge pages, where torch's is in small ones
        return pinned(num_bytes)

    def halve(self, transfer: int) -> None:
        """Take half of a transfer that was too much, for the rest of the run.

        Raises:
            DeviceFull: it was the least that can be.
        """
        with self._changing:
            if transfer <= self.least:
                needed = 2 * self._num_checkpoints * self.least + self._beside
                free, total = memory_of(self.torch)
                raise DeviceFull(
                    f"{self.name}: out of memory: {self._num_checkpoints} checkpoints take"
                    f" {show_size(needed, up=True)} at least, {show_size(free)} of"
                    f" {show_size(total)} are free",
                    "is another program using it? otherwise use fewer --max-workers, fewer checkpoints with"
                    " --steps, or --device cpu",
                )
            half = max(self.least, transfer // 2 // ROW_ALIGNMENT * ROW_ALIGNMENT)
            self.transfer = min(half, self.transfer or half)  # another lane may have halved it

    def _first_transfer(self) -> int:
        try:
            free, _ = memory_of(self.torch)
        except RuntimeError as error:  # no memory for what CUDA itself needs
            raise DeviceFull(
                f"--device cuda: {str(error).splitlines()[0]}", "is another program using the GPU?"
            ) from None
        lanes = self._lanes * self._sharers
        affordable = affordable_transfer(free, lanes, self._num_checkpoints, self._beside)
        part = -(-self._row_bytes // TRANSFERS // ROW_ALIGNMENT) * ROW_ALIGNMENT
        return max(self.least, min(affordable, part))


class Lane:
    """Computes one block at a time, in memory of its own on the device."""

    def __init__(self, device: Device) -> None:
        """Prepare; nothing is allocated yet."""
        self._device = device
        self._api: Any = torch.cuda if device.torch.type == "cuda" else torch.cpu
        self._computing, self._copying = self._api.Stream(), self._api.Stream()
        self._scratch: Scratch | None = None
        self._buffers: list[Tensor] = []  # two transfers at most

    def add(self, block: Block, pieces: Sequence[Batch], accumulator: Accumulator) -> None:
        """Add the batches of a block to what lacks them; the block is free for use then.

        Raises:
            DeviceFull: there is no memory for a single piece.
        """
        # it is only read; from_numpy warns where it may not be written
        table = torch.from_dlpack(block)
        rows = Rows(table, [row.data for row in block])
        while pieces := [batch for batch in pieces if batch.lacking]:
            transfer = self._device.transfer
            if not self._added(table, rows, pieces, accumulator, transfer):
                self._scratch, self._buffers = None, []
                torch.cuda.empty_cache()
                self._device.halve(transfer or 0)

    def _added(
        self,
        table: Tensor,
        rows: Rows,
        pieces: Sequence[Batch],
        accumulator: Accumulator,
        transfer: int | None,
    ) -> bool:
        """Add batches; return False if memory ran out, with nothing left of what filled it."""
        try:
            with self._api.stream(self._computing):
                self._work_through(table, rows, pieces, accumulator, transfer)
        except RuntimeError as error:
            if transfer is None or not ran_out_of_memory(error):
                raise
            return False
        finally:  # no copy may still read the block, nor write into a buffer
            if self._device.torch.type == "cuda":
                self._copying.synchronize()
        return True

    def _work_through(
        self,
        table: Tensor,
        rows: Rows,
        pieces: Sequence[Batch],
        accumulator: Accumulator,
        size: int | None,
    ) -> None:
        if size is None:
            origin = np.zeros(len(table), np.int64)
            self._compute(Transfer(list(pieces), origin, origin), table, rows, accumulator)
            return
        divided = list(transfers(pieces, size))
        copied = self._copied(table, divided[0], size, 0)
        for number, transfer in enumerate(divided, 1):
            self._computing.wait_stream(self._copying)
            buffer = copied
            if number < len(divided):
                copied = self._copied(table, divided[number], size, number % 2)
            self._compute(transfer, buffer, rows, accumulator)

    def _copied(self, table: Tensor, transfer: Transfer, size: int, number: int) -> Tensor:
        """Return a buffer into which a transfer is on its way."""
        if self._buffers and self._buffers[0].shape[1] != size:
            self._buffers = []  # another lane ran out of memory
        if number == len(self._buffers):
            shape = len(table), size
            self._buffers.append(torch.empty(shape, dtype=torch.uint8, device=self._device.torch))
        buffer = self._buffers[number]
        self._copying.wait_stream(self._computing)  # which may still read what lay there
        with self._api.stream(self._copying):
            # row by row: what is not one run, versions of torch gather in unpinned memory first
            for target, row, begin, end in zip(
                buffer, table, transfer.begins.tolist(), transfer.ends.tolist(), strict=True
            ):
                target[: end - begin].copy_(row[begin:end], non_blocking=True)
        return buffer

    def _compute(
        self,
        transfer: Transfer,
        table: Tensor,
        rows: Rows,
        accumulator: Accumulator,
    ) -> None:
        if self._scratch is None:
            self._scratch = Scratch(len(table), self._device.torch)
        for batch in transfer.batches:
            values, spacing = decoded(transfer.stored(batch, table), self._scratch), None
            if batch.facts.scales:
                given = {
                    k: scales.to(values.device) for k, scales in batch.scales(rows.table).items()
                }
                values, spacing = scaled(values, batch.facts, batch.start, given, self._scratch)
            while batch.lacking:
                places = batch.lacking[-1]
                apart = None if spacing is None else _columns(spacing, places)
                of_places = _columns(values, places)
                accumulator.add(
                    Pieces(places, of_places, rows.stored, batch.begins, self._scratch, apart)
                )
                batch.lacking.pop()


class Rows(NamedTuple):
    """The rows of a block, in the host's memory."""

    table: Tensor
    stored: Sequence[memoryview]


def _columns(table: Tensor, places: Sequence[PiecePlace]) -> Tensor:
    """Return the elements of pieces, of those that were decoded with them."""
    first, last = places[0].columns, places[-1].columns
    if isinstance(first, slice) and isinstance(last, slice):
        return table[:, places[0].offset + first.start : places[-1].offset + last.stop]
    if isinstance(first, slice):
        return table
    return table.index_select(1, torch.from_numpy(first + places[0].offset).to(table.device))


def choose_device(wanted: str) -> str:
    """Return the torch device that `--device` means on this machine.

    Raises:
        RequestError: `cuda` where there is none.
    """
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise RequestError("--device cuda: this machine has no CUDA device", "use --device cpu")
    return "cuda" if wanted in ("cuda", "auto") and has_cuda else "cpu"


def memory_of(gpu: torch.device) -> tuple[int, int]:
    """Return how many bytes of a GPU are free, and how many there are."""
    return torch.cuda.mem_get_info(gpu)


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error says so; what libraries allocate by themselves has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )


def pinned(num_bytes: int) -> Block:
    """Return memory that a GPU reads while this process goes on.

    Of exactly this size: torch's own pinned memory comes in powers of two.

    Raises:
        HallmarksError: so much cannot be pinned.
    """
    # pages of its own: none may be pinned twice
    whole = -(-num_bytes // _PAGE) * _PAGE
    owner = np.empty(whole + _PAGE, np.uint8)
    skipped = -owner.ctypes.data % _PAGE
    address = owner.ctypes.data + skipped
    cudart: Any = torch.cuda.cudart()
    failed = int(cudart.cudaHostRegister(address, whole, 0))
    if failed:
        raise HallmarksError(
            f"{show_size(num_bytes)} of memory cannot be pinned (CUDA error {failed})",
            "use less --memory",
        )
    weakref.finalize(owner, cudart.cudaHostUnregister, address)
    return owner[skipped : skipped + num_bytes]
