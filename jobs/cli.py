"""The console script `hallmarks`."""

from __future__ import annotations

import difflib
from importlib import import_module

import click

from jobs.console import run
from pipeline.errors import RequestError, quoted
from pipeline.version import VERSION

COMMANDS = {
    "plan": "Show what analyze would read: checkpoints, tensors, bytes, memory.",
    "analyze": "Analyse the checkpoints of a source into a store.",
    "update": "Make the figures of stored runs again with this version.",
    "follow": "Keep a run up to date with a source that still grows.",
    "status": "Show how far each run of a store is.",
    "audit": "Print the findings about the checkpoints of a run.",
    "sql": "Run a query over the views of a store.",
    "average": "Write a combination of checkpoints as a checkpoint.",
    "report": "Write one page that shows the runs of a store.",
    "sweep": "Train small networks over a grid of settings and analyse each.",
    "demo": "Train a small language model and analyse it.",
}


class _Commands(click.Group):
    """Commands by the name of their module, imported when one is used: torch takes two seconds."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            near = difflib.get_close_matches(cmd_name, COMMANDS, 1)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            raise RequestError(f"no such command: {quoted(cmd_name)}", meant)
        return getattr(import_module(f"jobs.{cmd_name}"), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION)
def hallmarks() -> None:
    """How did the weights travel between the checkpoints of a training run?"""


def main() -> None:
    """Run the command line."""
    run(hallmarks)
