"""Write the checkpoints that the pages ask about, and analyse them.   make examples

In a folder: small language models, trained on the project's licence, and drawn paths; and a store with a
run for each. Training is in float64, where rounding that differs from one processor to the next changes
no digit that a page shows; the checkpoints are stored in float32, as a training would.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import hallmarks
from jobs.language_model import Settings, Shape, train

LICENSE = Path(__file__).parent.parent / "LICENSE"
SHAPE = Shape(layers=3, width=32, heads=2, hidden=64, context=32)
TRAININGS = {
    "base": Settings(steps=160, batch=6),
    "seed-1": Settings(steps=160, batch=6, seed=1),
    "fast": Settings(steps=160, batch=6, peak_rate=8e-3),
}
"""What differs from `base` is in the name: another seed, four times the learning rate."""
CHECKPOINTS, WEIGHTS = 32, 20_000
"""Of a drawn path."""

Rows = NDArray[np.float64]
"""Of a path: (checkpoints, weights)."""


def straight(rng: np.random.Generator) -> Rows:
    """Return equal steps in one direction, each a little off it."""
    return np.arange(CHECKPOINTS)[:, None] * rng.standard_normal(WEIGHTS) + 0.3 * random(rng)


def random(rng: np.random.Generator) -> Rows:
    """Return equal steps, each in a direction of its own."""
    return np.cumsum(rng.standard_normal((CHECKPOINTS, WEIGHTS)), axis=0)


def redundant(rng: np.random.Generator) -> Rows:
    """Return a path that arrives in the first third, and then only shakes about where it is."""
    share = 1 - np.exp(-np.arange(CHECKPOINTS) / 3)
    shaking = 0.2 * rng.standard_normal((CHECKPOINTS, WEIGHTS))
    return 10 * share[:, None] * rng.standard_normal(WEIGHTS) + shaking


def oscillating(rng: np.random.Generator) -> Rows:
    """Return a path that goes forward slowly while it swings across, eight checkpoints a period."""
    forward, across = rng.standard_normal((2, WEIGHTS))
    k = np.arange(CHECKPOINTS)[:, None]
    return k * forward / 4 + 3 * np.sin(2 * np.pi * k / 8) * across


DRAWN: dict[str, Callable[[np.random.Generator], Rows]] = {
    path.__name__: path for path in (straight, random, redundant, oscillating)
}


def write(folder: Path) -> None:
    """Write checkpoints and a store, `hallmarks-store`, into an empty folder."""
    for name, settings in TRAININGS.items():
        with _double_precision():
            train(folder / name, settings=settings, shape=SHAPE, text=LICENSE.read_bytes())
        _round(folder / name, torch.float32)
    shutil.copytree(folder / "base", folder / "bf16")
    _round(folder / "bf16", torch.bfloat16)
    _write_faulty(folder / "base", folder / "faulty")
    for name, path in DRAWN.items():
        _write_drawn(folder / name, path)
    with chdir(folder):
        hallmarks.analyze_joint(["base", "seed-1"], run="seeds", executor="local")
        hallmarks.analyze("fast", by_head=True, executor="local")
        hallmarks.analyze("bf16", statistics="all", spectra=4, executor="local")
        for name in ("faulty", *DRAWN):
            hallmarks.analyze(name, executor="local")


@contextmanager
def _double_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _round(training: Path, dtype: torch.dtype) -> None:
    """Leave what a training leaves that saves its weights in another format."""
    for file in training.glob("step-*/model.safetensors"):
        weights = load_file(file)
        save_file({name: values.to(dtype) for name, values in weights.items()}, file)


def _write_faulty(training: Path, target: Path) -> None:
    """Write a training's checkpoints, three of which have come to harm."""
    shutil.copytree(training, target)
    shutil.rmtree(target / "step-60")
    shutil.copy(training / "step-140" / "model.safetensors", target / "step-80")
    file = target / "step-120" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(weights, file)


def _write_drawn(target: Path, path: Callable[[np.random.Generator], Rows]) -> None:
    rng = np.random.default_rng(0)
    rows = 100 * rng.standard_normal(WEIGHTS) + path(rng)
    for k, row in enumerate(rows):
        folder = target / f"step-{k}"
        folder.mkdir(parents=True)
        save_file({"weights": torch.from_numpy(row).float()}, folder / "model.safetensors")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if target.exists() and any(target.iterdir()):
        raise SystemExit(f"{target} is not empty")
    target.mkdir(parents=True, exist_ok=True)
    write(target)
    print(f"checkpoints and store: {target}")
