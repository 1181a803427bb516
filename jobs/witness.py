"""A process beside this one that says so if this one ends without a word.

Nothing in a process can tell that the kernel has killed it for lack of memory, nor that Ray's C++ has ended
it, as it does some seconds after the node or the head that it hangs on has died.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

_SCRIPT = "import os, sys\nos.read(0, 1) or os.write(2, sys.argv[1].encode())"
_pipe: int | None = None


def watch(last_words: str) -> None:
    """Have these lines printed on standard error when this process ends, unless it is dismissed."""
    global _pipe
    if _pipe is not None:
        return
    ours = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ours)  # a terminal's go to all: it inherits
    reading, writing = os.pipe()
    try:
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SCRIPT, last_words],
            stdin=reading, stdout=subprocess.DEVNULL, env={}, cwd="/",
        )  # fmt: skip
    except OSError:
        os.close(writing)  # a system without room for one more: the job does without
    else:
        _pipe = writing
    finally:
        os.close(reading)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def dismiss() -> None:
    """Let it go: what there was to say has been said. Fit for a signal's handler."""
    if _pipe is not None:
        with contextlib.suppress(OSError):
            os.write(_pipe, b".")
