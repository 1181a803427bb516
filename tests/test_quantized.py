"""Figures of quantized weights are those of codes times scales, whatever the scheme."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pipeline

NAME = "layers.0.mlp.up_proj.weight"
ROWS, COLUMNS = 300, 140  # three pieces, blocks at the edges that are cut
COUNT = 4


def _blocks(k: int, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 + k)
    return torch.rand(rows, columns, generator=generator) * 4.0**k / 100


def _codes(k: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(k)
    return (torch.randn(ROWS, COLUMNS, generator=generator) * 50).to(dtype)


SCHEMES: dict[str, tuple[torch.dtype, str, Callable[[int], torch.Tensor], int, int]] = {
    # name: format of codes, name of scales, scales, rows and columns that share one
    "blocks": (torch.float8_e4m3fn, f"{NAME}_scale_inv", lambda k: _blocks(k, 3, 2), 128, 128),
    "rows": (torch.float8_e4m3fn, f"{NAME}_scale", lambda k: _blocks(k, ROWS, 1), 1, COLUMNS),
    "one": (torch.float8_e5m2, f"{NAME}_scale", lambda k: _blocks(k, 1, 1)[0, 0], ROWS, COLUMNS),
    "half": (torch.float8_e4m3fn, f"{NAME}_scale", lambda k: _blocks(k, 3, 2).bfloat16(), 128, 128),
    "powers": (
        torch.float8_e4m3fn, NAME.replace("weight", "scale"),
        lambda k: torch.exp2(torch.full((3, 2), float(k))).to(torch.float8_e8m0fnu), 128, 128),
}  # fmt: skip


def dequantized(codes: torch.Tensor, scales: torch.Tensor, rows: int, columns: int) -> np.ndarray:
    grid = scales.double().reshape(-(-ROWS // rows), -(-COLUMNS // columns)).numpy()
    values = codes.double().numpy().copy()
    for i in range(ROWS):
        for j in range(COLUMNS):
            values[i, j] *= grid[i // rows, j // columns]
    return values.reshape(-1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_times_scales(scheme: str, tmp_path: Path) -> None:
    dtype, scale, make, rows, columns = SCHEMES[scheme]
    expected = []
    for k in range(COUNT):
        codes, scales = _codes(k, dtype), make(k)
        folder = tmp_path / "suite" / f"checkpoint-{k}"
        folder.mkdir(parents=True)
        if k == COUNT - 1:  # a copy that is not quantized, at the end
            values = torch.from_numpy(dequantized(codes, scales, rows, columns)).float()
            save_file({NAME: values.view(ROWS, COLUMNS)}, folder / "model.safetensors")
        else:
            save_file({NAME: codes, scale: scales}, folder / "model.safetensors")
        expected.append(dequantized(codes, scales, rows, columns))
    pipeline.analyze(
        tmp_path / "suite", tmp_path / "store", executor="local", run="r", exclude=["scale"]
    )
    query = "SELECT i, j, dot FROM similarity WHERE scope = 'model'"
    for i, j, dot in pipeline.open_store(tmp_path / "store").sql(query).fetchall():
        size = np.linalg.norm(expected[i]) * np.linalg.norm(expected[j])
        assert abs(dot - expected[i] @ expected[j]) <= 1e-6 * size


def test_equal_codes_of_other_scales_are_other_weights(tmp_path: Path) -> None:
    for k in range(3):
        folder = tmp_path / "suite" / f"checkpoint-{k}"
        folder.mkdir(parents=True)
        state = {NAME: _codes(0, torch.float8_e4m3fn), f"{NAME}_scale_inv": _blocks(k, 3, 2)}
        save_file(state, folder / "model.safetensors")
    pipeline.analyze(tmp_path / "suite", tmp_path / "store", executor="local", run="r")
    store = pipeline.open_store(tmp_path / "store")
    kinds = [row[0] for row in store.sql("SELECT kind FROM findings").fetchall()]
    assert "frozen_tensor" not in kinds and not any("repeat" in kind for kind in kinds)


def test_packed_weights_are_a_warning(tmp_path: Path) -> None:
    for k in range(3):
        folder = tmp_path / "suite" / f"checkpoint-{k}"
        folder.mkdir(parents=True)
        module = NAME.removesuffix("weight")
        state = {
            f"{module}qweight": torch.full((4, 8), k, dtype=torch.int32),
            f"{module}scales": torch.ones(1, 8), "norm.weight": torch.ones(8) + k,
        }  # fmt: skip
        save_file(state, folder / "model.safetensors")
    pipeline.analyze(tmp_path / "suite", tmp_path / "store", executor="local", run="r")
    store = pipeline.open_store(tmp_path / "store")
    query = "SELECT message FROM findings WHERE kind = 'valueless_tensor' AND severity = 'warning'"
    ((message,),) = store.sql(query).fetchall()
    assert "qweight: weights packed as I32" in message
    assert [t.name for t in pipeline.plan(tmp_path / "suite").tensors] == ["norm.weight"]
