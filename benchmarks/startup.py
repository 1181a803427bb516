"""How long until a command answers? Each a process of its own, against what is wanted.

    PYTHONPATH=. python benchmarks/startup.py [--repeats 5]

The best of the repeats: what else runs on the machine is not asked about. `plan` is of 154 local checkpoints in 300
tensors, for the first time and again (which knows their headers no more than before: nothing is kept of local
files). The store is one of 12,000 tensors × 24 checkpoints; opening it and asking for the map of one layer is timed
within a process that has imported the package.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import contestants
from benchmarks.markdown import table
from benchmarks.suites import SUITES

_LAYER = (
    "import sys, time, pipeline\n"
    "pipeline.open_store  # imports\n"
    "started = time.perf_counter()\n"
    "found = pipeline.open_store(sys.argv[1]).trajectory_map(sys.argv[2], 'layer', layer=3)\n"
    "assert len(found) == int(sys.argv[3])\n"
    "print(time.perf_counter() - started)\n"
)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    small, experts = SUITES["small"], SUITES["experts"]
    rows = []

    def add(what: str, limit: float, timed: Callable[[], float]) -> None:
        seconds = min(timed() for _ in range(repeats))
        rows.append(
            [what, f"{seconds:.2f} s", f"{limit} s", "yes" if seconds < limit else "**no**"]
        )

    with tempfile.TemporaryDirectory(prefix="hallmarks-startup-") as folder:
        many, store = Path(folder) / "experts", Path(folder) / "store"
        experts.write(many)
        contestants.hallmarks(many, store)
        small.write(Path(folder) / "small")
        query = "SELECT i, j, cosine FROM similarity WHERE scope = 'layer' AND layer = 3"
        add("--help", 0.3, lambda: _command("--help"))
        add("sql, of runs", 0.8, lambda: _command("sql", "--store", str(store), "FROM runs"))
        add("status", 0.8, lambda: _command("status", "--store", str(store)))
        add("plan of 154 local checkpoints", 3, lambda: _command("plan", f"{folder}/small"))
        asked = [str(store), "experts", str(experts.checkpoints)]
        add("opening 12,000 tensors × 24, one layer", 1, lambda: float(_python(_LAYER, asked)))
        add("the same by sql", 1.8, lambda: _command("sql", "--store", str(store), query))
    print(table(["", "seconds", "wanted", "reached"], rows))


def _command(*arguments: str) -> float:
    """Return the seconds of `hallmarks` with these arguments, the process's own start included."""
    started = time.perf_counter()
    _python("from jobs.cli import main; main()", arguments)
    return time.perf_counter() - started


def _python(code: str, arguments: Sequence[str]) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        check=True, cwd=contestants.HERE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ).stdout  # fmt: skip


if __name__ == "__main__":
    main()
