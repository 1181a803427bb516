"""What recording costs the loop that trains: the table of benchmarks/results/recorder.md.

    PYTHONPATH=. python benchmarks/recorder.py [--steps 720] [--directory DIR]

The demo's network (jobs/language_model.py) is trained, on one thread as in the demo. Twenty steps with the
recorder, which begin with a checkpoint that is then written behind them, alternate with twenty without: both see
the same load of the machine. CPU seconds of a thread do not depend on that load: how long the recorder computes in the
loop's thread and in its own, beside what a step takes, is exact; what the loop as a whole takes more is the
difference of two means.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from benchmarks.markdown import table
from jobs import language_model
from pipeline.recorder.recorder import Recorder

EVERY = 20
WARM_UP = 2 * EVERY


@dataclass
class Cost:
    """Seconds of one step."""

    wall: float
    cpu: float
    """Of all threads."""
    call: float
    """Of the wall clock, in the recorder's call before the step."""
    call_cpu: float
    """Of the loop's thread, in that call."""


class Alternating(Recorder):
    """Records in every other twenty steps, and takes the time of all of them."""

    costs: ClassVar[list[Cost]] = []
    writing: ClassVar[list[float]] = []
    """CPU seconds of the writing thread, for each checkpoint."""

    def __init__(self, model: Any, directory: Path, schedule: str, **kwargs: Any) -> None:
        del schedule  # the demo's saves a 36th of its steps apart
        super().__init__(model, directory, f"linear:{2 * EVERY}", **kwargs)
        self._before = time.perf_counter(), time.process_time()
        self._call = 0.0, 0.0

    def step(self, step: int, /, **metrics: Any) -> None:
        now, thread = (time.perf_counter(), time.process_time()), time.thread_time()
        if step:
            wall, cpu = (at - before for at, before in zip(now, self._before, strict=True))
            self.costs.append(Cost(wall, cpu, *self._call))
        if (step // EVERY) % 2 == 0:
            super().step(step, **metrics)
        self._before = now
        self._call = time.perf_counter() - now[0], time.thread_time() - thread

    def _write(self, *args: Any) -> None:
        begun = time.thread_time()
        super()._write(*args)
        self.writing.append(time.thread_time() - begun)


def measure(steps: int, directory: Path) -> tuple[list[Cost], list[Cost], float]:
    """Return the mean costs of twenty steps, with and without the recorder, and of a checkpoint's writing."""
    with mock.patch.object(language_model, "Recorder", Alternating):
        language_model.train(directory, settings=language_model.Settings(steps=steps))
    means = {
        first: Cost(
            *(statistics.fmean(column) for column in zip(*map(astuple, twenty), strict=True))
        )
        for first in range(WARM_UP, steps - EVERY + 1, EVERY)
        if (twenty := Alternating.costs[first : first + EVERY])
    }
    recorded = [cost for first, cost in means.items() if first // EVERY % 2 == 0]
    bare = [cost for first, cost in means.items() if first // EVERY % 2]
    return recorded, bare, statistics.fmean(Alternating.writing)


def compared(of: str, recorded: Sequence[Cost], bare: Sequence[Cost]) -> list[str]:
    """Return a row: how much more the loop takes with the recorder."""
    one, other = ([getattr(cost, of) for cost in costs] for costs in (recorded, bare))
    step = statistics.fmean(other)
    error = sum(statistics.variance(each) / len(each) for each in (one, other)) ** 0.5
    more = statistics.fmean(one) - step
    return [
        f"{more * 1e3:+.2f} ± {error * 1e3:.2f}",
        f"{step * 1e3:.2f}",
        f"{more / step:+.1%} ± {error / step:.1%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=720)
    parser.add_argument("--directory", type=Path, help="where checkpoints are written")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        recorded, bare, writing = measure(arguments.steps, Path(folder) / "run")
    step, step_cpu = (statistics.fmean(getattr(c, of) for c in bare) for of in ("wall", "cpu"))
    rows = [
        ["calls, in the loop: CPU", statistics.fmean(c.call_cpu for c in recorded), step_cpu],
        ["writing, beside the loop: CPU", writing / EVERY, step_cpu],
        ["calls: wall clock", statistics.fmean(c.call for c in recorded), step],
    ]
    table_of = [
        *(
            [what, f"{cost * 1e3:.3f}", f"{of * 1e3:.2f}", f"{cost / of:.2%}"]
            for what, cost, of in rows
        ),
        ["with the recorder, more: CPU of all threads", *compared("cpu", recorded, bare)],
        ["with the recorder, more: wall clock", *compared("wall", recorded, bare)],
    ]
    print(table(["", "ms a step", "of a step's", "share"], table_of))
    print(
        f"{len(recorded)} times {EVERY} steps with, {len(bare)} without; load {load:.1f}, then {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
