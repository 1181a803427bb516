"""Experiments that train a run once more with something changed, and compare it with the full training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jobs.studies.experiment import (
    Mean,
    Means,
    Observations,
    means_over_seeds,
    print_table,
    write_means,
    write_picture,
)
from pipeline.sweep.train import Training, renew_statistics

FULL = "full training"
NAMES = ("network", "variant", "at")
_METRICS = ("validation_loss", "validation_accuracy", "train_loss")
_DRAWN = "validation_loss_change"

Variants = Mapping[tuple[str, str], Mapping[str, float]]
"""What was measured at the end of each variant of one training, by what was changed and where: `at`."""


def measured_now(training: Training) -> dict[str, float]:
    """Return losses and accuracies, with statistics of batch norm over the training data: the running ones lag
    behind the weights, and would make a training that stops worse than one whose weights stay."""
    branch = training.branch()
    renew_statistics(branch.network, branch.data.train)
    return branch.metrics()


def compared(network: str, full: Mapping[str, float], variants: Variants) -> Observations:
    """Return what was measured of a network, with differences from the full training of the same seed."""
    changes = {
        key: {f"{name}_change": figures[name] - full[name] for name in _METRICS}
        for key, figures in variants.items()
    }
    return {(network, FULL, ""): full} | {
        (network, *key): {**figures, **changes[key]} for key, figures in variants.items()
    }


def show(by_seed: Mapping[int, Observations], path: Path, extra: tuple[str, ...] = ()) -> None:
    """Write the means over the seeds, draw them, and print a table.

    Args:
        path: of the results, without ending.
        extra: figures besides losses and accuracies that the table shows.
    """
    means = means_over_seeds(by_seed)
    write_means(path.with_name(f"{path.name}.csv"), NAMES, means)
    columns = (*_METRICS, *(f"{name}_change" for name in _METRICS[:2]), *extra)
    print_table(
        "at the end of the training; changes: from the full training of the same seed",
        ["", *columns],
        [
            [" ".join(filter(None, key)), *(each.get(name, "") for name in columns)]
            for key, each in means.items()
        ],
    )
    write_picture(path, _panels(means))


def _panels(means: Means) -> dict[str, dict[str, dict[str, Mean]]]:
    """Return a panel for each network: how much more the loss is than that of the full training."""
    panels: dict[str, dict[str, dict[str, Mean]]] = {}
    for (network, variant, at), figures in means.items():
        if variant != FULL:
            title = f"{network}: {_DRAWN.replace('_', ' ')}"
            panels.setdefault(title, {}).setdefault(variant, {})[at] = figures[_DRAWN]
    return panels
