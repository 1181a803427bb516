"""The options that `plan` and `analyze` share, and what they become (docs/contract.md, §1).

They are handed on as they were typed: what they may be is decided where a request is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from jobs.console import Invocation
from pipeline.errors import RequestError, quoted
from pipeline.planning.options import FURTHER_SCOPES
from pipeline.planning.request import (
    DEVICES,
    EXECUTORS,
    LAYOUTS,
    PULLERS,
    RESOURCES,
    SELECTION,
    Request,
    Resources,
)
from pipeline.statistics.table import SAID
from pipeline.training.settings import Settings, assigned, read_settings

_NAMED = [
    click.option(
        "--revisions",
        multiple=True,
        metavar="GLOB",
        help="Only checkpoints whose name matches, e.g. 'step*' (repeatable).",
    ),
    click.option(
        "--steps", metavar="A:B[:EVERY]", help="Only steps from A to B that are multiples of EVERY."
    ),
    click.option(
        "--names",
        metavar="REGEX",
        help="How names of checkpoints are read: groups step, tokens, stage, seed, branch, e.g."
        " 'upd(?P<step>\\d+)'.",
    ),
]
_WEIGHT_FILES = click.option(
    "--weights",
    multiple=True,
    metavar="GLOB",
    help="Which files of a checkpoint are its weights, e.g. 'unet_ema/*' (repeatable).",
)
_SERIES = [
    click.option(
        "--seeds",
        metavar="first|all|NAME",
        default="first",
        show_default=True,
        help="Of parallel runs in one SOURCE: the longest, a run each, or the one of that name.",
    ),
    click.option(
        "--layout",
        metavar="|".join(LAYOUTS),
        default="auto",
        show_default=True,
        help="How a Hub repository exposes its checkpoints.",
    ),
]
_CHECKPOINTS = [*_NAMED, _WEIGHT_FILES, *_SERIES]
_TENSORS = [
    click.option(
        "--include",
        multiple=True,
        metavar="REGEX",
        help="Only tensors whose name matches (repeatable).",
    ),
    click.option(
        "--exclude",
        multiple=True,
        metavar="REGEX",
        help="Exclude matching tensors (overrides --include).",
    ),
    click.option(
        "--state",
        metavar="KEY",
        help="Where in a PyTorch file the weights lie, e.g. model_ema or state.model.",
    ),
]
_SELECTION = [
    click.argument("sources", metavar="SOURCE...", nargs=-1, required=True),
    click.option("--run", metavar="NAME", help="Name of the run in the store."),
    *_CHECKPOINTS,
    click.option(
        "--joint",
        is_flag=True,
        help="Add a run over all SOURCEs (named by --run), from the same read.",
    ),
    click.option(
        "--roles",
        metavar="FILE.toml",
        help="What tensors are whose names are not known: regex → component, layer, stack, ….",
    ),
    click.option("--by-head", is_flag=True, help="Also analyze every attention head separately."),
    click.option(
        "--statistics",
        multiple=True,
        metavar="LIST|all",
        help="Also compute, in the same read (repeatable, or with commas):"
        + "".join(f"\n\n{name}: {meaning}" for name, meaning in SAID.items()),
    ),
    click.option(
        "--spectra",
        metavar="K",
        help="Also compute singular values of whole matrices at K checkpoints, in a second read.",
    ),
    click.option(
        "--windows",
        multiple=True,
        metavar="LIST",
        help="Checkpoints of each sliding window (default: 8), e.g. 5,8,16; and scopes to add:"
        f" {', '.join(FURTHER_SCOPES)}.",
    ),
    click.option(
        "--fraction",
        metavar="F",
        help="Read only this fraction of the weights (random sample, with standard errors).",
    ),
    click.option(
        "--budget", metavar="SIZE", help="Read at most SIZE bytes (random sample), e.g. 20GB."
    ),
    click.option(
        "--seed",
        metavar="N",
        default="0",
        show_default=True,
        help="Random seed; change it for an independent sample.",
    ),
    *_TENSORS,
    click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help="A hyperparameter of the training, e.g. lr=3e-4 (repeatable; overrides --settings).",
    ),
    click.option(
        "--settings",
        metavar="FILE",
        help="Hyperparameters of the training: a file of JSON, TOML or YAML.",
    ),
    click.option(
        "--training",
        metavar="FILE",
        help="Metrics of the training by step: .csv, .jsonl or .parquet with columns step, metric,"
        " value and optionally split; or a trainer's log.",
    ),
]
_MEMORY = click.option("--memory", metavar="SIZE", help="Working memory of each worker, e.g. 2GiB.")
_RESOURCES = [
    _MEMORY,
    click.option(
        "--device",
        metavar="|".join(DEVICES),
        default="auto",
        show_default=True,
        help="Where to compute.",
    ),
    click.option(
        "--executor",
        metavar="|".join(EXECUTORS),
        default="ray",
        show_default=True,
        help="local: run in this process, without Ray.",
    ),
    click.option(
        "--address", help="Ray cluster to use; default: RAY_ADDRESS, otherwise start a local Ray."
    ),
    click.option(
        "--pull",
        metavar="|".join(PULLERS),
        default="auto",
        show_default=True,
        help="Who reads on a cluster: the workers themselves (actor), or tasks on other CPUs.",
    ),
    click.option("--max-workers", metavar="N", help="Maximum number of workers."),
    click.option(
        "--verify",
        is_flag=True,
        help="Verify files against the Hub's published hashes, in the same read.",
    ),
    click.option("--cache", is_flag=True, help="Keep the files that are read in the Hub cache."),
]
_OUTPUT = [
    click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
    ),
    click.option("--debug", is_flag=True, help="Show tracebacks instead of one-line errors."),
]


def remember_store(context: click.Context, _: click.Parameter, store: str) -> str:
    """Let the report of an error know where the command keeps its results."""
    if isinstance(context.obj, Invocation):
        context.obj.store = store
    return store


store_option = click.option(
    "--store",
    callback=remember_store,
    default="hallmarks-store",
    show_default=True,
    metavar="STORE",
    help="Where results are stored: a directory, s3://…, gs://… or az://….",
)
json_option, debug_option = _OUTPUT


def selection_and_resources(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shared options to a command."""
    for option in reversed([*_SELECTION, *_RESOURCES, *_OUTPUT]):
        command = option(command)
    return command


