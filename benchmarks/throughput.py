"""Does the job keep a link busy, and how much of the machine does each half of it take?

    PYTHONPATH=. python benchmarks/throughput.py [--gigabytes 3.2] [--megabytes-per-s 200]

A synthetic suite (`served.py`) over TLS on loopback, its server a process of its own on the same
cores. Three contestants, each a process of its own that times itself, start-up and planning (whose
headers are known from a first plan) left out:

    job      the analysis as `hallmarks analyze --executor local` does it; *reading* is from its plan
             to its last tile, *seconds* what `--json` states, which is with figures and files
    client   the reader alone: the same ranges of the same files in the same order, into buffers that
             stay, by as many threads as a worker has readers; URLs are requested before
    product  the job on the same files in a local directory that is in the page cache

Once over a link of a fixed rate, which the job should fill as the client does; once as fast as it
goes, where client and product share the cores: their two times, one after the other, over the job's
is 1 if the job adds nothing, and more as far as they overlap. Contestants take turns; medians.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.served import NAME, Served, Suite, served

_READ_AGAIN = 1 << 20


class Watch:
    """A progress that notes when reading began and ended."""

    def __init__(self) -> None:
        self.began = self.ended = (0.0, 0.0)

    def planned(self, *_: Any) -> None:
        self.began = _now()

    def reducing(self) -> None:
        self.ended = _now()

    def note(self, _: str) -> None: ...
    def tile_done(self, _: int) -> None: ...
    def tile_lost(self, lost: Any) -> None:
        raise SystemExit(f"a tile was lost: {lost}")

    def estimated(self, _: Any) -> None: ...


def job(source: str) -> dict[str, Any]:
    """Analyse in this process; return times and CPU times."""
    from pipeline.job.analyze import analyze
    from pipeline.planning.request import Request, Resources

    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="hallmarks-throughput-") as store:
        before = time.process_time()
        summary = analyze(Request(source), store, Resources(executor="local"), progress=watch)
        cpu = time.process_time() - before
    return {
        "reading": watch.ended[0] - watch.began[0],
        "seconds": summary.seconds,
        "reading_cpu": watch.ended[1] - watch.began[1],
        "cpu": cpu,
        "bytes": summary.bytes_read,
    }


def client(source: str) -> dict[str, Any]:
    """Read in this process what the job would read, and do nothing with it."""
    reader, ranges, readers, longest = ranges_of_job(source)
    of_thread = threading.local()

    def read(number: int) -> None:
        file, start, length = ranges[number]
        if not hasattr(of_thread, "buffer"):
            of_thread.buffer = bytearray(longest)
        reader.read(file, [(start, memoryview(of_thread.buffer)[:length])])

    wall, cpu = _now()
    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(read, range(len(ranges))))
    ended, cpu_ended = _now()
    return {
        "reading": ended - wall,
        "seconds": ended - wall,
        "reading_cpu": cpu_ended - cpu,
        "cpu": cpu_ended - cpu,
        "bytes": sum(length for _, _, length in ranges),
    }


def ranges_of_job(source: str) -> tuple[Any, list[tuple[int, int, int]], int, int]:
    """Return a reader; file, start and length of each range; how many readers; the longest range."""
    from pipeline.execute.work import pull
    from pipeline.execute.work.byte_ranges import byte_ranges
    from pipeline.execute.work.urls import UrlBroker
    from pipeline.job.memory import worker_memory
    from pipeline.planning.blocks import block_layouts
    from pipeline.planning.machine import available_cores
    from pipeline.planning.make import make_plan
    from pipeline.planning.request import Request, Resources
    from pipeline.transport.reader import Reader

    plan, there = make_plan(Request(source))
    calls = available_cores() + there.is_remote
    row_bytes = worker_memory(plan, Resources(executor="local"), calls).row_bytes
    reader = Reader(UrlBroker(plan, there))
    reader.accesses(range(len(plan.files)))
    found = [
        (each.file, each.start, each.stop - each.start)
        for number in plan.order()
        for layout in block_layouts(plan.tiles[number], plan.tensors, row_bytes)
        for each in byte_ranges(layout, plan.tensors)
    ]
    return reader, found, pull._READERS, max(length for _, _, length in found)


CONTESTANTS = {"job": job, "client": client}


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def in_its_own_process(name: str, source: str, environment: dict[str, str]) -> dict[str, Any]:
    """Run this script for one contestant; return what it measured."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.throughput", "--one", name, source],
        env=os.environ | environment, check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    return json.loads(done.stdout)


