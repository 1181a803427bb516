"""The console script `hallmarks`."""

from __future__ import annotations

from importlib import import_module

import click

from jobs.console import run
from pipeline.version import VERSION

COMMANDS = ("plan", "analyze", "status", "audit", "sql", "demo")


class _Commands(click.Group):
    """Commands by the name of their module, imported when used: torch takes a second."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        return getattr(import_module(f"jobs.{cmd_name}"), cmd_name)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION)
def hallmarks() -> None:
    """How did the weights travel between the checkpoints of a training run?"""


def main() -> None:
    """Run the command line."""
    run(hallmarks)