_NOT_FOLLOWED = {"joint", "statistics", "spectra", "fraction", "budget", "seed"}
"""What takes several sources, other checkpoints beside the one that is read, a second read, or a sample."""


def what_is_followed(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add one SOURCE, and the options that say what of it is followed, and with how much memory."""
    _, *selection = _SELECTION
    memory, *_ = _RESOURCES
    source = click.argument("source", metavar="SOURCE")
    for option in reversed([source, *selection, memory, *_OUTPUT]):
        command = option(command)
    parameters: list[click.Parameter] = vars(command)["__click_params__"]
    parameters[:] = [each for each in parameters if each.name not in _NOT_FOLLOWED]
    return command


def checkpoints_of_a_source(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add a SOURCE, which may be left out, and the options that say which of its checkpoints count."""
    sources = click.argument("sources", metavar="[SOURCE...]", nargs=-1)
    for option in reversed([sources, *_CHECKPOINTS]):
        command = option(command)
    return command


def checkpoints_to_average(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add a SOURCE, and the options that say which of its checkpoints and tensors are averaged."""
    source = click.argument("source", metavar="SOURCE")
    for option in reversed([source, *_NAMED, *_SERIES, *_TENSORS, _MEMORY]):
        command = option(command)
    return command


def requests_from(options: dict[str, Any]) -> list[Request]:
    """Return what decides the figures, a request for each source: each becomes a run of its own.

    With `--seeds all` there is one for each of the runs in a source.
    """
    # planning takes a sixth of a second to import: not for those who ask a store
    from pipeline.planning.make import check_distinct, one_for_each_run, run_name

    sources, joint, run = options["sources"], options.get("joint"), options["run"]
    patterns = {f"--{name}": options.get(name, ()) for name in ("revisions", "weights")}
    _refuse_expanded(sources, patterns)
    if len(sources) > 1 and run and not joint:
        raise RequestError(
            f"--run {run} cannot name {len(sources)} runs",
            "leave it out: runs are named after their sources; with --joint it names the one"
            " over all",
        )
    selection = {name: options[name] for name in SELECTION if name in options and name != "run"}
    selection["settings"] = _settings(options)
    single_run = None if joint else run
    requests = [
        request
        for source in sources
        for request in one_for_each_run(Request(source, single_run, **selection))
    ]
    if len(requests) > 1 and options.get("training"):
        raise RequestError(
            f"--training {quoted(options['training'])} tells of one run, found {len(requests)}",
            "analyze the SOURCEs one by one",
        )
    check_distinct([*map(run_name, requests), *([run] if joint and run else [])])
    return requests


def _settings(options: Mapping[str, Any]) -> Settings:
    """Return what `--settings` and `--set` state together."""
    of_file = read_settings("--settings", options["settings"]) if options.get("settings") else {}
    return {**of_file, **assigned("--set", options.get("assignments", ()))}


def _refuse_expanded(sources: Sequence[str], patterns: Mapping[str, Sequence[str]]) -> None:
    """Refuse what the shell has made of a pattern without quotes: one value, and further SOURCEs."""
    further = sources[1:]
    for option, values in patterns.items():
        for value in values:
            start = os.path.commonprefix([value, *further])  # noqa: RUF071 - characters are meant
            if further and start and all(map(os.path.exists, (value, *further))):
                more = f" and {len(further) - 1} more" if len(further) > 1 else ""
                raise RequestError(
                    f"{option} {quoted(value)} is followed by the SOURCE {quoted(further[0])}{more}: the"
                    " shell has expanded a pattern",
                    f"quote it: {option} '{start}*'",
                )


def resources_from(options: dict[str, Any]) -> Resources:
    """Return what the figures do not depend on."""
    return Resources(**{name: options[name] for name in RESOURCES if name in options})


def check_store(store: str) -> None:
    """Refuse what cannot be a store, before anything is read."""
    from pipeline.store.folder import Folder  # obstore takes a tenth of a second

    Folder(store)
    check_place("--store", store)


def check_place(option: str, place: str) -> None:
    """Refuse a relative directory of a submitted job: its working directory is a copy that Ray removes."""
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if submitted and "://" not in place and not Path(place).is_absolute():
        raise RequestError(
            f"{option} {place} is relative, and the working directory of a Ray job is a cache",
            "name a directory that all nodes see, by its absolute path",
        )
