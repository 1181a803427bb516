"""A lane on a GPU: how a block gets there, and what comes back.

Letters: K checkpoints.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import HallmarksError
from pipeline.execute.work.batches import Batch, of_places
from pipeline.execute.work.pull import Block
from pipeline.planning.memory import show_size
from pipeline.statistics.gpu import Launched, launched
from pipeline.statistics.piece import OfGpu, Scratch, decoded

_PAGE = 4096


class GpuLane:
    """Multiplies the pieces of one block at a time, in memory of its own on a GPU."""

    def __init__(self, device: torch.device) -> None:
        """Prepare; nothing is allocated yet."""
        self._torch = device
        self._api: Any = torch.cuda if device.type == "cuda" else torch.cpu
        self._stream = self._api.Stream()
        self._scratch: Scratch | None = None
        self._buffer: Tensor | None = None

    def products(self, of_block: Sequence[Batch], table: Tensor) -> list[list[OfGpu]]:
        """Return what becomes of each list of pieces of each batch.

        Args:
            table: (K, bytes) the block.
        """
        with self._api.stream(self._stream):
            try:
                return [
                    [of_pieces.wait() for of_pieces in of_batch]
                    for of_batch in self._launched(of_block, table)
                ]
            finally:  # the block may be filled with other bytes then
                if self._torch.type == "cuda":
                    self._stream.synchronize()

    def _launched(self, of_block: Sequence[Batch], table: Tensor) -> list[list[Launched]]:
        if self._scratch is None:
            self._scratch = Scratch(len(table), self._torch, on_gpu=True)
        if self._buffer is None or self._buffer.numel() < table.numel():
            self._buffer = None  # before another is made
            self._buffer = torch.empty(table.numel(), dtype=torch.uint8, device=self._torch)
        # one run of memory: what is not, some versions of torch gather in unpinned memory first
        block = self._buffer[: table.numel()].view_as(table).copy_(table, non_blocking=True)
        of_batches: list[list[Launched]] = []
        for batch in of_block:
            values = decoded(batch.stored_in(block), self._scratch)
            of_batches.append(
                [
                    launched(of_places(values, places), places, self._scratch)
                    for places in batch.pieces
                ]
            )
        return of_batches

    def release(self) -> None:
        """Give the memory back."""
        self._scratch = self._buffer = None
        torch.cuda.empty_cache()


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
