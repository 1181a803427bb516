"""What the experiments have in common: trainings with several seeds, their runs in a store, a table and a figure.

An experiment trains each network with each seed, records and analyses it, and then trains it again with
something changed on the way. Each variant is compared with the full training of the same seed.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

import hallmarks
from jobs.console import console, run, say
from pipeline.errors import RequestError, quoted
from pipeline.sweep.settings import Settings, settings_of
from pipeline.sweep.train import train

FULL = "full training"
"""The variant with which all others are compared."""
DRAWN = "validation_loss"


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A training that was recorded, and its run in a store."""

    settings: Settings
    run: str
    directory: Path
    store: hallmarks.Store

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query, in which `$run` is the run."""
        return self.store.sql(query.replace("$run", f"'{self.run}'")).fetchall()


@dataclass(frozen=True, slots=True)
class Result:
    """What one variant came to, with one seed."""

    variant: str
    at: str
    """What is varied along the figure; empty of the full training."""
    values: Mapping[str, float]


Measure = Callable[[Trajectory], Iterable[Result]]


@dataclass(frozen=True, slots=True)
class Experiment:
    """One question that is put to trainings."""

    name: str
    networks: Mapping[str, Mapping[str, Any]]
    """What is stated of the training of each network."""
    measure: Measure
    varied: str
    """What `at` is, for people."""


@dataclass(frozen=True, slots=True)
class Row:
    """Of one variant, over the seeds."""

    network: str
    variant: str
    at: str
    metric: str
    seeds: int
    mean: float
    stderr: float
    """Standard error of the mean over the seeds."""
    difference: float
    """Mean of the differences from the full training of the same seed."""
    difference_stderr: float


def conduct(experiment: Experiment) -> None:
    """Run an experiment as the command that it is."""

    @click.command(help=f"Run the experiment {experiment.name} and print its table.")
    @click.option("--store", type=click.Path(path_type=Path), required=True, metavar="STORE",
                  help="Where trainings, their runs, and the table and figure (STORE/studies) are left.")  # fmt: skip
    @click.option("--seeds", type=click.IntRange(2), default=5, show_default=True)
    def command(store: Path, seeds: int) -> None:
        screen, started = console(stderr=True), time.monotonic()
        results: dict[tuple[str, int], list[Result]] = {}
        for network, stated in experiment.networks.items():
            for seed in range(seeds):
                settings = settings_of({**stated, "seed": seed})
                trajectory = recorded(store, f"{experiment.name}-{network}-seed-{seed}", settings)
                results[network, seed] = list(experiment.measure(trajectory))
                passed = time.monotonic() - started
                say(screen, f"{network}, seed {seed}: done after {passed:.0f} s")
        rows = list(summarized(results))
        target = store / "studies"
        target.mkdir(exist_ok=True)
        _write(target / f"{experiment.name}.csv", _as_csv(rows))
        _write(target / f"{experiment.name}.png", picture(rows, experiment.varied))
        for line in as_table(rows):
            say(console(), line)

    run(command)


def recorded(store: Path, name: str, settings: Settings) -> Trajectory:
    """Return a training's run in a store; it is trained and analysed if it is not there.

    Raises:
        RequestError: the store has another training of that name.
    """
    directory = store / "trainings" / name
    if not directory.exists():
        train(settings, directory)
    stated = json.loads((directory / "step-0" / "config.json").read_text())["training"]
    if not settings.as_dict().items() <= stated.items():
        raise RequestError(
            f"{quoted(directory)} holds a training with other settings", "name another --store"
        )
    hallmarks.analyze(directory, run=name, store=store, executor="local")
    return Trajectory(settings, name, directory, hallmarks.open_store(store))


def summarized(results: Mapping[tuple[str, int], Sequence[Result]]) -> Iterator[Row]:
    """Yield a row for each network, variant, place and metric, in their first order."""
    values: dict[tuple[str, str, str, str], list[tuple[float, float]]] = {}
    for (network, _), variants in results.items():
        (full,) = (each.values for each in variants if each.variant == FULL)
        for each in variants:
            for metric, value in each.values.items():
                key = network, each.variant, each.at, metric
                values.setdefault(key, []).append((value, value - full.get(metric, math.nan)))
    for key, pairs in values.items():
        (mean, difference), (stderr, difference_stderr) = _mean_and_error(pairs)
        yield Row(*key, len(pairs), mean, stderr, difference, difference_stderr)


def _mean_and_error(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    array = np.array(pairs)
    errors = array.std(0, ddof=1) / math.sqrt(len(array))
    return array.mean(0).tolist(), errors.tolist()


def as_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a table in Markdown: a row for each variant, a column for each metric."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    yield f"| network | variant | at | {' | '.join(m.replace('_', ' ') for m in metrics)} |"
    yield "|---" * (3 + len(metrics)) + "|"
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        text = f"{row.mean:.4g} ± {row.stderr:.1g}"
        if row.variant != FULL and not math.isnan(row.difference):
            text += f" ({row.difference:+.2g} ± {row.difference_stderr:.1g})"
        cells.setdefault((row.network, row.variant, row.at), {})[row.metric] = text
    for key, texts in cells.items():
        yield f"| {' | '.join([*key, *(texts.get(metric, '') for metric in metrics)])} |"


def picture(rows: Sequence[Row], varied: str) -> bytes:
    """Return a PNG: the loss on data held out against what is varied, a panel for each network."""
    from pipeline import drawing

    drawn = [row for row in rows if row.metric == DRAWN]
    networks = list(dict.fromkeys(row.network for row in drawn))
    with drawing.style():
        figure = drawing.new_figure(drawing.COLUMN * len(networks), 2.8)
        for panel, network in zip(
            np.ravel(figure.subplots(1, len(networks))), networks, strict=True
        ):
            inner = [row for row in drawn if row.network == network]
            places = list(dict.fromkeys(row.at for row in inner if row.at))
            lines: dict[str, Any] = {}
            for variant in dict.fromkeys(row.variant for row in inner):
                of = {row.at: row for row in inner if row.variant == variant}
                if "" in of:  # the same everywhere
                    of = dict.fromkeys(places, of[""])
                at = [number for number, place in enumerate(places) if place in of]
                chosen = [of[places[number]] for number in at]
                means, errors = (
                    np.array([getattr(row, name) for row in chosen]) for name in ("mean", "stderr")
                )
                lines[variant] = at, means, errors, np.full(len(at), np.nan)
            drawing.draw_against(panel, places, lines, network)
            panel.set_yscale("log")
            panel.set_xlabel(varied)
            panel.set_ylabel(DRAWN.replace("_", " "))
            panel.legend(fontsize=6)
        return dict(drawing.files(figure))["png"]


def _as_csv(rows: Sequence[Row]) -> bytes:
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row.__slots__)
    writer.writerows([getattr(row, name) for name in Row.__slots__] for row in rows)
    return text.getvalue().encode()


def _write(path: Path, data: bytes) -> None:
    growing = path.with_name(f".{path.name}.{os.getpid()}")
    growing.write_bytes(data)
    growing.replace(path)
