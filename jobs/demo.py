"""`hallmarks demo`: train a small language model, analyse it, show what there is to see."""

from __future__ import annotations

import json
import shutil
import time
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from jobs.analyze import analyze
from jobs.console import console, run, say
from jobs.language_model import train
from jobs.options import debug_option
from jobs.report import report
from pipeline.errors import RequestError, quoted
from pipeline.recorder.folder import LOG
from pipeline.store.folder import Folder

DEMO = "hallmarks-demo"


@click.command()
@click.option(
    "--store",
    default=DEMO,
    show_default=True,
    metavar="STORE",
    help="Where results are stored; by default in a store of the demo's own.",
)
@click.option("--executor", type=click.Choice(["ray", "local"]), default="ray", show_default=True)
@debug_option
@click.pass_context
def demo(context: click.Context, store: str, executor: str, debug: bool) -> int:
    """Train a small language model for about 40 checkpoints and analyse how its weights moved.

    The checkpoints stay in STORE/demo (hallmarks-demo/demo if STORE is remote).
    """
    del debug
    screen = console(stderr=True)
    # beside the store's tables, one of which is called `checkpoints`
    checkpoints = Path(DEMO if Folder(store).remote else store) / "demo"
    _remove_earlier(checkpoints)
    say(screen, "training a small language model on the Python language reference …")
    started = time.monotonic()
    train(checkpoints, on_checkpoint=partial(_told, screen))
    trained = time.monotonic()
    # its checkpoints are new each time
    options = ("--run", "demo", "--store", store, "--executor", executor, "--fresh", "--replace")
    code = _run(context, analyze, str(checkpoints), *options)
    analyzed = time.monotonic()
    if code:
        return code
    code = _run(context, report, "--store", store, "--run", "demo")
    say(
        console(),
        f"trained in {trained - started:.0f} s, analyzed in {analyzed - trained:.0f} s;"
        f" checkpoints: {checkpoints}",
    )
    return code


def _run(context: click.Context, command: click.Command, *arguments: str) -> int:
    assert command.name is not None
    made = command.make_context(command.name, list(arguments), parent=context)
    return context.invoke(command, **made.params)


def _remove_earlier(checkpoints: Path) -> None:
    """Remove what an earlier demo recorded, and nothing else."""
    earlier = list(checkpoints.glob("step-*[0-9]"))
    if not all(map(_is_the_demos, earlier)):
        raise RequestError(
            f"{quoted(checkpoints)} holds checkpoints that are not the demo's",
            "choose another --store",
        )
    try:
        for folder in earlier:
            shutil.rmtree(folder)
        (checkpoints / LOG).unlink(missing_ok=True)
    except OSError as error:
        raise RequestError(
            f"{quoted(checkpoints)} cannot be written: {error.strerror}", "choose another --store"
        ) from None


def _is_the_demos(folder: Path) -> bool:
    try:
        return "training" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError):
        return False


def _told(screen: Console, step: int, loss: float) -> None:
    if step == 0 or step >= 100:
        say(screen, f"  step {step:>5}  loss {loss:.3f}")


if __name__ == "__main__":
    run(demo)
