"""What the user asked for: what decides the figures, what is known of the training, and the rest.

Command line, Python and jobs make these two values, and nothing else judges what was asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from pipeline.checkpoint.reading import Reading
from pipeline.checkpoint.stated_roles import StatedRoles
from pipeline.errors import RequestError, quoted
from pipeline.planning.options import (
    StepRange,
    Windows,
    flag,
    globs,
    names,
    one_of,
    optional,
    settle,
    several_of,
    share,
    size,
    stated_roles,
    steps,
    text,
    texts,
    training,
    whole,
    windows,
)
from pipeline.statistics.table import SAID
from pipeline.training.metrics import Training
from pipeline.training.settings import Settings, read_settings

LAYOUTS = ("auto", "revisions", "commits", "folders")
DEVICES = ("auto", "cpu", "cuda")
EXECUTORS = ("ray", "local")
PULLERS = ("auto", "actor", "tasks")

_RUN_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Request:
    """The part of the options that decides the figures, and what is known of the training besides."""

    source: str
    run: str | None = None
    """Name of the run in the store; default: made from the source."""
    revisions: tuple[str, ...] = ()
    """Globs; a checkpoint is kept if its name matches one of them, or if there is none."""
    steps: StepRange | None = None
    names: str | None = None
    """A regular expression that reads names, in place of the tables."""
    weights: tuple[str, ...] = ()
    """Globs: which files of a checkpoint are its weights, in place of the tables."""
    seeds: str = "first"
    """Which of several runs side by side: `first` for the longest, `all`, or a name."""
    include: tuple[str, ...] = ()
    """Regular expressions searched in tensor names; all tensors are kept if there is none."""
    exclude: tuple[str, ...] = ()
    """Regular expressions too; they win over `include`."""
    state: str | None = None
    """Where in a file of nested dictionaries the weights lie: keys joined by dots."""
    roles: StatedRoles | None = None
    """What the user states of tensors by their names."""
    by_head: bool = False
    """Also a Gram matrix for each attention head."""
    statistics: tuple[str, ...] = ()
    """What else is computed in the read, in the order of `statistics/table.py`."""
    spectra: int | None = None
    """At how many checkpoints the spectra of whole matrices are computed, in a second read."""
    windows: Windows | None = None
    """Which parts of the paths are looked at by themselves; made from what is read for the rest."""
    layout: str = "auto"
    """How a Hub repository exposes its checkpoints."""
    fraction: float | None = None
    """Share of the weights to read, a random sample; default: all."""
    budget: int | None = None
    """Bytes of weights to read at most, instead of a fraction."""
    seed: int = 0
    """Of the sample, and of the order in which tiles are taken."""
    settings: Settings | None = None
    """Hyperparameters that the user states."""
    training: Training | None = None
    """Metrics by step that the user states."""

    def __post_init__(self) -> None:
        settle(self, _READERS)
        if self.fraction is not None and self.budget is not None:
            raise RequestError("--fraction and --budget cannot be combined", "use one of them")
        for option in ("fraction", "budget", "by_head"):
            if self.spectra is not None and getattr(self, option):
                raise RequestError(
                    f"--spectra needs whole matrices and cannot be combined with --{option.replace('_', '-')}",
                    "drop one of them",
                )
        if self.run is not None:
            check_run_name(self.run)
        for option, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise RequestError(
                        f"{option} {quoted(pattern)} is not a regular expression: {error}"
                    ) from None

    @property
    def reading(self) -> Reading:
        """What it says of names and files."""
        return Reading(self.names, self.weights, self.state or "")

    def selection(self) -> dict[str, Any]:
        """Return which weights are asked for, as JSON holds it: what is not the default."""
        stated: dict[str, Any] = {
            name: sorted(getattr(self, name))
            for name in ("revisions", "weights", "include", "exclude")
        }
        if self.names is not None:
            stated["names"] = self.names
        if self.seeds != "first":
            stated["seeds"] = self.seeds
        if self.steps is not None:
            stated["steps"] = str(self.steps)
        if self.layout != "auto":
            stated["layout"] = self.layout
        if self.state is not None:
            stated["state"] = self.state
        if self.by_head:
            stated["by_head"] = True
        if self.budget is not None:
            stated["sample"] = f"budget {self.budget:,}, seed {self.seed}"
        elif self.fraction not in (None, 1):
            stated["sample"] = f"fraction {self.fraction!r}, seed {self.seed}"
        return {name: value for name, value in stated.items() if value != []}


_READERS = {
    "source": text,
    "run": optional(text),
    "revisions": texts,
    "steps": optional(steps),
    "names": optional(names),
    "weights": globs,
    "seeds": text,
    "include": texts,
    "exclude": texts,
    "state": optional(text),
    "roles": optional(stated_roles),
    "by_head": flag,
    "statistics": several_of(SAID),
    "spectra": optional(whole(2)),
    "windows": optional(windows),
    "layout": one_of(*LAYOUTS),
    "fraction": optional(share),
    "budget": optional(size),
    "seed": whole(),
    "settings": optional(read_settings),
    "training": optional(training),
}
SELECTION = tuple(field.name for field in fields(Request) if field.name != "source")
"""Options that say what is analysed, and what is known of it."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What the figures do not depend on: where and with how much they are computed."""

    memory: int | None = None
    """Budget of one worker in bytes; default: a share of the machine's."""
    device: str = "auto"
    executor: str = "ray"
    address: str | None = None
    max_workers: int | None = None
    pull: str = "auto"
    """Who pulls on a cluster: `actor`, `tasks` or `auto`."""
    threads: int | None = None
    """Tiles computed side by side in this process (`local`); default: one per core."""
    verify: bool = False
    """Check whole-file hashes, where a source publishes them."""
    cache: bool = False
    """Keep the files that are read in the Hub cache."""

    def __post_init__(self) -> None:
        settle(self, _RESOURCE_READERS)
        if self.pull == "tasks" and (self.verify or self.executor == "local"):
            other = "--verify, which hashes where it reads" if self.verify else "--executor local"
            raise RequestError(f"--pull tasks cannot be combined with {other}", "drop one of them")


_RESOURCE_READERS = {
    "memory": optional(size),
    "device": one_of(*DEVICES),
    "executor": one_of(*EXECUTORS),
    "address": optional(text),
    "max_workers": optional(whole(1)),
    "pull": one_of(*PULLERS),
    "threads": optional(whole(1)),
    "verify": flag,
    "cache": flag,
}
RESOURCES = tuple(field.name for field in fields(Resources))
"""Options that they do not depend on."""


def check_run_name(name: str) -> str:
    """Return the name if it may name a run.

    Raises:
        RequestError: empty, other characters than [A-Za-z0-9._-], or only dots.
    """
    if not _RUN_NAME.fullmatch(name) or not name.strip(".") or len(name) > 200:
        raise RequestError(
            f"not a run name: {quoted(name)}", "use letters, digits, '.', '_' and '-': --run NAME"
        )
    return name


def run_name_from(text: str) -> str:
    """Return a run name made from a source's own name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:200] or "run"
