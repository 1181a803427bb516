"""What reading ranges through Xet costs, with its own local store: the base of a decision (docs/hub.md).

    python benchmarks/xet.py [--megabytes 1024]

One file of float16 values is put into a local content-addressed store of `hf_xet`. Then, each in a
process of its own: 32 ranges of 24 MiB and 500 of 14 KB, by four threads; and twenty reads of a hash
that the store does not have. There is no network in it, so the rate is no service's; what a gigabyte
and a small range cost this process, how much memory that takes, and what an error looks like, are.
`benchmarks/clients.py` measures the same of the project's reader, over TLS.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hf_xet
import numpy as np

THREADS, LARGE, SMALL = 4, 24 << 20, 14_000


def put(folder: Path, num_bytes: int) -> tuple[str, int]:
    """Put a file into the store; return its hash and size."""
    values = np.random.default_rng(0).standard_normal(num_bytes // 2, np.float32)
    path = folder / "file"
    path.write_bytes((0.02 * values).astype(np.float16).tobytes())
    commit = hf_xet.XetSession().new_upload_commit(endpoint=f"local://{folder}/store")
    commit.start_upload_file(str(path), sha256=hf_xet.SKIP_SHA256)
    uploads = commit.wait_to_finish().uploads
    (done,) = uploads.values() if isinstance(uploads, dict) else uploads
    return done.xet_info.hash, done.xet_info.file_size


def read(endpoint: str, name: str, size: int, what: str) -> dict[str, Any]:
    """Read in this process; return what it took."""
    session = hf_xet.XetSession()
    rng = random.Random(0)
    length, count = (LARGE, 32) if what == "large" else (SMALL, 500)
    starts = [rng.randrange(size - length) for _ in range(count)]
    buffers, memory = threading.local(), peak_memory()

    def one(start: int) -> None:
        if not hasattr(buffers, "own"):
            buffers.own = bytearray(length)
        group = session.new_download_stream_group(endpoint=endpoint)
        done = 0
        for piece in group.download_stream(hf_xet.XetFileInfo(name, size), start, start + length):
            buffers.own[done : done + len(piece)] = piece
            done += len(piece)
        assert done == length, f"{done} of {length} bytes, and no error"

    wall, before = time.perf_counter(), cpu()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, starts))
    wall, used = time.perf_counter() - wall, cpu() - before
    return {"wall": wall, "cpu": used, "count": count, "bytes": count * length,
            "memory": peak_memory() - memory}  # fmt: skip


def absent(endpoint: str, size: int) -> dict[str, int]:
    """Read a file that is not there; return how often that was told, and how often not."""
    outcomes = {"an error": 0, "no bytes, no error": 0}
    for number in range(20):
        group = hf_xet.XetSession().new_download_stream_group(endpoint=endpoint)
        try:
            found = list(group.download_stream(hf_xet.XetFileInfo(f"{number:064x}", size), 0, 1000))
            outcomes["no bytes, no error"] += not found
        except Exception:  # of whatever kind: told or not told is the question
            outcomes["an error"] += 1
    return outcomes


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_memory() -> int:
    """Return the most that this process has held; what `getrusage` states its parent may have."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(line)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        endpoint, name, size, what = options.one
        found = absent(endpoint, int(size)) if what == "absent" else None
        print(json.dumps(found or read(endpoint, name, int(size), what)))
        return
    with tempfile.TemporaryDirectory() as folder:
        name, size = put(Path(folder), options.megabytes << 20)
        environment = {"HF_HOME": folder, "HF_XET_TELEMETRY_ENABLED": "0"}

        def measured(what: str) -> dict[str, Any]:
            command = [sys.executable, __file__, "--one", f"local://{folder}/store", name]
            done = subprocess.check_output(
                [*command, str(size), what], env=os.environ | environment
            )
            return json.loads(done)

        large, small, lost = (measured(what) for what in ("large", "small", "absent"))
    gib = large["bytes"] / 2**30
    print("| | Xet, local store |\n|---|---|")
    print(f"| ranges of 24 MiB, GB/s | {large['bytes'] / large['wall'] / 1e9:.2f} |")
    print(f"| CPU s/GiB | {large['cpu'] / gib:.2f} |")
    print(f"| memory beside four buffers of 24 MiB, MiB | {large['memory'] / 2**20 - 96:.0f} |")
    print(f"| ranges of 14 KB, CPU ms each | {1e3 * small['cpu'] / small['count']:.2f} |")
    print(f"| 20 reads of an absent file | {lost} |")


if __name__ == "__main__":
    main()
