"""A long run over a poor link: does it hold its memory, and read every weight once?

    PYTHONPATH=. python benchmarks/soak.py [--executor local|ray] [--gigabytes 10]
        [--megabytes-per-s 30] [--faults 0.01] [--address-life-s 5]

A synthetic suite (`served.py`: 154 revisions of 2 shards) over TLS, trusted through SSL_CERT_FILE, on
a link of a fixed rate. One in a hundred answers of the host that serves ranges goes wrong: HTTP 503,
a body that breaks off, a reset, a pause of three seconds before a body breaks off. Signed addresses
live five seconds. `plan` first, in quiet; then `analyze` in a process of its own.

Memory is RssAnon + RssShmem of that process and all its descendants, every half second: the mean of
the last tenth of the run against that of the second tenth. The figures are made in the last seconds, in
memory of their own, which shows in short runs: the medians leave it out. Bytes of weights are what the server sent,
and *once* is what remains when overlaps count once; only what was cut short is sent again.
Exit code 1 if a check fails.

At small size, in some 20 s: --revisions 12 --gigabytes 0.3 --address-life-s 3600. Start-up is then a
good part of the run, and the check of memory says nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.memory import resident_of_family
from benchmarks.served import NAME, Counts, Suite, served
from tests.hub import Fault

POLL_S = 0.5
WEIGHTS = "*.safetensors"


def faults(share: float) -> list[Fault]:
    """Return rules by which about so many ranges go wrong, in four ways."""
    each = share / 4
    return [
        Fault("status", path=WEIGHTS, status=503, headers={"Retry_After": "1"}, probability=each),
        Fault("truncate", path=WEIGHTS, after_bytes=300_000, probability=each),
        Fault("reset", path=WEIGHTS, after_bytes=100_000, probability=each),
        Fault("stall", path=WEIGHTS, after_bytes=200_000, seconds=3, probability=each),
    ]


def watched(
    command: list[str], environment: dict[str, str]
) -> tuple[subprocess.CompletedProcess[str], list[int]]:
    """Run a command; return how it ended, and the memory of it and its descendants over time."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=output, stderr=errors, text=True, env=os.environ | environment
        )
        samples = []
        while process.poll() is None:
            samples.append(resident_of_family(process.pid))
            time.sleep(POLL_S)
        output.seek(0)
        errors.seek(0)
        done = subprocess.CompletedProcess(
            command, process.returncode, output.read(), errors.read()
        )
    return done, samples


def tenth(samples: list[int], number: int) -> list[int]:
    """Return one tenth of the run, counted from 0."""
    first, stop = len(samples) * number // 10, len(samples) * (number + 1) // 10
    return samples[first:stop] or samples


def main() -> int:
    """Run, print a section, and say by the exit code whether everything held."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--executor", choices=["local", "ray"], default="local")
    parser.add_argument("--revisions", type=int, default=154)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--megabytes-per-s", type=float, default=30)
    parser.add_argument("--faults", type=float, default=0.01)
    parser.add_argument("--address-life-s", type=float, default=5)
    parser.add_argument("--growth", type=float, default=0.05, help="of memory that is allowed")
    parser.add_argument("--samples", type=Path, help="JSON file for the memory over time")
    options = parser.parse_args()
    suite = Suite(options.revisions, options.shards, int(1e9 * options.gigabytes))
    with tempfile.TemporaryDirectory(prefix="hallmarks-soak-") as folder, served(suite) as hub:
        environment = hub.environment | {"XDG_CACHE_HOME": folder}
        plan = subprocess.run(
            [sys.executable, "-m", "jobs.plan", NAME, "--json"],
            env=os.environ | environment, check=True, stdout=subprocess.PIPE,
        )  # fmt: skip
        planned = json.loads(plan.stdout), hub.counts()
        hub.set(
            bytes_per_s=1e6 * options.megabytes_per_s,
            address_life_s=options.address_life_s,
            faults=faults(options.faults),
        )
        command = [sys.executable, "-m", "jobs.analyze", NAME, "--store", f"{folder}/store"]
        started = time.perf_counter()
        done, samples = watched([*command, "--executor", options.executor, "--json"], environment)
        seconds = time.perf_counter() - started
        counts = hub.counts()
    if options.samples:
        options.samples.write_text(json.dumps(samples))
    checks = section(options, planned, done, counts, samples, seconds)
    return 0 if checks else 1


def section(
    options: argparse.Namespace,
    planned: tuple[dict[str, Any], Counts],
    done: subprocess.CompletedProcess[str],
    counts: Counts,
    samples: list[int],
    seconds: float,
) -> bool:
    """Print what was seen; return whether every check holds."""
    stated, asked = planned
    tenths = tenth(samples, 1), tenth(samples, 9)
    early, late = map(statistics.mean, tenths)
    medians = [f"{statistics.median(each) / 2**20:.1f}" for each in tenths]
    summary = json.loads(done.stdout) if done.returncode in (0, 3) and done.stdout else {}
    lives = math.ceil(seconds / (0.8 * options.address_life_s))
    budget = stated["requests_to_analyze"]["resolvers"] * lives
    checks = {
        f"exit code 0: {done.returncode}": done.returncode == 0,
        f"complete: {summary.get('complete')}": bool(summary.get("complete")),
        f"every byte of weights was sent: {counts.covered:,} of {counts.weights:,}": (
            counts.covered == counts.weights
        ),
        f"sent again: {counts.sent / max(1, counts.covered) - 1:.3%},"
        f" at most the share of answers that went wrong, {options.faults:.1%}": (
            counts.sent <= (1 + options.faults) * counts.covered
        ),
        f"addresses asked for: {counts.requests['resolvers']:,}, at most {budget:,} (what plan states"
        f" for 48 minutes, for lives of {options.address_life_s:g} s)": (
            counts.requests["resolvers"] <= budget
        ),
        f"memory of the last tenth over the second: {late / early:.3f},"
        f" at most {1 + options.growth:.2f}": late <= (1 + options.growth) * early,
    }
    rows = {
        "executor": options.executor,
        "revisions, shards": f"{options.revisions}, {options.shards}",
        "weights": f"{counts.weights / 1e9:.2f} GB",
        "link": f"{options.megabytes_per_s:g} MB/s",
        "seconds of the process": f"{seconds:.1f}",
        "seconds stated": f"{summary.get('seconds', float('nan')):.1f}",
        "memory, second tenth": f"{early / 2**20:.1f} MiB, median {medians[0]}",
        "memory, last tenth": f"{late / 2**20:.1f} MiB, median {medians[1]}",
        "memory, most": f"{max(samples) / 2**20:.1f} MiB",
        "requests that plan states": stated["requests"],
        "requests that plan made": asked.requests,
        "requests that analyze made": counts.requests,
        "answers": counts.statuses,
        "made to go wrong": counts.faults,
        "server CPU": f"{counts.cpu_seconds:.1f} s",
    }
    print("| figure | value |\n|---|---|")
    for name, value in rows.items():
        text = value if isinstance(value, str) else _listed(value)
        print(f"| {name} | {text} |")
    print()
    for text, holds in checks.items():
        print(f"- {text}: {'holds' if holds else '**does not hold**'}")
    if not all(checks.values()):
        print(done.stderr[-3000:], file=sys.stderr)
    return all(checks.values())


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {kind}" for kind, number in sorted(numbers.items())) or "none"


if __name__ == "__main__":
    raise SystemExit(main())
