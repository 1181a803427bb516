"""Every fault of a network that passes, each in several ways, against the bits of a quiet run.

    python -m tests.fault_table        # prints the table of benchmarks/results/faults.md

The real client plans against the Hub fixture; tiles are read and computed as in any job, once in
quiet, then once for each row. A row holds if every tile's result file is the same in all its bytes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from tests.hub import Fault, Hub
from tests.suites import trajectory, write_suite

NAME = "org/faulty"
CHECKPOINTS, ELEMENTS = 8, 300_000
_STALL_S = 0.4  # twice as long as the reader waits, see `impatient`

STATUSES = {
    "408": Fault("status", status=408),
    "429, Retry-After": Fault("status", status=429, headers={"Retry_After": "0"}),
    "429, RateLimit": Fault("status", status=429, headers={"RateLimit": '"pages";r=0;t=0'}),
    "500": Fault("status", status=500),
    "502": Fault("status", status=502),
    "503": Fault("status", status=503),
    "504": Fault("status", status=504),
}
BODIES = {
    f"{action} {where}": Fault(action, after_share=share, seconds=_STALL_S)
    for action in ("truncate", "reset", "stall")
    for where, share in (("before the first byte", 0.0), ("half-way", 0.5), ("before the last byte", 1.0))
}  # fmt: skip
REFUSALS = {"401": Fault("status", status=401), "403": Fault("status", status=403)}
FAULTS = STATUSES | BODIES | REFUSALS

MIXED_SHARE, REPEATED_SHARE = 0.05, 0.2


def rows() -> dict[str, list[Fault]]:
    """Return the rows of the table: each fault once and repeatedly, and all of them mixed."""
    found = {}
    for name, fault in FAULTS.items():
        found[f"{name}, once"] = [replace(fault, occurrences={7})]
        if fault.headers.get("RateLimit"):
            continue  # every pause of all readers takes a second: whole seconds are stated
        share = MIXED_SHARE if name in REFUSALS else REPEATED_SHARE
        found[f"{name}, {share:.0%} of all"] = [replace(fault, probability=share)]
    each = MIXED_SHARE / len(FAULTS)
    mixed = [replace(fault, probability=each) for fault in FAULTS.values()]
    return found | {f"all of them mixed, {MIXED_SHARE:.0%} of all": mixed}


@dataclass(frozen=True)
class Outcome:
    """What one run gave, and what it cost."""

    results: dict[str, bytes]
    """Every tile's result file."""
    requests: int
    faults: int
    repeated: float
    """Bytes sent more than once, over those sent once or more."""


class Bench:
    """One plan, worked through again and again."""

    def __init__(self, hub: Hub) -> None:
        from pipeline.planning.make import make_plan
        from pipeline.planning.request import Request

        self.hub = hub
        self._plan, _ = make_plan(Request(NAME), least_tile_bytes=1 << 20)

    def run(self, *faults: Fault, before: Callable[[], None] = lambda: None) -> Outcome:
        """Read and compute all tiles while answers go wrong.

        Args:
            before: called when the URLs are known and nothing has been read.

        Raises:
            HallmarksError: a tile failed for good, or a file changed.
        """
        from pipeline.execute.drive.local import run_local
        from pipeline.execute.drive.schedule import Lost
        from pipeline.execute.work.urls import UrlBroker
        from pipeline.execute.work.worker import Worker
        from pipeline.planning.memory import project
        from pipeline.sources.hub import HubRepository
        from tests.test_bits import Kept

        plan, hub, kept = self._plan, self.hub, Kept()
        hub.reset()
        urls = UrlBroker(plan, HubRepository(NAME))
        urls.accesses(range(len(plan.files)))
        hub.reset()
        before()
        for fault in faults:
            hub.faults.add(fault)
        least = project(plan.tensors, plan.tiles, 1 << 40, 3).least  # for many small ranges
        memory = project(plan.tensors, plan.tiles, least, 3)
        worker = Worker(plan, kept, urls, "cpu", 2, memory)
        for outcome in run_local(worker, 3, plan.order()):
            if isinstance(outcome, Lost):
                raise outcome.error
        if any(fault.action == "stall" for fault in faults):
            time.sleep(_STALL_S)  # the server notes what it sent when a pause is over
        sent, covered = bytes_sent(hub)
        requests, applied = hub.count("cdn"), len(hub.faults.applied)
        return Outcome(kept.files, requests, applied, sent / covered - 1)


def bytes_sent(hub: Hub) -> tuple[int, int]:
    """Return how many bytes of files were sent, and how many of them are different ones."""
    spans: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for record in hub.records:
        if record.kind == "cdn" and record.range:
            spans[record.commit, record.path].append(record.range)
    covered = 0
    for each in spans.values():
        end = 0
        for start, stop in sorted(each):
            covered += max(0, stop - max(start, end))
            end = max(end, stop)
    return sum(stop - start for each in spans.values() for start, stop in each), covered


@cache
def _walk() -> NDArray[np.float64]:
    return trajectory("walk", CHECKPOINTS, ELEMENTS, 0.1)


def fill(hub: Hub, folder: Path) -> None:
    """Put the suite on the Hub."""
    rows = _walk()
    for step, path in enumerate(sorted(write_suite(folder, {"a": rows, "b": rows}).iterdir())):
        hub.repository(NAME).commit_folder(path, branch=f"step{step}")


@contextmanager
def impatient() -> Iterator[None]:
    """Wait milliseconds where the program waits seconds."""
    room = "pipeline.transport."
    with patch(room + "limits.FIRST_PAUSE_S", 0.001), patch(room + "http._STALL_S", 0.2):
        yield


def main() -> None:
    """Print the table."""
    hub = Hub()
    with tempfile.TemporaryDirectory() as folder, hub.serve() as endpoint:
        os.environ |= {"HF_ENDPOINT": endpoint, "XDG_CACHE_HOME": folder, "HF_HOME": folder}
        fill(hub, Path(folder) / "suite")
        with impatient():
            bench = Bench(hub)
            quiet = bench.run()
            print(
                "| fault | faults | requests | bytes sent again | same bits |\n|---|---|---|---|---|"
            )
            for name, faults in {"none": [], **rows()}.items():
                found = bench.run(*faults)
                same = "yes" if found.results == quiet.results else "**no**"
                print(
                    f"| {name} | {found.faults} | {found.requests} | {found.repeated:.2%} | {same} |"
                )


if __name__ == "__main__":
    main()
