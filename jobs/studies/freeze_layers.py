"""Freeze each layer once it has settled.

    python -m jobs.studies.freeze_layers --store STORE

A layer is frozen for the rest of the training at its `settled_step`, or at its `saturation_step`, which is
earlier; both are known once the training has been recorded in full. Compared with full training, and with freezing
layers at the same steps, but each at that of another. Weights outside the numbered layers are frozen likewise,
tensor by tensor.

The work that is saved is counted in operations of the backward pass: of products of matrices and
convolutions, as torch counts them of what it really carries out. A layer before which something is trained
still passes gradients on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from jobs.studies.experiment import FULL, Experiment, Result, Trajectory, conduct
from pipeline.sweep.train import Training

CRITERIA = ("saturation_step", "settled_step")


def measure(trajectory: Trajectory) -> Iterator[Result]:
    """Yield what each variant came to."""
    training = Training(trajectory.settings)
    unit_of = _units(trajectory)
    schedules: dict[tuple[str, str], Mapping[str, int]] = {}
    for criterion in CRITERIA:
        steps = _steps(trajectory, criterion)
        others = list(steps.values())
        random.Random(trajectory.settings.seed).shuffle(others)
        schedules["each at its own step", criterion] = steps
        schedules["each at another's", criterion] = dict(zip(steps, others, strict=True))
    # nothing differs before the first is frozen
    training.run_to(min(step for steps in schedules.values() for step in steps.values()))
    for (variant, criterion), steps in schedules.items():
        branch = training.branch()
        saved = _train_while_freezing(branch, unit_of, steps)
        yield Result(variant, criterion, branch.metrics() | {"backward_saved": saved})
    training.run_to(training.last_step)
    yield Result(FULL, "", training.metrics() | {"backward_saved": 0.0})


def _train_while_freezing(
    training: Training, unit_of: Mapping[str, str], steps: Mapping[str, int]
) -> float:
    """Train to the end, and return the share of the operations of all backward passes that were saved."""
    last = training.last_step
    full = _backward_operations(training)
    spent = full * training.step
    for step in sorted({*steps.values(), last}):
        frozen = {unit for unit, when in steps.items() if when <= training.step}
        training.train_only(lambda name, frozen=frozen: unit_of[name] not in frozen)
        if len(frozen) == len(steps):
            break
        spent += _backward_operations(training) * (step - training.step)
        training.run_to(step)
    return 1 - spent / (full * last)


def _backward_operations(training: Training) -> int:
    """Return the operations of the backward pass of one example."""
    branch = training.branch()
    example = branch.data.train.take(slice(1))
    branch.network.eval()  # a batch of one has no statistics
    with FlopCounterMode(display=False) as forward:
        loss = functional.cross_entropy(branch.network(example.inputs), example.targets)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    del forward
    return backward.get_total_flops()


def _units(trajectory: Trajectory) -> Mapping[str, str]:
    """Return what each tensor is frozen with: its layer, or itself alone."""
    query = "SELECT tensor, layer FROM tensors WHERE run = $run AND included"
    return {
        tensor: tensor if layer is None else f"layer {layer}"
        for tensor, layer in trajectory.sql(query)
    }


def _steps(trajectory: Trajectory, criterion: str) -> dict[str, int]:
    query = f"""
        SELECT coalesce('layer ' || layer, tensor), {criterion} FROM redundancy
        WHERE run = $run AND (scope = 'layer' OR (scope = 'tensor' AND layer IS NULL))
        ORDER BY 1
    """
    return {unit: int(step) for unit, step in trajectory.sql(query)}


EXPERIMENT = Experiment(
    "freeze-layers",
    {
        "mlp": {"network": "mlp", "depth": 6},
        "cnn": {"network": "cnn", "depth": 4, "epochs": 10},
    },
    measure,
    "step at which layers are frozen",
)

if __name__ == "__main__":
    conduct(EXPERIMENT)
