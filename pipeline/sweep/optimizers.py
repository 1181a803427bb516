"""What turns a gradient into the next weights: optimizers of torch, schedules of the learning rate, and
gradients of sharpness-aware minimization."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Muon, Optimizer

from pipeline.sweep.settings import Settings

_ADAMW_BETA2 = 0.999
"""torch's default."""
_DROPS = ((0.5, 0.1), (0.75, 0.1))
"""After which share of the steps the learning rate falls to which part, in schedule `step`: He 2016."""
_COOLDOWN = 0.2
"""Share of the steps in which schedule `wsd` goes down to 0 (Hägele 2024: 20 % does as well as a cosine)."""


def optimizers_of(settings: Settings, network: nn.Module) -> Sequence[Optimizer]:
    """Return the optimizers that each take a part of a network's weights."""
    rate, momentum, decay = settings.learning_rate, settings.momentum, settings.weight_decay

    def adamw(weights: Iterable[Tensor]) -> Optimizer:
        return AdamW(weights, lr=rate, betas=(momentum, _ADAMW_BETA2), weight_decay=decay)

    match settings.optimizer:
        case "sgd":
            weights = network.parameters()
            return [SGD(weights, lr=rate, momentum=momentum, weight_decay=decay)]
        case "adamw":
            return [adamw(network.parameters())]
        case _:
            named = list(network.named_parameters())
            matrices = [w for name, w in named if _is_matrix_within(name, w)]
            rest = [w for name, w in named if not _is_matrix_within(name, w)]
            muon = Muon(
                matrices,
                lr=rate,
                momentum=momentum,
                weight_decay=decay,
                adjust_lr_fn="match_rms_adamw",
            )
            return [muon, adamw(rest)]


def _is_matrix_within(name: str, weights: Tensor) -> bool:
    """Return whether Muon takes a tensor: a matrix, but no embedding and no output head (Jordan 2024)."""
    return weights.dim() == 2 and "layers." in name


def learning_rate(settings: Settings, step: int, last_step: int) -> float:
    """Return the learning rate of the step that comes after `step` of `last_step` are done."""
    warmup = round(settings.warmup * last_step)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    match settings.schedule:
        case "cosine":
            factor = 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, last_step - warmup))
        case "step":
            factor = math.prod(part for share, part in _DROPS if step >= share * last_step)
        case "wsd":
            factor = min(1.0, (last_step - step) / (_COOLDOWN * last_step))
        case _:
            factor = 1.0
    return settings.learning_rate * factor


def backward(network: nn.Module, loss_of: Callable[[], Tensor], sam_rho: float) -> float:
    """Leave the gradient of a loss in the weights, and return the loss.

    With `sam_rho` it is the gradient at the weights θ + ρ ∇/‖∇‖ (Foret 2021). Statistics of batch norm are
    those of θ alone.
    """
    loss = loss_of()
    loss.backward()
    if sam_rho > 0:
        weights = [w for w in network.parameters() if w.grad is not None]
        gradients = [w.grad.clone() for w in weights if w.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))
        before = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for w, gradient in zip(weights, gradients, strict=True):
                w.add_(gradient * (sam_rho / (norm + 1e-12)))
        network.zero_grad()
        with _statistics_kept(network):
            loss_of().backward()
        with torch.no_grad():
            for w, kept in zip(weights, before, strict=True):
                w.copy_(kept)
    return loss.item()


@contextmanager
def _statistics_kept(network: nn.Module) -> Iterator[None]:
    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    before = [each.momentum for each in norms]
    for each in norms:
        each.momentum = 0.0
    try:
        yield
    finally:
        for each, momentum in zip(norms, before, strict=True):
            each.momentum = momentum
