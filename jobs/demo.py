"""`hallmarks demo`: train a small language model, analyse it, show what there is to see."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from jobs.analyze import analyze
from jobs.console import console, run, say
from jobs.language_model import train
from jobs.options import debug_option


@click.command()
@click.option(
    "--store",
    default="hallmarks-demo",
    show_default=True,
    metavar="STORE",
    help="Where results are stored; by default in a store of the demo's own.",
)
@click.option("--executor", type=click.Choice(["ray", "local"]), default="ray", show_default=True)
@debug_option
@click.pass_context
def demo(context: click.Context, store: str, executor: str, debug: bool) -> int:
    """Train a small language model for about 40 checkpoints and analyse how its weights moved."""
    del debug
    screen = console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="hallmarks-demo-") as folder:
        checkpoints = Path(folder) / "demo"
        say(screen, "training a small language model on the Python language reference …")
        train(checkpoints, on_checkpoint=partial(_told, screen))
        arguments = [str(checkpoints), "--run", "demo", "--store", store, "--executor", executor]
        # its checkpoints lie elsewhere each time
        arguments += ["--fresh", "--replace"]
        analyzing = analyze.make_context("analyze", arguments, parent=context)
        return context.invoke(analyze, **analyzing.params)


def _told(screen: Console, step: int, loss: float) -> None:
    if step == 0 or step >= 100:
        say(screen, f"  step {step:>5}  loss {loss:.3f}")


if __name__ == "__main__":
    run(demo)
