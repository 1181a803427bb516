"""`hallmarks average`: a combination of checkpoints, written as a checkpoint."""

from __future__ import annotations

from typing import Any

import click

from jobs.console import Result, console, run, say
from jobs.options import checkpoints_to_average, debug_option, json_option
from jobs.program import resumable
from jobs.progress import AverageProgress
from pipeline.averaging.average import AverageSummary
from pipeline.averaging.average import average as run_average
from pipeline.averaging.plan import FORMATS
from pipeline.planning.memory import show_size
from pipeline.planning.request import SELECTION, Request

_WEIGHTS_SHOWN = 8


@click.command()
@checkpoints_to_average
@click.option(
    "--weights",
    required=True,
    metavar="last:M|ema:DECAY|warmdown:M|FILE.csv",
    help="How much each checkpoint counts: the last M alike; DECAY times as much with each one further"
    " back; what a linear fall of the learning rate over the last M increments would have made of them;"
    " or a table with the columns weight and name, step or k.",
)
@click.option(
    "--out", required=True, metavar="DIR", help="Directory that the checkpoint is written to."
)
@click.option(
    "--dtype",
    metavar="|".join(FORMATS),
    help="Number format of the averaged tensors (default: as in the last checkpoint that counts).",
)
@click.option("--replace", is_flag=True, help="Replace another combination in DIR.")
@json_option
@debug_option
def average(**options: Any) -> int:
    """Write a combination of the checkpoints of SOURCE as a checkpoint: sharded safetensors as in the
    last one, with its configuration and tokenizer.

    Tensors that are no weights or not selected are taken from the last checkpoint. Which combination
    is best only a loss can tell. Rerun with the same arguments to resume where it stopped.
    """
    resumable("what was written is kept")
    result, progress = Result(), AverageProgress()
    request = Request(
        options["source"],
        **{name: options[name] for name in SELECTION if name in options and name != "weights"},
    )
    how = {name: options[name] for name in ("dtype", "memory", "replace")}
    try:
        if not options["as_json"]:
            _print(
                run_average(request, options["weights"], options["out"], **how, progress=progress)
            )
            return 0
        with result.claimed():
            summary = run_average(
                request, options["weights"], options["out"], **how, progress=progress
            )
            result.print_json(summary.as_dict())
    finally:
        progress.close()
    return 0


def _print(summary: AverageSummary) -> None:
    screen = console()
    say(
        screen, f"{summary.out}: {' and '.join(summary.dtypes)}, {show_size(summary.bytes_written)}"
    )
    counted = summary.checkpoints
    for each in counted[-_WEIGHTS_SHOWN:]:
        say(screen, f"  {each['weight']:.6f}  {each['name']}")
    if len(counted) > _WEIGHTS_SHOWN:
        say(screen, f"  and {len(counted) - _WEIGHTS_SHOWN} before them")
    copied = f", {summary.copied} copied" if summary.copied else ""
    say(
        screen,
        f"{summary.tensors} tensors averaged ({summary.parameters:,} weights){copied}, read back"
        f" and compared, {summary.seconds:.1f} s",
    )


if __name__ == "__main__":
    run(average)
