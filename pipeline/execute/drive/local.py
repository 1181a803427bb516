"""Tiles in this process, on threads: the reference, and the quick start."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from pipeline.errors import HallmarksError
from pipeline.execute.drive.schedule import Lost, Schedule
from pipeline.execute.work.receipt import Receipt
from pipeline.execute.work.worker import Worker

_HERE = "this process"


def run_local(
    worker: Worker,
    calls: int,
    tiles: list[int],
) -> Iterator[Receipt | Lost]:
    """Yield each tile's outcome as it comes.

    Args:
        calls: tiles side by side.

    Raises:
        SourceChanged: a file is not what was planned, or not what was published.
    """
    schedule = Schedule(tiles, calls)
    schedule.join(_HERE)
    running: dict[Future[Receipt], int] = {}
    turns = itertools.count()
    pool = ThreadPoolExecutor(calls, thread_name_prefix="tile")
    try:
        while True:
            while (handed := schedule.next(time.monotonic())) is not None:
                running[pool.submit(worker.run, handed[1], next(turns))] = handed[1]
            if schedule.over:
                worker.verify()
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                tile = running.pop(future)
                try:
                    receipt = future.result()
                except HallmarksError as error:
                    if (lost := schedule.failed(_HERE, tile, error)) is not None:
                        yield lost
                else:
                    schedule.done(_HERE, tile, time.monotonic())
                    yield receipt
    finally:
        worker.close()  # running tiles stop at their next read
        pool.shutdown(wait=False, cancel_futures=True)
