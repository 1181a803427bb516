"""Tiles in this process, on threads: the reference, and the quick start."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from pipeline.errors import HallmarksError
from pipeline.execute.queue import Lost, TileQueue
from pipeline.execute.worker import Receipt, Worker


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
    queue = TileQueue(tiles)
    running: dict[Future[Receipt], int] = {}
    pool = ThreadPoolExecutor(calls, thread_name_prefix="tile")
    try:
        while True:
            while len(running) < calls and (tile := queue.take()) is not None:
                running[pool.submit(worker.run, tile)] = tile
            if not running:
                worker.verify()
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                tile = running.pop(future)
                try:
                    yield future.result()
                except HallmarksError as error:
                    if (lost := queue.put_back(tile, error)) is not None:
                        yield lost
    finally:
        worker.close()  # running tiles stop at their next read
        pool.shutdown(wait=False, cancel_futures=True)
