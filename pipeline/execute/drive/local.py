"""Tiles in this process, on threads: the reference, and the quick start."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol

from pipeline.errors import HallmarksError
from pipeline.execute.drive.schedule import Lost, Schedule
from pipeline.execute.work.receipt import Receipt

_THIS_PROCESS = 0  # the only worker is this process


class LocalWorker(Protocol):
    """Who does the tiles: `execute.work.worker.Worker`, which needs torch."""

    def run(self, index: int, position: int) -> Receipt: ...
    def verify(self) -> None: ...
    def close(self) -> None: ...


def run_local(worker: LocalWorker, calls: int, tiles: list[int]) -> Iterator[Receipt | Lost]:
    """Yield each tile's outcome as it comes.

    Args:
        calls: tiles side by side.

    Raises:
        SourceChanged: a file is not what was planned, or not what was published.
    """
    schedule = Schedule(tiles, calls)
    schedule.join(_THIS_PROCESS)
    running: dict[Future[Receipt], int] = {}
    positions = itertools.count()
    pool = ThreadPoolExecutor(calls, thread_name_prefix="tile")
    try:
        while True:
            while (handed := schedule.next(time.monotonic())) is not None:
                running[pool.submit(worker.run, handed[1], next(positions))] = handed[1]
            if schedule.over:
                worker.verify()
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                tile = running.pop(future)
                outcome = schedule.ended(_THIS_PROCESS, tile, _outcome(future), time.monotonic())
                if outcome is not None:
                    yield outcome
    finally:
        worker.close()  # running tiles stop at their next read
        pool.shutdown(wait=False, cancel_futures=True)


def _outcome(future: Future[Receipt]) -> Receipt | HallmarksError:
    try:
        return future.result()
    except HallmarksError as error:
        return error
