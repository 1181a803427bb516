"""`python -m jobs.studies.averages`: averages of late checkpoints, beside the last one and a decayed training.

They are those that `hallmarks average` writes. Statistics of batch norm are taken anew from the training set
for each of them, the last checkpoint included: those of an average are of none of its networks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import click

from jobs.console import run as run_command
from jobs.studies.experiment import (
    Key,
    Mean,
    Means,
    Observations,
    experiment_options,
    mean_of,
    means_over_seeds,
    measured,
    print_table,
    results_folder,
    write_means,
    write_picture,
)
from pipeline.averaging.average import average
from pipeline.planning.request import Request
from pipeline.sweep.data import data_of
from pipeline.sweep.grid import Run
from pipeline.sweep.run import Place
from pipeline.sweep.train import load_network, metrics_of, renew_statistics

NAMES = ("network", "schedule", "weights")
LAST = "last:1"
WEIGHTS = (
    *(LAST, "last:2", "last:4", "last:8", "last:16"),
    *("ema:0.5", "ema:0.75", "ema:0.9", "warmdown:8"),
)
"""As of `hallmarks average`, of checkpoints that are a fortieth of the training apart."""
CONSTANT = "constant"
"""The schedule whose last checkpoint all others are compared with."""


def measure(run: Run, place: Place) -> Observations:
    """Return losses and accuracies of each average of a training."""
    settings = run.settings
    return {
        (settings.network, settings.schedule, weights): measured_average(run, place, weights)
        for weights in WEIGHTS
    }


def measured_average(run: Run, place: Place, weights: str) -> Mapping[str, float]:
    """Return losses and accuracies of one average of a training's checkpoints."""
    data = data_of(run.settings.network)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "average")
        average(Request(str(Path(place.checkpoints, run.name))), weights, str(out))
        network = load_network(run.settings, out)
    renew_statistics(network, data.train)
    return metrics_of(network, data)


def differences(by_seed: Mapping[int, Observations]) -> Means:
    """Return how much each is above the last checkpoint of the constant training of its seed, and above
    the last one of its own training; means over seeds."""
    values: dict[Key, dict[str, list[float]]] = {}
    for observations in by_seed.values():
        for (network, schedule, weights), figures in observations.items():
            for name, other in (("constant", CONSTANT), ("own", schedule)):
                last = observations.get((network, other, LAST))
                if last is None:
                    continue
                of_key = values.setdefault((network, schedule, weights), {})
                for figure, value in figures.items():
                    of_key.setdefault(f"{figure}_above_{name}_last", []).append(
                        value - last[figure]
                    )
    return {
        key: {name: mean_of(each) for name, each in figures.items()}
        for key, figures in values.items()
    }


@click.command()
@experiment_options("late-training")
def averages(config: str, store: str, max_workers: int | None, **_: object) -> int:
    """Average late checkpoints of trainings, and compare with the last ones and with decayed trainings."""
    by_seed = measured(config, store, measure, max_workers)
    means, above = means_over_seeds(by_seed), differences(by_seed)
    folder = results_folder(store)
    both = {key: {**means[key], **above.get(key, {})} for key in means}
    write_means(folder / "averages.csv", NAMES, both)
    for network in dict.fromkeys(key[0] for key in means):
        rows = [
            [
                f"{key[1]} {key[2]}",
                figures["validation_loss"],
                figures.get("validation_loss_above_constant_last", ""),
                figures["validation_loss_above_own_last"],
                figures["validation_accuracy"],
                figures.get("validation_accuracy_above_constant_last", ""),
                figures["train_loss"],
            ]
            for key, figures in both.items()
            if key[0] == network
        ]
        names = [
            *("", "validation loss", "above constant's last", "above its own last"),
            *("accuracy", "above constant's last", "train loss"),
        ]
        print_table(network, names, rows)
    write_picture(folder / "averages", _panels(both))
    return 0


def _panels(means: Means) -> dict[str, dict[str, dict[str, Mean]]]:
    """Return how much each average of each schedule is above the constant training's last, by network."""
    panels: dict[str, dict[str, dict[str, Mean]]] = {}
    for (network, schedule, weights), figures in means.items():
        above = figures.get("validation_loss_above_constant_last")
        if above is not None:
            lines = panels.setdefault(f"{network}: validation loss above constant's last", {})
            lines.setdefault(schedule, {})[weights] = above
    return panels


if __name__ == "__main__":
    from jobs.studies.averages import averages as command  # its functions go to processes

    run_command(command)
