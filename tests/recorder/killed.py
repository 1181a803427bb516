"""Trainings that are killed while they are recorded: DIRECTORY, in which each has a folder of its own."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from pipeline.recorder.recorder import Recorder

SIZE, STEPS = 200_000, 3


def network() -> nn.Module:
    made = nn.Module()
    made.weight = nn.Parameter(torch.zeros(SIZE))
    return made


def record(directory: Path, steps: int) -> None:
    made = network()
    with Recorder(made, directory, "linear:1") as recorder:
        for step in range(steps):
            nn.init.constant_(made.weight, step)
            recorder.step(step, loss=step)


def killed_before(number: int, directory: Path) -> bool:
    """Record in a child that is killed at its `number`th event; return whether there was one."""
    events = itertools.count()

    def kill(event: str, arguments: object) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove") and next(events) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    if not (child := os.fork()):
        sys.addaudithook(kill)
        record(directory, STEPS)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def killed_after(seconds: float, directory: Path) -> None:
    if not (child := os.fork()):
        record(directory, 1000)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    for number in itertools.count():
        if not killed_before(number, target / f"event-{number}"):
            break
    for number in range(4):
        killed_after(0.05 + 0.1 * random.random(), target / f"time-{number}")
