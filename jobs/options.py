"""The options that `plan` and `analyze` share, and what they become (docs/contract.md, §1).

They are handed on as they were typed: what they may be is decided where a request is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from jobs.console import Invocation
from pipeline.errors import RequestError
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
from pipeline.statistics.table import NAMES

_SELECTION = [
    click.argument("sources", metavar="SOURCE...", nargs=-1, required=True),
    click.option("--run", metavar="NAME", help="Name of the run in the store."),
    click.option(
        "--revisions",
        multiple=True,
        metavar="GLOB",
        help="Only checkpoints whose name matches, e.g. 'step*'; repeatable.",
    ),
    click.option(
        "--steps", metavar="A:B[:EVERY]", help="Only steps from A to B, multiples of EVERY."
    ),
    click.option(
        "--layout",
        metavar="|".join(LAYOUTS),
        default="auto",
        show_default=True,
        help="How a Hub repository exposes its checkpoints.",
    ),
    click.option(
        "--joint",
        is_flag=True,
        help="One more run NAME over all SOURCEs, from the same read.",
    ),
    click.option("--by-head", is_flag=True, help="Also every attention head by itself."),
    click.option(
        "--statistics",
        multiple=True,
        metavar="LIST|all",
        help=f"Also compute {' and '.join(NAMES)} of every group, in the same read.",
    ),
    click.option(
        "--fraction",
        metavar="F",
        help="Read a random sample of so much; figures get standard errors.",
    ),
    click.option(
        "--budget", metavar="SIZE", help="Read a random sample of so many bytes at most, e.g. 20GB."
    ),
    click.option(
        "--seed",
        metavar="N",
        default="0",
        show_default=True,
        help="Of the sample; another draws anew.",
    ),
    click.option("--include", multiple=True, metavar="REGEX", help="Only these tensors."),
    click.option("--exclude", multiple=True, metavar="REGEX", help="Not these tensors; wins."),
]
_RESOURCES = [
    click.option(
        "--memory", metavar="SIZE", help="Budget of one worker's working memory, e.g. 2GiB."
    ),
    click.option("--device", metavar="|".join(DEVICES), default="auto", show_default=True),
    click.option(
        "--executor",
        metavar="|".join(EXECUTORS),
        default="ray",
        show_default=True,
        help="local: in this process, without Ray.",
    ),
    click.option("--address", help="Ray cluster to use; default RAY_ADDRESS, else one of its own."),
    click.option(
        "--pull",
        metavar="|".join(PULLERS),
        default="auto",
        show_default=True,
        help="Who pulls on a cluster: the workers themselves, or tasks on the other CPUs.",
    ),
    click.option("--max-workers", metavar="N", help="At most so many workers."),
    click.option(
        "--verify",
        is_flag=True,
        help="Check the hashes that the Hub publishes of whole files, in the same read.",
    ),
    click.option(
        "--cache", is_flag=True, help="Keep the files that are read in the Hub cache, whole."
    ),
]
_OUTPUT = [
    click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output."),
    click.option("--debug", is_flag=True, help="Tracebacks instead of one-line errors."),
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
    help="Where results live: a directory, s3://…, gs://… or az://….",
)
json_option, debug_option = _OUTPUT


def selection_and_resources(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shared options to a command."""
    for option in reversed([*_SELECTION, *_RESOURCES, *_OUTPUT]):
        command = option(command)
    return command


def requests_from(options: dict[str, Any]) -> list[Request]:
    """Return what decides the figures, a request for each source: each becomes a run of its own."""
    # planning takes a sixth of a second to import: not for those who ask a store
    from pipeline.planning.plan import check_distinct, run_name

    sources, joint, run = options["sources"], options["joint"], options["run"]
    if len(sources) > 1 and run and not joint:
        raise RequestError(
            f"--run {run} cannot name {len(sources)} runs",
            "leave it out: runs are named after their sources; with --joint it names the one"
            " over all",
        )
    selection = {name: options[name] for name in SELECTION if name != "run"}
    single_run = None if joint else run
    requests = [Request(source, single_run, **selection) for source in sources]
    check_distinct([*map(run_name, requests), *([run] if joint and run else [])])
    return requests


def resources_from(options: dict[str, Any]) -> Resources:
    """Return what the figures do not depend on."""
    return Resources(**{name: options[name] for name in RESOURCES if name in options})
