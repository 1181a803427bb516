"""Clean trajectories of many kinds: small networks, really trained, with nothing wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

EVEN = tuple(range(0, 301, 10))
LOGARITHMIC = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PYTHIA = (0, 1, 2, 4, 8, 16, 32, 64, 128, *range(256, 1537, 128))


@dataclass(frozen=True)
class Run:
    """How one of them is trained and saved; `rate` gives the learning rate's factor at a step."""

    optimizer: str = "adam"
    peak: float = 3e-3
    rate: Callable[[int], float] = lambda step: 1.0
    steps: tuple[int, ...] = EVEN
    dtype: str = "F32"
    decay: float = 0.0
    momentum: float = 0.0
    batch: int = 64
    frozen: str = ""
    new_data_at: int | None = None


def _warm_up(step: int) -> float:
    return min(1.0, (step + 1) / 50)


def _cosine(step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / 300)))


RUNS = {
    "adam": Run(),
    "sgd": Run("sgd", 0.05),
    "momentum": Run("sgd", 0.02, momentum=0.9),
    "warm-up": Run(rate=_warm_up),
    "cosine": Run(rate=_cosine),
    "to zero, linearly": Run(rate=lambda step: max(0.0, 1 - step / 300)),
    "restarts": Run(rate=lambda step: 0.5 * (1 + math.cos(math.pi * (step % 100) / 100))),
    "cyclic": Run(rate=lambda step: 0.1 + 0.9 * abs((step % 60) / 30 - 1)),
    "stages": Run(rate=lambda step: 1.0 if step < 150 else 0.1),
    "stages of data": Run(new_data_at=150),
    "new data, new rate": Run(new_data_at=150, rate=lambda step: 1.0 if step < 200 else 2.0),
    "weight decay": Run(decay=0.5),
    "weight decay to zero": Run(peak=1e-2, decay=20.0),
    "sgd, weight decay": Run("sgd", 0.05, decay=0.05),
    "logarithmic steps": Run(steps=LOGARITHMIC),
    "pythia's steps": Run(peak=1e-3, steps=PYTHIA, dtype="F16"),
    "bf16": Run(dtype="BF16"),
    "bf16, cosine": Run(rate=_cosine, dtype="BF16"),
    "fp16": Run(dtype="F16"),
    "frozen layer": Run(frozen="0."),
    "batches of 2": Run(batch=2),
    "warm-up and cosine, fp16": Run(
        rate=lambda step: _warm_up(step) * _cosine(step), dtype="F16", peak=1e-2
    ),
}

COVERED = (
    "sgd",
    "cosine",
    "to zero, linearly",
    "cyclic",
    "weight decay",
    "logarithmic steps",
    "fp16",
    "bf16",
)
"""Runs that are between others: those are in `make test`, these in `make test-all`."""


def train(run: Run) -> dict[str, torch.Tensor]:
    """Return (K, *shape) values of every tensor at the steps of the run."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8)
    )
    teachers = [nn.Linear(32, 8), nn.Linear(32, 8)]
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not (run.frozen and name.startswith(run.frozen)))
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = (
        torch.optim.AdamW(trained, run.peak, weight_decay=run.decay)
        if run.optimizer == "adam"
        else torch.optim.SGD(trained, run.peak, run.momentum, weight_decay=run.decay)
    )
    saved: dict[str, list[torch.Tensor]] = {name: [] for name, _ in network.named_parameters()}
    for step in range(run.steps[-1] + 1):
        if step in run.steps:
            for name, parameter in network.named_parameters():
                saved[name].append(parameter.detach().clone())
        for group in optimizer.param_groups:
            group["lr"] = run.peak * run.rate(step)
        teacher = teachers[run.new_data_at is not None and step >= run.new_data_at]
        inputs = torch.randn(run.batch, 32)
        loss = functional.mse_loss(network(inputs), torch.tanh(3 * teacher(inputs)).detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: torch.stack(values) for name, values in saved.items()}
