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
from collections.abc import Mapping

import click
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from jobs.console import run as run_command
from jobs.studies.experiment import Observations, experiment_options, measured, results_folder
from jobs.studies.variants import compared, measured_now, show
from pipeline.store.query import Store
from pipeline.sweep.grid import Run
from pipeline.sweep.run import Place
from pipeline.sweep.train import Training

CRITERIA = ("saturation_step", "settled_step")


def is_measured(run: Run) -> bool:
    """Return whether a run of the sweep is of a training that is trained again."""
    return run.settings.schedule == "cosine" and run.settings.network in ("mlp", "cnn", "vit")


def measure(run: Run, place: Place) -> Observations:
    """Return what each variant came to."""
    training = Training(run.settings)
    store = Store(place.store)
    unit_of = _units(run.name, store)
    schedules: dict[tuple[str, str], Mapping[str, int]] = {}
    for criterion in CRITERIA:
        steps = _steps(run.name, store, criterion)
        others = list(steps.values())
        random.Random(run.settings.seed).shuffle(others)
        schedules["each at its own step", criterion] = steps
        schedules["each at another's", criterion] = dict(zip(steps, others, strict=True))
    # nothing differs before the first is frozen
    training.run_to(min(step for steps in schedules.values() for step in steps.values()))
    variants: dict[tuple[str, str], Mapping[str, float]] = {}
    for key, steps in schedules.items():
        branch = training.branch()
        saved = _train_while_freezing(branch, unit_of, steps)
        variants[key] = measured_now(branch) | {"backward_saved": saved}
    training.run_to(training.last_step)
    return compared(run.settings.network, measured_now(training), variants)


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
    loss = functional.cross_entropy(branch.network(example.inputs), example.targets)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return counter.get_total_flops()


def _units(run: str, store: Store) -> Mapping[str, str]:
    """Return what each tensor is frozen with: its layer, or itself alone."""
    query = "SELECT tensor, layer FROM tensors WHERE run = ? AND included"
    return {
        tensor: tensor if layer is None else f"layer {layer}"
        for tensor, layer in store.sql(query, [run]).fetchall()
    }


def _steps(run: str, store: Store, criterion: str) -> dict[str, int]:
    """Return when each layer, and each tensor outside, is frozen."""
    query = f"""
        SELECT coalesce('layer ' || layer, tensor), {criterion} FROM redundancy
        WHERE run = ? AND (scope = 'layer' OR (scope = 'tensor' AND layer IS NULL))
        ORDER BY 1
    """
    return {unit: int(step) for unit, step in store.sql(query, [run]).fetchall()}


@click.command()
@experiment_options("late-training")
def freeze_layers(config: str, store: str, max_workers: int | None, **_: object) -> int:
    """Freeze layers once they have settled, and compare with full training."""
    by_seed = measured(config, store, measure, max_workers, is_measured)
    show(by_seed, results_folder(store) / "freeze_layers", ("backward_saved",))
    return 0


if __name__ == "__main__":
    from jobs.studies.freeze_layers import freeze_layers as command  # its functions go to processes

    run_command(command)
