"""`hallmarks sweep`: trains small networks over a grid of settings, and analyses each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from jobs.console import EXIT_INCOMPLETE, Result, console, refuse, run, say
from jobs.options import (
    check_place,
    check_store,
    debug_option,
    json_option,
    resources_from,
    store_option,
)
from jobs.program import resumable
from jobs.progress import SweepProgress, show_time, with_error
from jobs.tables import table_lines
from pipeline.errors import RequestError, StoreUnusable, quoted
from pipeline.planning.memory import show_size
from pipeline.planning.request import DEVICES, EXECUTORS, Resources
from pipeline.store.folder import Folder
from pipeline.store.query import Store
from pipeline.sweep.config import ConfigError, read_sweep
from pipeline.sweep.cost import Cost, costs
from pipeline.sweep.grid import Run, Sweep, as_word
from pipeline.sweep.run import Place
from pipeline.sweep.sweep import SweepState, callers, carry_out_all, left_to_do
from pipeline.sweep.table import ACCURACY, INDICATORS, Mean, Row, table_of

_STUDIES = files("jobs").joinpath("studies")
_TRAINED = "_trained"
_TRAINED_ELSEWHERE = "hallmarks-trained"


@click.command()
@click.argument("config", metavar="CONFIG.toml")
@store_option
@click.option(
    "--checkpoints",
    metavar="DIR",
    help="Directory for the checkpoints, one in it for each run (default: STORE/_trained, or"
    " hallmarks-trained for a remote store). Once the sweep is over it may be removed.",
)
@click.option("--dry-run", is_flag=True, help="List the runs and what they cost; train nothing.")
@click.option(
    "--replace",
    is_flag=True,
    help="Replace runs of the same names with other settings, and their checkpoints.",
)
@click.option(
    "--device",
    metavar="|".join(DEVICES),
    default="auto",
    show_default=True,
    help="Where to train.",
)
@click.option(
    "--executor",
    metavar="|".join(EXECUTORS),
    default="ray",
    show_default=True,
    help="local: processes of this machine, without Ray.",
)
@click.option(
    "--address", help="Ray cluster to use; default: RAY_ADDRESS, otherwise start a local Ray."
)
@click.option(
    "--max-workers",
    metavar="N",
    help="Maximum number of runs at once (default: one for each core, or GPU).",
)
@json_option
@debug_option
def sweep(**options: Any) -> int:
    """Train a small network for each combination of settings and each seed, and analyse how its weights
    moved: a run of the store each, whose settings and metrics are in it.

    CONFIG.toml is a file, or the name of a study that comes with the program. Rerun with the same
    arguments to resume.
    """
    stated = _read(options["config"])
    resources = resources_from(options)
    check_store(options["store"])
    place = _place(options)
    left = left_to_do(stated, place)
    result = Result()
    with result.claimed() if options["as_json"] else contextlib.nullcontext():
        if options["dry_run"]:
            told = _DryRun(stated, place, left, costs(left), resources)
        else:
            told = _carried_out(stated, place, left, resources)
        if options["as_json"]:
            result.print_json(told.as_dict())
    if not options["as_json"]:
        told.print()
    return told.exit_code


def _read(config: str) -> Sweep:
    """Return the sweep that a file states, or a study; of several mistakes all but the last are told."""
    shipped = [file for file in _STUDIES.iterdir() if file.name.endswith(".toml")]
    studies = {file.name.removesuffix(".toml"): file for file in shipped}
    if config in studies and not Path(config).exists():
        config = str(studies[config])
    elif not config.endswith(".toml"):
        names = ", ".join(sorted(studies))
        raise RequestError(f"no study {quoted(config)}", f"name a TOML file, or one of {names}")
    try:
        return read_sweep(config)
    except ConfigError as error:
        for mistake in error.mistakes[:-1]:
            refuse(RequestError(mistake))
        if not error.mistakes:
            raise
        raise RequestError(error.mistakes[-1], error.hint) from None


def _place(options: Mapping[str, Any]) -> Place:
    store = Folder(options["store"])
    checkpoints = options["checkpoints"]
    if checkpoints is None:
        checkpoints = _TRAINED_ELSEWHERE if store.remote else f"{store.root}/{_TRAINED}"
    if "://" in checkpoints or not checkpoints:
        raise RequestError(
            f"--checkpoints {checkpoints}: expected a directory",
            "trainings write to a disk; the store may lie elsewhere",
        )
    check_place("--checkpoints", checkpoints)
    directory = str(Path(checkpoints).absolute())
    return Place(store.root, directory, options["device"], options["replace"])


@dataclass(frozen=True, slots=True)
class _DryRun:
    """What a sweep would do."""

    sweep: Sweep
    place: Place
    left: Sequence[Run]
    costs: Sequence[Cost]
    resources: Resources
    exit_code: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return what `--dry-run --json` prints."""
        cost_of = {each.name: cost for each, cost in zip(self.left, self.costs, strict=True)}
        runs = [_about(each, cost_of.get(each.name)) for each in self.sweep.runs]
        return {
            "sweep": self.sweep.name,
            "store": self.place.store,
            "checkpoints": self.place.checkpoints,
            "seconds": sum(cost.seconds for cost in self.costs),
            "disk_bytes": sum(cost.disk_bytes for cost in self.costs),
            "runs": runs,
        }

    def print(self) -> None:
        """Print the runs, and what those that are left cost."""
        screen = console()
        cost_of = {each.name: cost for each, cost in zip(self.left, self.costs, strict=True)}
        rows = [[each.name, *_shown_cost(cost_of.get(each.name))] for each in self.sweep.runs]
        names = ["run", "steps", "checkpoints", "disk", "training"]
        for line in table_lines(names, rows, [False, True, True, True, True]):
            say(screen, line)
        seconds = show_time(sum(cost.seconds for cost in self.costs))
        disk = show_size(sum(cost.disk_bytes for cost in self.costs))
        say(screen, "")
        say(
            screen,
            f"{len(self.left)} of {len(self.sweep.runs)} runs left: {seconds} of training on one thread"
            f" each, measured by 20 steps of each kind of network, and a second each for the analysis;"
            f" {disk} in {self.place.checkpoints}",
        )


