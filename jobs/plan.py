"""`hallmarks plan`: what `analyze` would read and compute. Reads headers only."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console

from jobs.console import Result, run
from jobs.options import request_from, resources_from, selection_and_resources
from pipeline.analysis import worker_memory
from pipeline.execute.worker import available_cores
from pipeline.planning.memory import IDLE_BYTES, Memory, show_size
from pipeline.planning.plan import Plan, make_plan

_NAMES_SHOWN = 5


@click.command()
@selection_and_resources
def plan(**options: Any) -> int:
    """Show what analyze would read of SOURCE: checkpoints, tensors, bytes, memory."""
    resources = resources_from(options)
    made, source = make_plan(request_from(options))
    # A worker of this machine; on a cluster the same budget holds for each of its workers.
    memory = worker_memory(made, resources, min(4, available_cores()) + source.waits)
    if options["as_json"]:
        Result().print_json(describe(made, memory))
    else:
        _print(made, memory)
    return 0


def describe(made: Plan, memory: Memory) -> dict[str, Any]:
    """Return everything about a plan that a machine may want."""
    return {
        "run": made.run,
        "source": made.source,
        "digest": made.digest,
        "checkpoints": [asdict(checkpoint) for checkpoint in made.checkpoints],
        "checkpoints_left_out": [asdict(entry) for entry in made.left_out_checkpoints],
        "tensors": [
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "dtypes": sorted(set(tensor.dtypes)),
                "parts": [part.label for part in tensor.parts if part.label],
                **asdict(tensor.role),
            }
            for tensor in made.tensors
        ],
        "tensors_left_out": [
            {"name": entry.name, "shape": entry.shape, "dtype": entry.dtype, "reason": entry.reason}
            for entry in made.left_out_tensors
        ],
        "parameters": made.parameters,
        "bytes_total": made.bytes_total,
        "files": len(made.files),
        "tiles": len(made.tiles),
        "memory": {**asdict(memory), "idle": IDLE_BYTES},
    }


def _print(made: Plan, memory: Memory) -> None:
    console = Console(soft_wrap=True, highlight=False)

    def say(text: str) -> None:
        console.print(text, markup=False)

    first, last = made.checkpoints[0], made.checkpoints[-1]
    dtypes = "/".join(sorted({checkpoint.dtype for checkpoint in made.checkpoints}))
    say(f"run          {made.run}")
    say(f"source       {made.source}")
    say(f"checkpoints  {len(made.checkpoints)}: {first.name} … {last.name}, stored as {dtypes}")
    _left_out(say, [(entry.name, entry.reason) for entry in made.left_out_checkpoints])
    say(f"tensors      {len(made.tensors)} aligned, {made.parameters:,} weights each checkpoint")
    counts: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for tensor in made.tensors:
        counts[tensor.role.component] += 1
        weights[tensor.role.component] += tensor.numel
    for component, count in counts.most_common():
        say(f"             {component:<10} {count:>5}  {weights[component]:>15,}")
    _left_out(say, [(entry.name, entry.reason) for entry in made.left_out_tensors])
    say(
        f"to read      {show_size(made.bytes_total)} of {len(made.files)} files,"
        f" in {len(made.tiles)} tiles"
    )
    say(
        f"memory       {show_size(memory.projected)} a worker, beside the"
        f" {show_size(IDLE_BYTES)} of an idle process; budget {show_size(memory.budget)},"
        f" least {show_size(memory.least, up=True)}"
    )


def _left_out(say: Any, entries: list[tuple[str, str]]) -> None:
    for name, reason in entries[:_NAMES_SHOWN]:
        say(f"             left out: {name} ({reason})")
    if len(entries) > _NAMES_SHOWN:
        say(f"             … and {len(entries) - _NAMES_SHOWN} more (--json lists all)")


if __name__ == "__main__":
    run(plan)
