"""The trainings of a sweep: a run for each combination of settings and each seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from pipeline.sweep.settings import Settings, settings_of

Values = Mapping[str, Sequence[Any]]
"""Of each setting that a grid varies."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training, and the run of the store that it becomes."""

    name: str
    sweep: str
    varied: Mapping[str, Any]
    """The settings in which it differs from others of the sweep, without the seed."""
    settings: Settings

    @property
    def stated(self) -> Mapping[str, Any]:
        """What the store says of it: every setting, those that nobody has stated too."""
        return {"sweep": self.sweep, **self.settings.as_dict()}


@dataclass(frozen=True, slots=True)
class Sweep:
    """A configuration that can be carried out."""

    name: str
    varied: tuple[str, ...]
    """What is varied, in the order in which it was stated."""
    runs: tuple[Run, ...]
    """One seed after the other, so that a sweep that was interrupted has all settings with some seeds."""


def size(grids: Sequence[Values]) -> int:
    """Return how many combinations there are, without making any."""
    return sum(prod(map(len, grid.values())) for grid in grids)


def combinations(grids: Sequence[Values]) -> Iterator[Mapping[str, Any]]:
    """Yield the settings of each combination; the last key changes fastest."""
    for grid in grids:
        for values in product(*grid.values()):
            yield dict(zip(grid, values, strict=True))


def sweep_of(
    name: str, seeds: Sequence[int], fixed: Mapping[str, Any], grids: Sequence[Values]
) -> Sweep:
    """Return the sweep of values that have been checked."""
    runs = [
        Run(
            run_name(name, varied, seed),
            name,
            varied,
            settings_of({**fixed, **varied, "seed": seed}),
        )
        for seed in seeds
        for varied in combinations(grids)
    ]
    return Sweep(name, tuple(dict.fromkeys(key for grid in grids for key in grid)), tuple(runs))


def run_name(sweep: str, varied: Mapping[str, Any], seed: int) -> str:
    """Return what a run is called: `NAME--momentum-0.9--weight_decay-0.001--seed-0`."""
    stated = {**varied, "seed": seed}
    return "--".join([sweep, *(f"{key}-{as_word(value)}" for key, value in stated.items())])


def as_word(value: Any) -> str:
    """Return a value as it stands in names and tables: 1 and 1.0 are one number."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
