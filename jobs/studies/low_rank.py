"""Train on in the span of the leading components of the first part of the trajectory.

    python -m jobs.studies.low_rank --store STORE

All weights θ after each step of the first part are its trajectory; P are its m leading principal components.
From the end of the first part, θ_E, each step is followed by a projection: θ ← θ_E + P Pᵀ (θ − θ_E), so that m
numbers are trained (Li 2022, "Low dimensional trajectory hypothesis is true"). Compared with full training, with
stopping at E (no component), and with the span of m directions that are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from jobs.studies.experiment import FULL, Experiment, Result, Trajectory, conduct
from pipeline.sweep.train import Training

SHARES = (0.1, 0.3)
"""Of the steps: how long the first part is."""
COMPONENTS = (1, 3, 10, 30)


def measure(trajectory: Trajectory) -> Iterator[Result]:
    """Yield what each variant came to."""
    training = Training(trajectory.settings)
    last = training.last_step
    path = [_weights(training)]
    generator = torch.Generator().manual_seed(trajectory.settings.seed)
    for share in SHARES:
        training.run_to(round(share * last), lambda _: path.append(_weights(training)))
        rows = torch.stack(path)
        leading = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh
        drawn = torch.linalg.qr(
            torch.randn(rows.shape[1], max(COMPONENTS), generator=generator)
        ).Q.T
        yield Result(f"components of the first {share:.0%}", "0", training.metrics())
        for count in COMPONENTS:
            for name, span in ("components of", leading), ("drawn directions after", drawn):
                branch = training.branch()
                branch.run_to(last, _kept_in(branch, span[:count]))
                yield Result(f"{name} the first {share:.0%}", str(count), branch.metrics())
    training.run_to(last)
    rank = "SELECT rank_95 FROM redundancy WHERE run = $run AND scope = 'model'"
    ((components,),) = trajectory.sql(rank)
    yield Result(FULL, "", training.metrics() | {"rank_95": components})


def _weights(training: Training) -> Tensor:
    return parameters_to_vector(training.network.parameters()).detach().clone()


def _kept_in(training: Training, span: Tensor) -> Callable[[float], None]:
    """Return what puts the weights back into a span, (m, weights) of orthonormal rows, through where they are."""
    origin = _weights(training)

    def project(_: float) -> None:
        moved = span.T @ (span @ (_weights(training) - origin))
        vector_to_parameters(origin + moved, training.network.parameters())

    return project


EXPERIMENT = Experiment(
    "low-rank",
    {"mlp": {"network": "mlp"}, "cnn": {"network": "cnn", "epochs": 10}},
    measure,
    "components",
)

if __name__ == "__main__":
    conduct(EXPERIMENT)
