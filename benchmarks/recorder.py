"""What recording costs the loop that trains: the table of benchmarks/results/recorder.md.

    PYTHONPATH=. python benchmarks/recorder.py [--trainings 4] [--directory DIR]

The demo's network (jobs/language_model.py) is trained as in the demo, every 20th step a checkpoint, but in
turns: 20 steps with the recorder, which begin with a checkpoint that is then written behind them, 20 steps
without. So both see the same load of the machine and the same phases of the training.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.markdown import table
from jobs import language_model
from pipeline.recorder.recorder import Recorder

EVERY, STEPS = 20, 720
"""The demo's schedule saves a 36th of its steps apart, and more often before the first of these."""
WARM_UP = 4 * EVERY


class Alternating(Recorder):
    """Records in every other twenty steps, and takes the time of all of them."""

    measured: list[tuple[float, float, float]]
    """Of each step: wall clock, CPU of all threads, and wall clock in calls of the recorder, in seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begun = (time.perf_counter(), time.process_time())
        self._in_call = 0.0

    def step(self, step: int, /, **metrics: Any) -> None:
        begun = time.perf_counter(), time.process_time()
        if step:
            wall, cpu = (now - then for now, then in zip(begun, self._begun, strict=True))
            Alternating.measured.append((wall, cpu, self._in_call))
        self._begun = begun
        if (step // EVERY) % 2 == 0:
            super().step(step, **metrics)
        self._in_call = time.perf_counter() - begun[0]


def measure(trainings: int, directory: Path) -> tuple[list[list[float]], list[list[float]], float]:
    """Return of each twenty steps [wall, CPU, in calls] in seconds a step: with and without the recorder."""
    recorded: list[list[float]] = []
    bare: list[list[float]] = []
    longest = 0.0
    for number in range(trainings):
        Alternating.measured = []
        with mock.patch.object(language_model, "Recorder", Alternating):
            settings = language_model.Settings(steps=STEPS)
            language_model.train(directory / str(number), settings=settings)
        for first in range(WARM_UP, STEPS, EVERY):
            steps = Alternating.measured[first : first + EVERY]
            means = [sum(column) / EVERY for column in zip(*steps, strict=True)]
            (bare if (first // EVERY) % 2 else recorded).append(means)
            longest = max(longest, *(in_call for *_, in_call in steps))
    return recorded, bare, longest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trainings", type=int, default=4)
    parser.add_argument("--directory", type=Path, help="where checkpoints are written")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        recorded, bare, longest = measure(arguments.trainings, Path(folder))
    print(f"load of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after\n")
    rows = []
    for place, what in enumerate(("wall clock", "CPU, all threads")):
        one, other = ([each[place] for each in blocks] for blocks in (recorded, bare))
        step = statistics.fmean(other)
        error = sum(statistics.variance(each) / len(each) for each in (one, other)) ** 0.5
        more = statistics.fmean(one) - step
        rows.append(
            [what, f"{step * 1e3:.2f}", f"{more * 1e3:+.3f} ± {error * 1e3:.3f}",
             f"{more / step:+.2%} ± {error / step:.2%}"]
        )  # fmt: skip
    step = statistics.fmean(wall for wall, *_ in bare)
    in_calls = statistics.fmean(calls for *_, calls in recorded)
    rows.append(["in the recorder's calls", "", f"{in_calls * 1e3:.3f}", f"{in_calls / step:.2%}"])
    print(table(["", "ms a step without", "ms a step more with", "share"], rows))
    print(
        f"longest call: {longest * 1e3:.1f} ms; {len(recorded)} times {EVERY} steps with and without"
    )


if __name__ == "__main__":
    main()