def read_once(folder: Path) -> None:
    """Bring files into the page cache."""
    for path in folder.glob("*/*"):
        with path.open("rb", buffering=0) as file:
            while file.read(_READ_AGAIN):
                pass


def main() -> None:
    """Measure, and print a section."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=int, default=32)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--gigabytes", type=float, default=3.2)
    parser.add_argument("--megabytes-per-s", type=float, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(CONTESTANTS[options.one[0]](options.one[1])))
        return
    suite = Suite(options.checkpoints, options.shards, int(1e9 * options.gigabytes))
    found: dict[str, list[dict[str, Any]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="hallmarks-throughput-") as folder,
        served(suite) as hub,
    ):
        local = Path(folder) / "suite"
        suite.write(local)
        environment = hub.environment | {"XDG_CACHE_HOME": folder}
        plan = [sys.executable, "-m", "jobs.plan", NAME]
        subprocess.run(plan, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
        rates = {"link": 1e6 * options.megabytes_per_s, "free": None}
        for _, (where, rate) in itertools.product(range(options.repeats), rates.items()):
            hub.set(bytes_per_s=rate)
            for name in CONTESTANTS:
                runs = found.setdefault(f"{name} {where}", [])
                runs.append(with_server(hub, name, environment))
            if where == "free":
                read_once(local)
                product = in_its_own_process("job", str(local), environment)
                found.setdefault("product", []).append(product | {"server_cpu": 0.0})
    print(section(found, options))


def with_server(hub: Served, name: str, environment: dict[str, str]) -> dict[str, Any]:
    """Run one contestant on the served suite; add what the server spent."""
    hub.counts()
    measured = in_its_own_process(name, NAME, environment)
    counts = hub.counts()
    assert counts.sent == counts.covered == measured["bytes"], "each byte once"
    return measured | {"server_cpu": counts.cpu_seconds}


def section(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> str:
    """Return the tables and the ratios."""
    rate = f"{options.megabytes_per_s:g} MB/s"
    titles = {
        "client link": f"client alone, {rate}", "job link": f"job, {rate}",
        "client free": "client alone, unpaced", "product": "product alone, local files",
        "job free": "job, unpaced",
    }  # fmt: skip
    lines = [
        f"{options.checkpoints} checkpoints, {found['product'][0]['bytes'] / 1e9:.2f} GB of weights,"
        f" {len(os.sched_getaffinity(0))} cores, medians of {options.repeats}\n",
        "| | reading s | seconds | MB/s reading | CPU s/GiB | of it reading | server CPU s/GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, title in titles.items():
        reading, seconds, cpu, reading_cpu, server, num_bytes = (
            statistics.median(run[field] for run in found[key])
            for field in ("reading", "seconds", "cpu", "reading_cpu", "server_cpu", "bytes")
        )
        gib = num_bytes / 2**30
        lines.append(
            f"| {title} | {reading:.2f} | {seconds:.2f} | {num_bytes / reading / 1e6:.0f} |"
            f" {cpu / gib:.2f} | {reading_cpu / gib:.2f} | {server / gib:.2f} |"
        )

    def ratios(field: str) -> tuple[float, float]:
        def each(key: str) -> list[float]:
            return [run[field] for run in found[key]]

        link = zip(each("client link"), each("job link"), strict=True)
        free = zip(each("client free"), each("product"), each("job free"), strict=True)
        return (
            statistics.median(alone / ours for alone, ours in link),
            statistics.median((alone + product) / ours for alone, product, ours in free),
        )

    for field in ("reading", "seconds"):
        link, free = ratios(field)
        lines.append(f"\nby {field}: rate of the job over the client's at {rate}: {link:.3f}")
        lines.append(f"by {field}: (client + product) / job, unpaced: {free:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
