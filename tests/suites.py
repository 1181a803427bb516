"""Made-up suites of checkpoints in a directory, and explicit weights read back from any suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from pipeline.checkpoint.dtypes import WEIGHT_DTYPES
from pipeline.checkpoint.names import position
from tests.reference import Matrix

TORCH: dict[str, torch.dtype] = {
    name: getattr(torch, dtype.torch) for name, dtype in WEIGHT_DTYPES.items()
}


def write_suite(
    directory: Path,
    tensors: Mapping[str, NDArray[np.float64]],
    dtype: str | Sequence[str] = "F32",
    steps: Sequence[int] | None = None,
) -> Path:
    """Write one folder per checkpoint; each tensor is given as (K, *shape)."""
    count = len(next(iter(tensors.values())))
    dtypes = [dtype] * count if isinstance(dtype, str) else list(dtype)
    for k in range(count):
        folder = directory / f"step{steps[k] if steps else k}"
        folder.mkdir(parents=True)
        values = {
            name: torch.from_numpy(np.ascontiguousarray(rows[k])).to(TORCH[dtypes[k]])
            for name, rows in tensors.items()
        }
        save_file(values, folder / "model.safetensors")
    return directory


def stored_weights(directory: Path) -> dict[str, Matrix]:
    """Return (K, numel) float64 values of every tensor, as the library that wrote them reads them."""
    folders = sorted(directory.iterdir(), key=lambda folder: position(folder.name).order)
    rows: dict[str, list[NDArray[np.float64]]] = {}
    for folder in folders:
        for file in folder.glob("*.safetensors"):
            for name, values in load_file(file).items():
                rows.setdefault(name, []).append(values.double().numpy().reshape(-1))
    return {name: np.stack(values) for name, values in rows.items()}


def trajectory(
    kind: str, count: int, numel: int, relative_step: float, seed: int = 0
) -> NDArray[np.float64]:
    """Return (K, numel) values around 0.02 in size, moving by about `relative_step` each time."""
    rng = np.random.default_rng(seed)
    start, across = 0.02 * rng.standard_normal((2, numel))
    rows = [start]
    for k in range(1, count):
        noise = 0.02 * rng.standard_normal(numel)
        move = {
            "walk": noise,
            "smooth": across + 0.3 * noise,
            "decaying": (across + noise) / (1 + k),
            "folding": (-1) ** k * across + 0.05 * noise,
            "scattered": noise,
        }[kind]
        rows.append((start if kind == "scattered" else rows[-1]) + relative_step * move)
    return np.stack(rows)
