"""Entry points: from the command line to the pipeline and back to an exit code."""

import os
import signal
import sys


def _leave(number: int, frame: object) -> None:
    """End at once, in one line: nothing has begun yet."""
    del frame
    try:
        os.write(2, f"interrupted ({signal.Signals(number).name})\n".encode())
    finally:
        os._exit(130)


if sys.argv[0] == "-m" or os.path.basename(sys.argv[0]) == "hallmarks":  # noqa: PTH119 - no import
    # `os.path`, since importing pathlib takes time in which a signal would end in a traceback;
    # this process is the program: `python -m` looks for its module, or the console script runs
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)
    from jobs.program import begin

    begin()
