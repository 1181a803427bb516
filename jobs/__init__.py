"""Entry points: from the command line to the pipeline and back to an exit code."""

import os
import sys

if sys.argv[0] == "-m" or os.path.basename(sys.argv[0]) == "hallmarks":  # noqa: PTH119 - no import
    # this process is the program: `python -m` looks for its module, or the console script runs
    from jobs.program import begin

    begin()
