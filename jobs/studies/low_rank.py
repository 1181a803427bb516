"""Train on in the span of the leading components of the first part of the trajectory.

    python -m jobs.studies.low_rank --store STORE

All weights θ after each step of the first part are its trajectory; P are its m leading principal components.
From the end of the first part, θ_E, each step is followed by a projection: θ ← θ_E + P Pᵀ (θ − θ_E), so that m
numbers are trained (Li 2022, "Low dimensional trajectory hypothesis is true"). Compared with full training, with
stopping at E (no component), and with the span of m directions that are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import click
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from jobs.console import run as run_command
from jobs.studies.experiment import Observations, experiment_options, measured, results_folder
from jobs.studies.variants import compared, measured_now, show
from pipeline.store.query import Store
from pipeline.sweep.grid import Run
from pipeline.sweep.run import Place
from pipeline.sweep.train import Training

SHARES = (0.1, 0.3)
"""Of the steps: how long the first part is."""
COMPONENTS = (1, 3, 10, 30)


def is_measured(run: Run) -> bool:
    """Return whether a run of the sweep is of a training that is trained again."""
    return run.settings.schedule == "cosine" and run.settings.network in ("mlp", "cnn")


def measure(run: Run, place: Place) -> Observations:
    """Return what each variant came to."""
    training = Training(run.settings)
    last = training.last_step
    path = [_weights(training)]
    generator = torch.Generator().manual_seed(run.settings.seed)
    variants: dict[tuple[str, str], Mapping[str, float]] = {}
    for share in SHARES:
        training.run_to(round(share * last), lambda _: path.append(_weights(training)))
        rows = torch.stack(path)
        leading = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh
        shape = rows.shape[1], max(COMPONENTS)
        drawn = torch.linalg.qr(torch.randn(shape, generator=generator)).Q.T
        variants[f"components of the first {share:.0%}", "0"] = measured_now(training)
        for count in COMPONENTS:
            for name, directions in ("components of", leading), ("drawn directions after", drawn):
                branch = training.branch()
                branch.run_to(last, _kept_in(branch, directions[:count]))
                variants[f"{name} the first {share:.0%}", str(count)] = measured_now(branch)
    training.run_to(last)
    rank = {"rank_95": _rank(run.name, place.store)}
    return compared(run.settings.network, measured_now(training) | rank, variants)


def _rank(run: str, store: str) -> float:
    """Return how many components hold 95 % of the variance of the whole trajectory's checkpoints."""
    query = "SELECT rank_95 FROM redundancy WHERE run = ? AND scope = 'model'"
    ((rank,),) = Store(store).sql(query, [run]).fetchall()
    return rank


def _weights(training: Training) -> Tensor:
    return parameters_to_vector(training.network.parameters()).detach().clone()


def _kept_in(training: Training, directions: Tensor) -> Callable[[float], None]:
    """Return what lets weights move in some directions only: (m, weights), orthonormal."""
    origin = _weights(training)

    def project(_: float) -> None:
        moved = directions.T @ (directions @ (_weights(training) - origin))
        vector_to_parameters(origin + moved, training.network.parameters())

    return project


@click.command()
@experiment_options("late-training")
def low_rank(config: str, store: str, max_workers: int | None, **_: object) -> int:
    """Train in the span of leading components, and compare with full training."""
    by_seed = measured(config, store, measure, max_workers, is_measured)
    show(by_seed, results_folder(store) / "low_rank", ("rank_95",))
    return 0


if __name__ == "__main__":
    from jobs.studies.low_rank import low_rank as command  # its functions go to processes

    run_command(command)
