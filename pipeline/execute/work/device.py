"""The blocks of tiles on what computes them.

The processor uses a block where it lies. A GPU multiplies the pieces of large parts, and nothing else: it
gets the block in one copy, from pinned memory. While one lane waits for the GPU, others have the processor.
Where the GPU's memory runs out, fewer lanes use it, and the work goes on with the pieces that are not in yet.

Letters: K checkpoints.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import DeviceFull, RequestError
from pipeline.execute.work.batches import Batch, RangeOfParts, batches, of_places
from pipeline.execute.work.gpu_lane import GpuLane, memory_of, pinned, ran_out_of_memory
from pipeline.execute.work.pull import Block
from pipeline.planning.align import AlignedTensor
from pipeline.planning.blocks import width
from pipeline.planning.memory import show_size
from pipeline.statistics.accumulator import Accumulator
from pipeline.statistics.gpu import gpu_scratch_bytes, suits_gpu
from pipeline.statistics.matrices import MatrixAccumulator
from pipeline.statistics.piece import OfGpu, Pieces, Scratch, decoded
from pipeline.statistics.scaling import scaled

SHARE_OF_FREE = 0.5
"""Of a GPU's free memory, for all who compute on it: the rest is for what cuBLAS takes for itself
(on Hopper 32 MiB for each stream that a thread has used), for gaps in the allocator's memory and for
other programs."""

GPU_LANES = 3
"""At most: one copies while one computes and one fetches what was computed. For each of them and each thread
cuBLAS keeps 32 MiB."""

THREADS_OF_A_GPU = 4
"""Of one process: they take turns with the interpreter (154 checkpoints on an H200 with 16 cores: 4.6 GB/s with
4, 5.6 with 8 and 5.5 with 16; on another such machine 4.5, 4.2 and 3.5)."""


class Device:
    """What computes in this process. Safe in threads."""

    def __init__(
        self,
        kind: str,
        tensors: Sequence[AlignedTensor],
        row_bytes: int,
        threads: int,
        sharers: int = 1,
        gpu_lanes: int | None = None,
    ) -> None:
        """Prepare; the device is not touched yet.

        Args:
            kind: `cpu` or `cuda`.
            row_bytes: of a row of the largest block.
            threads: blocks computed side by side.
            sharers: workers that compute on the same GPU, this one included.
            gpu_lanes: how many of them use the GPU at once; default: as many as its memory holds, up
                to GPU_LANES, and none on the processor.
        """
        self.torch = torch.device(kind)
        self.num_checkpoints = len(tensors[0].dtypes)
        self._block_bytes = self.num_checkpoints * row_bytes
        self.lane_bytes = self._block_bytes + gpu_scratch_bytes(
            self.num_checkpoints, max(map(width, tensors))
        )
        """Of the GPU's memory, for each lane on it."""
        self.gpu_lanes = gpu_lanes
        """How many are left; None before the GPU was looked at."""
        self._threads, self._sharers = threads, sharers
        self._idle: list[Lane] = []
        self._idle_on_gpu: list[GpuLane] = []
        self.has_gpu = kind == "cuda" or bool(gpu_lanes)
        """Whether large parts are multiplied on a GPU."""
        self._is_open = self._last_failed = False
        self._changed = threading.Condition()

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
        with self._changed:
            if self._is_open:
                return
            if self.torch.type == "cuda":
                choose_device("cuda")
                if self.gpu_lanes is None:
                    self.gpu_lanes = self._affordable_lanes()
            self._idle = [Lane(self) for _ in range(self._threads)]
            self._idle_on_gpu = [GpuLane(self.torch) for _ in range(self.gpu_lanes or 0)]
            self._is_open = True

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """Wait for a lane that nobody uses; the one used last is warm.

        Raises:
            RequestError: there is no such device.
            DeviceFull: it cannot even be looked at.
        """
        self.open()
        with self._changed:
            self._changed.wait_for(lambda: self._idle)
            lane = self._idle.pop()
        try:
            yield lane
        finally:
            with self._changed:
                self._idle.append(lane)
                self._changed.notify_all()

    def take_gpu_lane(self) -> GpuLane:
        """Wait for a lane on the GPU that nobody uses.

        Raises:
            DeviceFull: there is none left.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._idle_on_gpu or not self.gpu_lanes)
            if not self.gpu_lanes:
                raise self._full()
            return self._idle_on_gpu.pop()

    def return_gpu_lane(self, lane: GpuLane, ran_out: bool) -> None:
        """Let others use a lane, or do without it for the rest of the run if memory ran out in it.

        The last one gets a second chance: another may have held memory until now.
        """
        if ran_out:
            lane.release()
        with self._changed:
            assert self.gpu_lanes
            self._last_failed, failed_before = ran_out and self.gpu_lanes == 1, self._last_failed
            if ran_out and (self.gpu_lanes > 1 or failed_before):
                self.gpu_lanes -= 1
            else:
                self._idle_on_gpu.append(lane)
            self._changed.notify_all()

    def table(self, num_bytes: int) -> Block:
        """Return host memory for blocks: pinned if a GPU is to read it.

        Raises:
            HallmarksError: so much cannot be pinned.
        """
        if self.torch.type == "cpu":
            return np.empty(num_bytes, np.uint8)  # in huge pages, where torch's is in small ones
        return pinned(num_bytes)

    def _affordable_lanes(self) -> int:
        try:
            free, _ = memory_of(self.torch)
        except RuntimeError as error:  # no memory for what CUDA itself needs
            raise DeviceFull(
                f"--device cuda: {str(error).splitlines()[0]}", "is another program using the GPU?"
            ) from None
        affordable = int(SHARE_OF_FREE * free) // self._sharers // self.lane_bytes
        return max(1, min(affordable, self._threads, GPU_LANES))

    def _full(self) -> DeviceFull:
        free, total = memory_of(self.torch)
        return DeviceFull(
            f"{self.name}: out of memory: {self.num_checkpoints} checkpoints take"
            f" {show_size(self.lane_bytes, up=True)} at least, {show_size(free)} of"
            f" {show_size(total)} are free",
            "is another program using it? otherwise use fewer --max-workers, fewer checkpoints with"
            " --steps, or --device cpu",
        )


class Lane:
    """Computes one block at a time, with memory of its own for what the processor does."""

    def __init__(self, device: Device) -> None:
        """Prepare; nothing is allocated yet."""
        self._device = device
        self._scratch = Scratch(device.num_checkpoints, torch.device("cpu"))

    def add(
        self,
        block: Block,
        ranges: Sequence[RangeOfParts],
        accumulator: Accumulator | MatrixAccumulator,
    ) -> None:
        """Add the ranges of a block to the parts that they belong to; the block is free for use then.

        Raises:
            DeviceFull: the GPU has no memory for a block.
        """
        # it is only read; from_numpy warns where it may not be written
        table, rows = torch.from_dlpack(block), [row.data for row in block]
        for place, parts in ranges:
            range_ = place.range
            accumulator.add_stored(parts, range_.first, range_.stop, rows, place.column)
        if self._device.has_gpu:
            on_gpu, ranges = _divided(ranges)
            of_block = list(batches(on_gpu, len(table), on_gpu=True))
            if of_block:
                self._add_products(of_block, self._products(of_block, table), table, accumulator)
        for batch in batches(ranges, len(table)):
            self._add(batch, table, accumulator)

    def _products(self, of_block: Sequence[Batch], table: Tensor) -> list[list[OfGpu]]:
        """Return what a GPU makes of each list of pieces of each batch."""
        while True:
            lane, ran_out = self._device.take_gpu_lane(), False
            try:
                return lane.products(of_block, table)
            except RuntimeError as error:
                ran_out = ran_out_of_memory(error)
                if not ran_out:
                    raise
            finally:
                self._device.return_gpu_lane(lane, ran_out)

    def _add_products(
        self,
        of_block: Sequence[Batch],
        products: Sequence[Sequence[OfGpu]],
        table: Tensor,
        accumulator: Accumulator | MatrixAccumulator,
    ) -> None:
        for batch, of_batch in zip(of_block, products, strict=True):
            stored = batch.stored_in(table)
            for places, of_gpu in zip(batch.pieces, of_batch, strict=True):
                accumulator.add(Pieces(places, stored, self._scratch, of_gpu=of_gpu))

    def _add(
        self, batch: Batch, table: Tensor, accumulator: Accumulator | MatrixAccumulator
    ) -> None:
        stored = batch.stored_in(table)
        values, spacing = decoded(stored, self._scratch), None
        if batch.facts.scales:
            scales = batch.scales(table)
            values, spacing = scaled(values, batch.facts, batch.start, scales, self._scratch)
        for places in batch.pieces:
            pieces = Pieces(
                places,
                stored,
                self._scratch,
                of_places(values, places),
                None if spacing is None else of_places(spacing, places),
            )
            accumulator.add(pieces)


def _divided(
    ranges: Sequence[RangeOfParts],
) -> tuple[list[RangeOfParts], list[RangeOfParts]]:
    """Return the ranges with their parts that a GPU multiplies, and with the others."""
    divided: tuple[list[RangeOfParts], list[RangeOfParts]] = [], []
    for place, parts in ranges:
        for of_gpu, chosen in zip((True, False), divided, strict=True):
            suited = [(key, facts) for key, facts in parts if suits_gpu(facts) == of_gpu]
            if suited:
                chosen.append((place, suited))
    return divided


def choose_device(wanted: str) -> str:
    """Return the torch device that `--device` means on this machine.

    Raises:
        RequestError: `cuda` where there is none.
    """
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        raise RequestError("--device cuda: this machine has no CUDA device", "use --device cpu")
    return "cuda" if wanted in ("cuda", "auto") and has_cuda else "cpu"
