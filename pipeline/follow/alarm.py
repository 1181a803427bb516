"""A command that is called when something is found to be wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping

MOST_S = 60.0
"""That a command may take, after which it is killed: it tells somebody."""
_OUTPUT = 2
"""Its output goes to standard error: standard output is for results."""


class Alarm:
    """Calls one command, each time beside everything else."""

    def __init__(self, command: str, note: Callable[[str], None]) -> None:
        """`command`: for a shell. `note`: told how it failed."""
        self._command, self._note = command, note
        self._threads: list[threading.Thread] = []

    def call(self, variables: Mapping[str, str]) -> None:
        """Call it with these variables in its environment, and go on."""
        thread = threading.Thread(target=self._called, args=(variables,), name="alarm", daemon=True)
        thread.start()
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]

    def wait(self) -> None:
        """Return when all calls have ended."""
        end = time.monotonic() + MOST_S + 1
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _called(self, variables: Mapping[str, str]) -> None:
        try:
            process = subprocess.Popen(
                self._command,
                shell=True,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=_OUTPUT,
                start_new_session=True,  # whatever it starts ends with it
            )
        except (OSError, ValueError) as error:
            self._note(f"--exec: cannot be called: {error}")
            return
        try:
            code = process.wait(MOST_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._note(f"--exec: killed after {MOST_S:.0f} s")
            return
        if code:
            self._note(f"--exec: ended with code {code}")
