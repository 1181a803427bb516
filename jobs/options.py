"""The options that `plan` and `analyze` share, and what they become (docs/contract.md, §1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from jobs.console import Invocation
from pipeline.errors import RequestError
from pipeline.planning.memory import parse_size
from pipeline.planning.plan import run_name
from pipeline.planning.request import Request, Resources, StepRange
from pipeline.sources.hub import LAYOUTS


class Size(click.ParamType):
    """Bytes, written as people write them."""

    name = "SIZE"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        try:
            return value if isinstance(value, int) else parse_size(value)
        except ValueError:
            self.fail(f"{value!r} is not a size, such as 2GiB or 500MB", param, ctx)


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
        type=click.Choice(LAYOUTS),
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
        "--fraction",
        type=float,
        metavar="F",
        help="Read a random sample of so much; figures get standard errors.",
    ),
    click.option(
        "--budget", type=Size(), help="Read a random sample of so many bytes at most, e.g. 20GB."
    ),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Of the sample; another draws anew."
    ),
    click.option("--include", multiple=True, metavar="REGEX", help="Only these tensors."),
    click.option("--exclude", multiple=True, metavar="REGEX", help="Not these tensors; wins."),
]
_RESOURCES = [
    click.option("--memory", type=Size(), help="Budget of one worker's working memory, e.g. 2GiB."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto"),
    click.option(
        "--executor",
        type=click.Choice(["ray", "local"]),
        default="ray",
        show_default=True,
        help="local: in this process, without Ray.",
    ),
    click.option("--address", help="Ray cluster to use; default RAY_ADDRESS, else one of its own."),
    click.option(
        "--pull",
        type=click.Choice(["auto", "actor", "tasks"]),
        default="auto",
        show_default=True,
        help="Who pulls on a cluster: the workers themselves, or tasks on the other CPUs.",
    ),
    click.option("--max-workers", type=click.IntRange(min=1), help="At most so many workers."),
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
    sources = options["sources"]
    if options["joint"] and len(sources) < 2:
        raise RequestError(f"--joint needs at least 2 SOURCEs, found {len(sources)}")
    if len(sources) > 1 and options["run"] and not options["joint"]:
        raise RequestError(
            f"--run {options['run']} cannot name {len(sources)} runs",
            "leave it out: runs are named after their sources; with --joint it names the one"
            " over all",
        )
    own = None if options["joint"] else options["run"]
    requests = [_request(source, own, options) for source in sources]
    names = [run_name(request) for request in requests]
    if options["joint"] and options["run"]:
        names.append(options["run"])
    for name in names:
        if names.count(name) > 1:
            raise RequestError(
                f"two runs would both be called {name}, and one replace the other",
                "choose another name, or analyze the SOURCEs one by one, with --run",
            )
    return requests


def _request(source: str, run: str | None, options: dict[str, Any]) -> Request:
    return Request(
        source=source,
        run=run,
        revisions=options["revisions"],
        steps=StepRange.parse(options["steps"]) if options["steps"] else None,
        include=options["include"],
        exclude=options["exclude"],
        by_head=options["by_head"],
        layout=options["layout"],
        fraction=options["fraction"],
        budget=options["budget"],
        seed=options["seed"],
    )


def resources_from(options: dict[str, Any]) -> Resources:
    """Return what the figures do not depend on."""
    return Resources(
        memory=options["memory"],
        device=options["device"],
        executor=options["executor"],
        address=options["address"],
        max_workers=options["max_workers"],
        pull=options["pull"],
        verify=options["verify"],
        cache=options["cache"],
    )
