"""What a client of HTTP ranges costs: this project's reader, urllib3 and obstore.

    PYTHONPATH=. python benchmarks/clients.py [--large 16] [--small 2000] [--repeats 3]

Ranges of 24 MiB, then ranges of 14 KB, are read over TLS on loopback by four threads. Server and
client are processes of their own, and a client's time starts after a small range for each thread, so
that connections stand. Every thread reads into one buffer of its own: without a copy where the client
can (the reader), else as its public interface allows (urllib3 copies in `readinto`, obstore returns
memory of its own, which is copied). Clients take turns; medians. CPU time is user and system, of
all threads of the process. Server and client share the cores, so the rate is that of both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from benchmarks.served import Suite, served

THREADS = 4
LARGE, SMALL = 24 << 20, 14_000
_PIECE = 1 << 17

Read = Callable[[int, memoryview], None]
"""Fill a buffer from a byte of the file on; called from several threads."""


def reader(url: str, size: int) -> Read:
    """This project's."""
    from pipeline.transport.access import Url
    from pipeline.transport.reader import Reader

    nobody: Any = None  # asked only when a URL is refused
    made: Reader[int] = Reader(nobody)
    made.hold(0, Url("the file", size, url))
    return lambda start, buffer: made.read(0, [(start, buffer)])


def urllib3(url: str, _: int) -> Read:
    import ssl

    from urllib3 import PoolManager

    pool = PoolManager(maxsize=THREADS, ssl_context=ssl.create_default_context())

    def read(start: int, buffer: memoryview) -> None:
        headers = {"Range": f"bytes={start}-{start + len(buffer) - 1}"}
        response = pool.request("GET", url, headers=headers, preload_content=False)
        assert response.status == 206
        done = 0
        while done < len(buffer):
            done += response.readinto(buffer[done : done + _PIECE])
        response.release_conn()

    return read


def obstore(url: str, _: int) -> Read:
    from pathlib import Path

    import obstore as package
    from obstore.store import HTTPStore

    trust = Path(os.environ["SSL_CERT_FILE"]).read_bytes()
    store = HTTPStore.from_url(url, client_options={"root_certificate": trust})

    def read(start: int, buffer: memoryview) -> None:
        buffer[:] = memoryview(package.get_range(store, "", start=start, length=len(buffer)))

    return read


CLIENTS: dict[str, Callable[[str, int], Read]] = {
    "reader": reader, "urllib3": urllib3, "obstore": obstore,
}  # fmt: skip


def measure(name: str, url: str, size: int, count: int, length: int) -> dict[str, Any]:
    """Read `count` ranges, spread over the file, in this process; return what it took."""
    import xxhash

    read, of_thread, all_there = CLIENTS[name](url, size), threading.local(), Barrier(THREADS)

    def begin(_: int) -> None:
        of_thread.buffer = bytearray(b"x" * length)
        read(0, memoryview(of_thread.buffer)[:SMALL])
        all_there.wait()

    def one(number: int) -> None:
        read(number * (size - length) // max(1, count - 1), memoryview(of_thread.buffer))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(begin, range(THREADS)))
        wall, cpu = time.perf_counter(), time.process_time()
        list(pool.map(one, range(count)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    buffer = bytearray(length)
    read(size - length, memoryview(buffer))
    return {"wall": wall, "cpu": cpu, "digest": xxhash.xxh3_64_intdigest(buffer)}


def in_its_own_process(environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    """Run this script for one client; return what it measured."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.clients", "--one", *arguments],
        env=os.environ | environment, check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    return json.loads(done.stdout)


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--large", type=int, default=16)
    parser.add_argument("--small", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, url, *numbers = options.one
        print(json.dumps(measure(name, url, *map(int, numbers))))
        return
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with served(Suite(1, 1, options.large * LARGE)) as hub:
        for _ in range(options.repeats):
            for length, count in ((LARGE, options.large), (SMALL, options.small)):
                for name in CLIENTS:
                    (url, size), *_ = hub.addresses()
                    hub.counts()
                    arguments = (name, url, str(size), str(count), str(length))
                    measured = in_its_own_process(hub.environment, *arguments)
                    # one range more than timed, to compare contents, beside the small first ones
                    measured["server"] = hub.counts().cpu_seconds * count / (count + 1)
                    found.setdefault((name, length), []).append(measured)
    for length in (LARGE, SMALL):
        digests = {run["digest"] for name in CLIENTS for run in found[name, length]}
        assert len(digests) == 1, "clients read different bytes"
    print(_table(found, options.large, options.small))


def _table(found: dict[tuple[str, int], list[dict[str, Any]]], large: int, small: int) -> str:
    def median(name: str, length: int, key: str) -> float:
        return statistics.median(run[key] for run in found[name, length])

    lines = [
        f"{large} ranges of 24 MiB by {THREADS} threads:\n",
        "| client | GB/s | client CPU s/GiB | server CPU s/GiB |\n|---|---|---|---|",
    ]
    for name in CLIENTS:
        wall, cpu, server = (median(name, LARGE, key) for key in ("wall", "cpu", "server"))
        gib = large * LARGE / 2**30
        lines.append(
            f"| {name} | {large * LARGE / wall / 1e9:.2f} | {cpu / gib:.2f} | {server / gib:.2f} |"
        )
    lines += [
        f"\n{small:,} ranges of 14 KB by {THREADS} threads:\n",
        "| client | ranges/s | client CPU ms | server CPU ms |\n|---|---|---|---|",
    ]
    for name in CLIENTS:
        wall, cpu, server = (median(name, SMALL, key) for key in ("wall", "cpu", "server"))
        each = 1e3 / small
        lines.append(f"| {name} | {small / wall:,.0f} | {cpu * each:.3f} | {server * each:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
