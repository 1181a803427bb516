"""A sweep in a process of its own, which can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG = """
name = "{name}"
seeds = {seeds}
[fixed]
width = 4
depth = 1
steps = {steps}
checkpoints = 4
[grid]
{grid}
"""


def write_config(
    folder: Path, seeds: int = 1, steps: int = 8, grid: str = "momentum = [0, 0.9]"
) -> Path:
    """Write the configuration of a sweep of two settings, which trains in no time."""
    path = folder / "s.toml"
    path.write_text(CONFIG.format(name="s", seeds=seeds, steps=steps, grid=grid))
    return path


class Driver:
    """The process of a sweep, and the processes that it starts."""

    def __init__(self, config: Path, store: Path, *options: str) -> None:
        self.mark = uuid.uuid4().hex  # in the environment of all that is this sweep's
        command = ["sweep", str(config), "--store", str(store), "--json", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from jobs.cli import main; main()", *command],
            env=os.environ | {"TEST_SWEEP": self.mark},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def others(self, script: str = "import serve") -> list[int]:
        """Return the processes that carry out its runs, by a part of their command line."""
        pids = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                pid = int(folder.name)
                is_ours = self.mark.encode() in (folder / "environ").read_bytes()
                if is_ours and script.encode() in (folder / "cmdline").read_bytes():
                    pids.append(pid)
        return pids

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """Return what is true as soon as it is."""
        while not (value := condition()):
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)
        return value

    def kill(self) -> None:
        """End it without a word, and wait until all that it started has ended, too."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
        while self.others():
            time.sleep(0.02)

    def ended(self) -> tuple[int, dict[str, Any], str]:
        """Return the exit code, the result, and what was printed on standard error."""
        output, errors = self.process.communicate(timeout=120)
        return self.process.returncode, json.loads(output or "{}"), errors
