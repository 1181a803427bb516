"""Train only the scales and shifts of batch norm or layer norm from some step on.

    python -m jobs.studies.norms_only --store STORE

Compared with full training, with stopping at that step, and with training as many weights that are drawn
from the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import click
import torch

from jobs.console import run as run_command
from jobs.studies.experiment import Observations, experiment_options, measured, results_folder
from jobs.studies.variants import compared, measured_now, show
from pipeline.checkpoint.roles import roles
from pipeline.store.query import Store
from pipeline.sweep.grid import Run
from pipeline.sweep.run import Place
from pipeline.sweep.train import Training

SHARES = (0.0, 0.05, 0.1, 0.25, 0.5)
"""Of the steps, after which only some weights are trained."""


def is_measured(run: Run) -> bool:
    """Return whether a run of the sweep is of a training that is trained again."""
    return run.settings.schedule == "cosine" and run.settings.network in ("cnn", "vit")


def measure(run: Run, place: Place) -> Observations:
    """Return what each variant came to."""
    training = Training(run.settings)
    last = training.last_step
    named = roles({name: tuple(w.shape) for name, w in training.network.named_parameters()})
    norms = {name for name, role in named.items() if role.component == "norm"}
    sizes = {name: w.numel() for name, w in training.network.named_parameters()}
    share = sum(sizes[name] for name in norms) / sum(sizes.values())
    variants: dict[tuple[str, str], Mapping[str, float]] = {}
    for start in SHARES:
        at = f"{start:.0%}"
        training.run_to(round(start * last))
        variants["stopped", at] = measured_now(training)
        by_norms = training.branch()
        by_norms.train_only(norms.__contains__)
        by_norms.run_to(last)
        variants["norms alone", at] = measured_now(by_norms) | {"trained_share": share}
        drawn = training.branch()
        drawn.run_to(last, _all_but(drawn, share, run.settings.seed))
        variants["as many drawn weights", at] = measured_now(drawn) | {"trained_share": share}
    training.run_to(last)
    saturated = {"saturation_share": _saturation_step(run.name, place.store) / last}
    return compared(run.settings.network, measured_now(training) | saturated, variants)


def _saturation_step(run: str, store: str) -> float:
    query = "SELECT saturation_step FROM redundancy WHERE run = ? AND scope = 'model'"
    ((step,),) = Store(store).sql(query, [run]).fetchall()
    return step


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


@click.command()
@experiment_options("late-training")
def norms_only(config: str, store: str, max_workers: int | None, **_: object) -> int:
    """Train only norms from some step on, and compare with full training."""
    by_seed = measured(config, store, measure, max_workers, is_measured)
    show(by_seed, results_folder(store) / "norms_only", ("trained_share", "saturation_share"))
    return 0


if __name__ == "__main__":
    from jobs.studies.norms_only import norms_only as command  # its functions go to processes

    run_command(command)
