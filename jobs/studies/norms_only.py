"""Train only the scales and shifts of batch norm or layer norm from some step on.

    python -m jobs.studies.norms_only --store STORE

Compared with full training, with stopping at that step, and with training as many weights that are drawn
from the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from jobs.studies.experiment import FULL, Experiment, Result, Trajectory, conduct
from pipeline.checkpoint.roles import roles
from pipeline.sweep.train import Training

SHARES = (0.0, 0.05, 0.1, 0.25, 0.5)
"""Of the steps, after which only some weights are trained."""


def measure(trajectory: Trajectory) -> Iterator[Result]:
    """Yield what each variant came to."""
    training = Training(trajectory.settings)
    last = training.last_step
    named = roles({name: tuple(w.shape) for name, w in training.network.named_parameters()})
    norms = {name for name, role in named.items() if role.component == "norm"}
    sizes = {name: w.numel() for name, w in training.network.named_parameters()}
    share = sum(sizes[name] for name in norms) / sum(sizes.values())
    for start in SHARES:
        at = f"{start:.0%}"
        training.run_to(round(start * last))
        yield Result("stopped", at, training.metrics())
        by_norms = training.branch()
        by_norms.train_only(norms.__contains__)
        by_norms.run_to(last)
        yield Result("norms only", at, by_norms.metrics() | {"trained_share": share})
        drawn = training.branch()
        drawn.run_to(last, _all_but(drawn, share, trajectory.settings.seed))
        yield Result("as many drawn weights", at, drawn.metrics() | {"trained_share": share})
    training.run_to(last)
    saturation = "SELECT saturation_step FROM redundancy WHERE run = $run AND scope = 'model'"
    ((step,),) = trajectory.sql(saturation)
    yield Result(FULL, "", training.metrics() | {"saturation": step / last})


def _all_but(training: Training, share: float, seed: int) -> Callable[[float], None]:
    """Return what puts all weights back after a step, but for a share that is drawn."""
    generator = torch.Generator().manual_seed(seed)
    kept = [
        (weights, torch.rand(weights.shape, generator=generator) >= share, weights.detach().clone())
        for weights in training.network.parameters()
    ]

    def put_back(_: float) -> None:
        with torch.no_grad():
            for weights, stays, before in kept:
                weights.copy_(torch.where(stays, before, weights))

    return put_back


EXPERIMENT = Experiment(
    "norms-only",
    {
        "cnn": {"network": "cnn", "epochs": 10},
        "vit": {"network": "vit", "optimizer": "adamw", "depth": 2, "epochs": 15},
    },
    measure,
    "share of the training before",
)

if __name__ == "__main__":
    conduct(EXPERIMENT)