def _about(each: Run, cost: Cost | None) -> dict[str, Any]:
    about: dict[str, Any] = {"run": each.name, "settings": each.settings.as_dict()}
    if cost is None:
        return about | {"stored": True}
    return about | {
        "stored": False,
        "steps": cost.steps,
        "checkpoints": cost.checkpoints,
        "seconds": cost.seconds,
        "disk_bytes": cost.disk_bytes,
    }


def _shown_cost(cost: Cost | None) -> list[str]:
    if cost is None:
        return ["", "", "", "stored"]
    return [
        f"{cost.steps:,}",
        str(cost.checkpoints),
        show_size(cost.disk_bytes),
        f"{cost.seconds:.1f} s",
    ]


@dataclass(frozen=True, slots=True)
class _Swept:
    """What a sweep has come to."""

    sweep: Sweep
    place: Place
    state: SweepState
    table: Sequence[Row]
    seconds: float

    @property
    def exit_code(self) -> int:
        return EXIT_INCOMPLETE if self.state.failed else 0

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "sweep": self.sweep.name,
            "store": self.place.store,
            "checkpoints": self.place.checkpoints,
            "runs": len(self.sweep.runs),
            "complete": not self.state.failed,
            "stored": self.state.stored,
            "done": [each.as_dict() for each in self.state.done],
            "failed": [{"run": each.run, "reason": each.reason} for each in self.state.failed],
            "seconds": self.seconds,
            "table": [row.as_dict() for row in self.table],
        }

    def print(self) -> None:
        """Print the means over seeds of each combination of settings."""
        screen = console()
        names = [*self.sweep.varied, "seeds", ACCURACY, *INDICATORS]
        rows = [
            [
                *(
                    as_word(row.varied[key]) if key in row.varied else ""
                    for key in self.sweep.varied
                ),
                str(max(figure.seeds for figure in row.figures.values())),
                *(_shown_mean(row.figures.get(name)) for name in (ACCURACY, *INDICATORS)),
            ]
            for row in self.table
        ]
        for line in table_lines(names, rows, [True] * len(names)):
            say(screen, line)
        say(screen, "")
        say(
            screen,
            "means over seeds ± their standard errors; in parentheses what a random walk of the same"
            " steps has",
        )
        failed = f", {len(self.state.failed)} failed" if self.state.failed else ""
        earlier = f", {self.state.stored} stored earlier" if self.state.stored else ""
        say(
            screen,
            f"sweep {self.sweep.name}: {len(self.state.done)} runs trained and analyzed in"
            f" {show_time(self.seconds)}{earlier}{failed}",
        )
        say(screen, f"results: {self.place.store}; checkpoints: {self.place.checkpoints}")


def _shown_mean(figure: Mean | None) -> str:
    if figure is None or figure.mean is None:
        return ""
    mean = with_error(figure.mean, figure.stderr)
    return mean if figure.null_value is None else f"{mean} ({figure.null_value:.4g})"


def _carried_out(sweep: Sweep, place: Place, left: Sequence[Run], resources: Resources) -> _Swept:
    resumable("finished runs are kept")
    begun = time.monotonic()
    state = SweepState(len(sweep.runs), stored=len(sweep.runs) - len(left))
    progress = SweepProgress(place.store)
    if left:
        try:
            with callers(
                resources.executor, resources.address, resources.device, resources.max_workers
            ) as calls:
                carry_out_all(left, place, calls, state, progress)
        finally:
            progress.close()
    try:
        table = table_of(sweep, Store(place.store))
    except StoreUnusable:  # no run is complete
        table = []
    return _Swept(sweep, place, state, table, time.monotonic() - begun)


if __name__ == "__main__":
    run(sweep)
