"""The least that a machine can do it in: reading once, the bare products, a decomposition a group.

All on all cores, each by the fastest way that was found; what takes long is timed on a share of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_WIDTHS = (1024, 4096, 16_384)
"""Columns of a product: with few checkpoints longer ones are faster, with many the shorter stay in cache."""
_SHARE_S = 0.3  # for which each way is timed
_BATCH = 64  # decompositions in one call, as NumPy takes them


@dataclass(frozen=True)
class Bound:
    """Seconds."""

    read: float
    product: float
    decompositions: float

    @property
    def seconds(self) -> float:
        """All of it: no machine has been seen to overlap them on its cores."""
        return self.read + self.product + self.decompositions


def on_all_cores(cores: int, work: Callable[[int], object]) -> float:
    """Return the seconds that `work(share)` takes, called once for each core, side by side."""
    started = time.perf_counter()
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(work, range(cores)))
    return time.perf_counter() - started


def read_seconds(files: Sequence[Path], cores: int) -> float:
    """Return the time of reading all files once, in 256 KiB reads into a buffer that stays."""

    def read(share: int) -> None:
        buffer = memoryview(bytearray(1 << 18))
        for file in files[share::cores]:
            with open(file, "rb", buffering=0) as opened:
                while opened.readinto(buffer):
                    pass

    return on_all_cores(cores, read)


def product_seconds(count: int, numel: int, cores: int) -> float:
    """Return the time of all float32 products u @ u.T of so many rows and columns, with u in cache."""
    return numel / max(
        _rate(cores, width, made(count, width, cores))
        for made in (_of_numpy, _of_torch)
        for width in _WIDTHS
    )


def decomposition_seconds(count: int, groups: int, cores: int) -> float:
    """Return the time of one `numpy.linalg.eigh` of n × n for each group."""
    rows = np.random.default_rng(0).standard_normal((count, count))
    batch = max(1, min(_BATCH, (1 << 20) // count**2))
    stack = np.broadcast_to(rows @ rows.T, (batch, count, count)).copy()
    return groups / _rate(cores, batch, lambda _: np.linalg.eigh(stack))


def _rate(cores: int, units: int, work: Callable[[int], object]) -> float:
    """Return units a second of all cores together, `work(share)` being of so many units."""
    from threadpoolctl import threadpool_limits

    calls = [0] * cores

    def repeat(share: int) -> None:
        until = time.perf_counter() + _SHARE_S
        while not calls[share] or time.perf_counter() < until:
            work(share)
            calls[share] += 1

    with threadpool_limits(1, user_api="blas"):
        work(0)  # the first call is not counted
        seconds = on_all_cores(cores, repeat)
    return units * sum(calls) / seconds


def _of_numpy(count: int, width: int, cores: int) -> Callable[[int], object]:
    rows = np.ones((count, width), np.float32)
    products = np.empty((cores, count, count), np.float32)
    return lambda share: np.matmul(rows, rows.T, out=products[share])


def _of_torch(count: int, width: int, cores: int) -> Callable[[int], object]:
    import torch

    torch.set_num_threads(1)
    rows, products = torch.ones((count, width)), torch.empty((cores, count, count))
    return lambda share: torch.mm(rows, rows.T, out=products[share])
