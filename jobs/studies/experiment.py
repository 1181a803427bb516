"""What experiments have in common: the runs of a sweep, something measured of each, and means over seeds.

The runs are trained and analyzed as `hallmarks sweep` does it, unless the store has them.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import click
import numpy as np

from jobs.console import console, say
from jobs.options import debug_option, store_option
from jobs.program import resumable
from jobs.progress import SweepProgress, with_error
from jobs.tables import table_lines
from pipeline.errors import HallmarksError, RequestError
from pipeline.execute.drive.calls import Calls
from pipeline.files import write_whole
from pipeline.store.folder import Folder
from pipeline.sweep.config import read_sweep
from pipeline.sweep.grid import Run, Sweep
from pipeline.sweep.run import Place
from pipeline.sweep.sweep import SweepState, callers, carry_out_all, left_to_do

Key = tuple[str, ...]
"""What is measured: its network, its schedule, ..."""
Observations = Mapping[Key, Mapping[str, float]]
"""What was measured of one run: figures by name."""
Measure = Callable[[Run, Place], Observations]

_TICK_S = 1.0
_COLUMNS = 2


@dataclass(frozen=True, slots=True)
class Mean:
    """Of one figure, over seeds."""

    seeds: int
    mean: float
    stderr: float | None
    """Standard error of the mean; None of one seed."""

    def __str__(self) -> str:
        return with_error(self.mean, self.stderr)


Means = Mapping[Key, Mapping[str, Mean]]


def experiment_options(study: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what adds the options of an experiment to a command.

    Args:
        study: configuration in this package, without ending, whose runs are measured by default.
    """
    config = click.option(
        "--config",
        metavar="CONFIG.toml",
        default=str(files("jobs").joinpath("studies", f"{study}.toml")),
        help=f"Sweep whose runs are measured (default: the study {study}).",
    )
    workers = click.option(
        "--max-workers",
        type=click.IntRange(1),
        metavar="N",
        help="Maximum number of runs at once (default: one for each core).",
    )

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        return store_option(config(workers(debug_option(command))))

    return add


def measured(
    config: str,
    store: str,
    measure: Measure,
    max_workers: int | None,
    is_measured: Callable[[Run], bool] = lambda _: True,
) -> dict[int, Observations]:
    """Return what was measured of the runs of a sweep, by seed; they are trained first where they are not.

    Raises:
        HallmarksError: a run failed.
    """
    resumable("finished runs are kept")
    sweep = _chosen(read_sweep(config), is_measured)
    folder = Folder(store)
    if folder.remote:
        raise RequestError(f"--store {store}: expected a directory", "checkpoints lie within it")
    place = Place(folder.root, str(Path(folder.root, "_trained").absolute()), "cpu")
    left = left_to_do(sweep, place)
    state = SweepState(len(sweep.runs), stored=len(sweep.runs) - len(left))
    progress = SweepProgress(folder.root)
    with callers("local", None, "cpu", max_workers) as calls:
        if left:
            try:
                carry_out_all(left, place, calls, state, progress)
            finally:
                progress.close()
        if state.failed:
            raise HallmarksError(f"{len(state.failed)} of {len(sweep.runs)} runs failed")
        by_seed: dict[int, dict[Key, Mapping[str, float]]] = {}
        for run, observations in _each(sweep.runs, place, measure, calls):
            by_seed.setdefault(run.settings.seed, {}).update(observations)
    return dict(sorted(by_seed.items()))


def _chosen(sweep: Sweep, is_measured: Callable[[Run], bool]) -> Sweep:
    """Return the runs that are measured, each of which is told by network, schedule and seed."""
    runs = tuple(filter(is_measured, sweep.runs))
    told = {(r.settings.network, r.settings.schedule, r.settings.seed) for r in runs}
    if not runs or len(told) < len(runs):
        raise RequestError(
            f"sweep {sweep.name}: expected runs that differ in network, schedule and seed alone,"
            f" found {len(runs)} of {len(told)} kinds",
            "name another configuration with --config",
        )
    return Sweep(sweep.name, sweep.varied, runs)


def _each(
    runs: Sequence[Run], place: Place, measure: Measure, calls: Calls
) -> Iterator[tuple[Run, Observations]]:
    """Yield the runs with what was measured of them, in the order of the runs."""
    screen, begun = console(stderr=True), time.monotonic()
    waiting, ended = deque(range(len(runs))), dict[int, Observations]()
    while len(ended) < len(runs):
        while waiting and calls.free > 0:
            number = waiting.popleft()
            calls.begin(number, measure, runs[number], place)
        for number, outcome in calls.ended(_TICK_S):
            if isinstance(outcome, Exception):
                raise outcome
            ended[number] = outcome
            seconds = time.monotonic() - begun
            say(screen, f"measured {len(ended)} of {len(runs)} runs, {seconds:.0f} s")
    for number, run in enumerate(runs):
        yield run, ended[number]


def means_over_seeds(by_seed: Mapping[int, Observations]) -> Means:
    """Return the mean of each figure over the seeds that have it, in the order of the first of them."""
    values: dict[Key, dict[str, list[float]]] = {}
    for observations in by_seed.values():
        for key, figures in observations.items():
            for name, value in figures.items():
                values.setdefault(key, {}).setdefault(name, []).append(value)
    return {
        key: {name: mean_of(each) for name, each in figures.items()}
        for key, figures in values.items()
    }


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean of some values and its standard error."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(len(values), fmean(values), error)


def results_folder(store: str) -> Path:
    """Return the directory beside a store that tables and pictures of experiments are written to."""
    folder = Path(Folder(store).root)
    return folder.with_name(f"{folder.name}-studies")


def write_means(path: Path, names: Sequence[str], means: Means) -> None:
    """Write all means as CSV, a row for each figure.

    Args:
        names: of what a key consists of.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow([*names, "figure", "seeds", "mean", "stderr"])
    for key, figures in means.items():
        for name, each in figures.items():
            error = "" if each.stderr is None else each.stderr
            table.writerow([*key, name, each.seeds, each.mean, error])
    write_whole(path, text.getvalue().encode())


def print_table(title: str, names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table whose first column has texts."""
    screen = console()
    say(screen, title)
    texts = [[str(value) for value in row] for row in rows]
    for line in table_lines(list(names), texts, [False] + [True] * (len(names) - 1)):
        say(screen, line)
    say(screen, "")


def write_picture(path: Path, panels: Mapping[str, Mapping[str, Mapping[str, Mean]]]) -> None:
    """Draw panels side by side, as a PDF, an SVG and a PNG; dotted, zero.

    Args:
        path: without ending.
        panels: of each its lines, and of these a mean at each place, by their names.
    """
    from pipeline import drawing  # matplotlib is optional, and takes a second

    with drawing.style():
        columns = min(len(panels), _COLUMNS)
        rows = -(-len(panels) // columns)
        figure = drawing.new_figure(drawing.PAGE, 2.2 * rows)
        for number, (title, lines) in enumerate(panels.items(), 1):
            places = list(dict.fromkeys(place for line in lines.values() for place in line))
            drawn = {
                name: (
                    [places.index(place) for place in line],
                    np.array([each.mean for each in line.values()]),
                    np.array([each.stderr or 0.0 for each in line.values()]),
                    np.zeros(len(line)),
                )
                for name, line in lines.items()
            }
            axes = figure.add_subplot(rows, columns, number)
            drawing.draw_against(axes, places, drawn, title)
            axes.tick_params("x", rotation=40)
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=6)
        for ending, data in drawing.files(figure):
            write_whole(path.with_name(f"{path.name}.{ending}"), data)
