"""Random faults on random small jobs; what must hold whatever happens.

    python -m tests.soak [--faults N] [--ray] [--seed SEED]     # the last prints what was done

A job is the command line in a process of its own, with tiles, pauses and leases made small. It is
disturbed once, at a moment and in a way drawn at random. Whatever survives has to give the bits of an
undisturbed job; whatever does not ends with one line, the right exit code, and a store from which the
same command gets there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.buckets import Proxy, environment
from tests.nodes import Nodes
from tests.suites import trajectory, write_suite

PROGRAM = """
import sys
sys.argv[0] = "hallmarks"
from jobs.cli import main
import os, random, signal, sys, time
from pipeline.job import patience, snapshots
from pipeline.planning import tiles
from pipeline.transport import limits
from pipeline.store import folder, lease
tiles.MIN_TILE_BYTES = 1 << 18
patience.PAUSES_S = (0.1, 0.2, 0.4, 0.8)
snapshots.SNAPSHOT_AFTER_S, snapshots.LEAST_TILES = 0.0, 2
lease.STALE_AFTER_S, lease.RENEWED_EVERY_S = 1.5, 0.2
limits.FIRST_PAUSE_S = 0.01
number, at, seed = (int(each) for each in sys.argv.pop(1).split(","))
slow = random.Random(seed)
ask = folder.Folder._ask
def disturbed(self, path, question, writes=False):
    # a storage that takes its time, and at one of its answers what is to happen
    global at
    time.sleep(slow.uniform(0, 0.015))
    answer = ask(self, path, question, writes)
    at -= 1
    if at == 0 and number:
        os.kill(os.getpid(), number)
    return answer
folder.Folder._ask = disturbed
main()
"""
REQUESTS = 90
"""Of a job to its store, about: moments at which it may be disturbed."""
SECONDS = 60.0
"""After which a job hangs."""


@dataclass(frozen=True)
class Job:
    """What is analyzed and how; a name stands for its figures."""

    name: str
    sources: tuple[str, ...]
    options: tuple[str, ...] = ()


@dataclass
class Ended:
    """How a job ended."""

    code: int
    output: str
    errors: str


@dataclass
class Trial:
    """One job, disturbed once."""

    job: Job
    store: str
    fault: str
    executor: tuple[str, ...]
    rng: random.Random
    environment: dict[str, str]
    ended: list[Ended] = field(default_factory=list)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, number: int = 0, at: int = 0) -> subprocess.Popen[str]:
        """Start the job; it sends itself a signal at the `at`-th answer of its store."""
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", PROGRAM, f"{number},{at},{self.rng.randrange(1 << 30)}"),
                *("analyze", *self.job.sources, "--store", self.store, "--run", "r", "--json"),
                *self.job.options, *self.executor,
            ],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> Ended:
        """Wait for a job, and check how it ends."""
        try:
            output, errors = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            raise AssertionError(f"it hangs: {process.communicate()}") from None
        self.ended.append(Ended(process.returncode, output, errors))
        check(self.ended[-1])
        return self.ended[-1]


def check(ended: Ended) -> None:
    """Raise AssertionError if a job did not end as the contract says."""
    told = f"{ended.code}\n{ended.output}\n{ended.errors}"
    lines = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in ended.errors and "internal error" not in ended.errors, told
    if ended.code in (0, 3):
        assert not lines and ended.output.count("\n") == 1, told
        whole = json.loads(ended.output)
        whole = whole.get("runs", [whole])
        assert all(each["complete"] for each in whole) == (ended.code == 0), told
        assert ended.code == 3 or all(each["mds"] is not None for each in whole), told
    elif ended.code in (1, 2):
        assert len(lines) == 1 and not ended.output, told
    else:
        # whoever is killed leaves a line by the process that watches it, if there was one by then
        assert (ended.code == 130 and not lines) or ended.code == -signal.SIGKILL, told
        assert len(lines) < 2 and not ended.output, told


Disturbance = Callable[[Trial], None]


def sends_itself(number: int) -> Disturbance:
    def disturb(trial: Trial) -> None:
        trial.end(trial.start(number, trial.rng.randint(1, REQUESTS)))

    return disturb


def is_sent(number: int) -> Disturbance:
    def disturb(trial: Trial) -> None:
        process = trial.start()
        waiting(lambda: hears(process), process)  # the interpreter's own first moments are its own
        time.sleep(trial.rng.uniform(0.0, 5.0))
        process.send_signal(number)
        trial.end(process)

    return disturb


def is_stopped_for_a_while(trial: Trial) -> None:
    process = trial.start(signal.SIGSTOP, trial.rng.randint(1, REQUESTS))
    with goes_on(process, trial.rng.uniform(0.0, 1.0)):
        trial.end(process)


def is_stopped_while_another_takes_over(trial: Trial) -> None:
    process = trial.start(signal.SIGSTOP, trial.rng.randint(1, REQUESTS))
    stopped = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if stopped and stopped.si_code == os.CLD_STOPPED:
        time.sleep(1.7)
        other = trial.start()
        if trial.rng.random() < 0.5:  # both at once
            process.send_signal(signal.SIGCONT)
        trial.end(other)
        process.send_signal(signal.SIGCONT)
    trial.end(process)


def starts_twice(trial: Trial) -> None:
    first, second = trial.start(), trial.start()
    ended = [trial.end(first), trial.end(second)]
    assert 0 in [each.code for each in ended]
    for each in ended:
        assert each.code == 0 or "is being written by process" in each.errors


def moves_away_and_back(trial: Trial) -> None:
    store = Path(trial.store)
    away = store.with_name(store.name + "-away")
    process = trial.start()
    waiting(store.exists, process)
    time.sleep(trial.rng.uniform(0.0, 1.0))
    with contextlib.suppress(FileNotFoundError):
        store.rename(away)
        time.sleep(trial.rng.uniform(0.0, 2.5))
        assert not store.exists(), "something was put where the store had been"
        away.rename(store)
    trial.end(process)


def a_result_is_damaged(trial: Trial) -> None:
    store = Path(trial.store)
    process = trial.start()
    results: list[Path] = []

    def there() -> bool:
        results[:] = store.glob("_tiles/run=r/*/*.safetensors")
        return bool(results)

    waiting(there, process)
    time.sleep(trial.rng.uniform(0.0, 0.5))
    with contextlib.suppress(OSError):
        harmed = trial.rng.choice(results)
        if trial.rng.random() < 0.5:
            harmed.unlink()
        else:
            data = bytearray(harmed.read_bytes())
            data[trial.rng.randrange(len(data))] ^= 1
            harmed.write_bytes(data)
    trial.end(process)


def the_disk_is_full(trial: Trial) -> None:
    """The store is on a small file system of its own; something else fills it, for a while or not."""
    store = Path(trial.store)
    store.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(store)]
    subprocess.run(mount, check=True)
    process = trial.start()
    time.sleep(trial.rng.uniform(1.0, 5.0))
    ballast = store / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        for _ in range(3 << 8):
            file.write(bytes(4096))
            file.flush()
    time.sleep(trial.rng.uniform(0.0, 2.5))
    if trial.rng.random() < 0.7:
        ballast.unlink(missing_ok=True)
    trial.end(process)
    ballast.unlink(missing_ok=True)


def goes_wrong(trial: Trial, proxy: Proxy) -> None:
    """Of the requests of a while some fail, and some have their effect but no answer."""
    share = trial.rng.choice((0.3, 1.0))
    rng = random.Random(trial.rng.random())
    begin = len(proxy.requests) + trial.rng.randint(1, REQUESTS)
    end = begin + trial.rng.choice((3, 30, 300))

    def fault(request: str) -> str | None:
        del request
        there = begin <= len(proxy.requests) < end and rng.random() < share
        return rng.choice(("500", "drop")) if there else None

    proxy.fault = fault
    try:
        trial.end(trial.start())
    finally:
        proxy.fault = lambda request: None


LOCAL: dict[str, Disturbance] = {
    f"{verb} {signal.Signals(number).name}": disturbance(number)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    for verb, disturbance in (("sends itself", sends_itself), ("is sent", is_sent))
} | {
    "is stopped for a while": is_stopped_for_a_while,
    "is stopped while another takes over": is_stopped_while_another_takes_over,
    "starts twice": starts_twice,
}
IN_DIRECTORIES: dict[str, Disturbance] = {
    "the store moves away and back": moves_away_and_back,
    "a result is damaged": a_result_is_damaged,
    "the disk is full": the_disk_is_full,
}


def cluster_faults(nodes: Nodes) -> dict[str, Disturbance]:
    """Return what may happen to a cluster while a job runs on it."""

    def harmed(harm: Callable[[random.Random], None]) -> Disturbance:
        def disturb(trial: Trial) -> None:
            process = trial.start()
            waiting(lambda: bool(nodes.actors()), process)
            time.sleep(trial.rng.uniform(0.0, 2.0))
            with contextlib.suppress(OSError, IndexError):
                harm(trial.rng)
            trial.end(process)

        return disturb

    def kill_a_worker(rng: random.Random) -> None:
        os.kill(rng.choice(nodes.actors()), signal.SIGKILL)

    def stop_a_worker(rng: random.Random) -> None:
        pid = rng.choice(nodes.actors())
        os.kill(pid, signal.SIGSTOP)
        time.sleep(rng.uniform(0.0, 2.0))
        os.kill(pid, signal.SIGCONT)

    def kill_a_raylet(rng: random.Random) -> None:
        node = rng.choice(nodes.workers)
        nodes.hurt.append(node)
        os.kill(nodes.raylet(node), signal.SIGKILL)

    return {
        "a worker is killed": harmed(kill_a_worker),
        "a worker is stopped for a while": harmed(stop_a_worker),
        "a raylet is killed": harmed(kill_a_raylet),
    }


def waiting(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition() and process.poll() is None:
        time.sleep(0.01)


def hears(process: subprocess.Popen[str]) -> bool:
    """Return True once a process has a handler for SIGTERM."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("SigCgt"):
                return bool(int(line.split()[1], 16) & 1 << (signal.SIGTERM - 1))
    return False


@contextlib.contextmanager
def goes_on(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    """Continue a process that stops itself, some time after it has."""
    stopped = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if stopped and stopped.si_code == os.CLD_STOPPED:
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)
    yield


class Soak:
    """Jobs, their undisturbed figures, and places for stores."""

    def __init__(self, folder: Path, seed: int, endpoint: str, proxy: Proxy) -> None:
        self._folder, self._seed, self._proxy = folder, seed, proxy
        self._environment = os.environ | environment(endpoint) | environment(proxy.endpoint)
        a, b = (trajectory("walk", 4, 250_000, 0.1, number) for number in (1, 2))
        first = write_suite(
            folder / "a", {"layers.0.w.weight": a, "layers.1.w.weight": b, "b": a[:, :5]}
        )
        second = write_suite(
            folder / "b", {"layers.0.w.weight": a, "layers.1.w.weight": b[::-1], "b": a[:, :5]}
        )
        self._jobs = (
            Job("all", (str(first),)),
            Job("some", (str(first),), ("--include", "layers", "--steps", "1:3")),
            Job("sampled", (str(first),), ("--fraction", "0.3", "--seed", "7")),
            Job("joint", (str(first), str(second)), ("--joint",)),
        )
        self._undisturbed: dict[str, dict[str, list]] = {}
        self.counts: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
        """By fault, kind of store, and the exit codes that were seen."""

    def one(self, number: int, executor: str, faults: dict[str, Disturbance], where: str) -> None:
        """Do the `number`-th trial: the same for the same seed.

        Raises:
            AssertionError: something is not as it must be.
        """
        rng = random.Random(f"{self._seed} {number}")
        job, name = rng.choice(self._jobs), rng.choice(sorted(faults))
        store = (
            f"s3://soak/{self._seed}-{number}"
            if where == "bucket"
            else str(self._folder / f"store{number}")
        )
        options = ("--memory", rng.choice(("120MiB", "400MiB")), *executor.split())
        trial = Trial(job, store, name, options, rng, self._environment)
        try:
            faults[name](trial)
            # a lease that could not be given back is stale by then
            deadline = time.monotonic() + 10
            while (again := trial.end(trial.start())).code == 2 and time.monotonic() < deadline:
                assert "is being written by process" in again.errors, again.errors
            assert again.code == 0, again.errors
            self._compare(job, store)
        except AssertionError as error:
            told = "\n".join(f"--- {each.code}\n{each.errors}" for each in trial.ended)
            raise AssertionError(
                f"seed {self._seed}, trial {number}: {name}, {where}, {job.name}, {options}\n{error}\n{told}"
            ) from None
        finally:
            for process in trial.started:
                process.kill()
            if os.path.ismount(store):
                subprocess.run(["umount", "-l", store], check=True)
        self.counts[name, where, tuple(sorted({each.code for each in trial.ended[:-1]}))] += 1
        if where == "directory":
            shutil.rmtree(store)

    def _compare(self, job: Job, store: str) -> None:
        from pipeline.store.folder import Folder
        from tests.test_bits import everything

        assert Folder(store).list("_tiles") == []
        if job.name not in self._undisturbed:
            quiet = Trial(job, str(self._folder / job.name), "none", ("--executor", "local"),
                          random.Random(0), self._environment)  # fmt: skip
            assert quiet.end(quiet.start()).code == 0
            self._undisturbed[job.name] = everything(quiet.store)
        assert everything(store) == self._undisturbed[job.name], "other figures"

    def bucket_faults(self) -> dict[str, Disturbance]:
        """Return what may happen to object storage."""
        return {"requests fail": lambda trial: goes_wrong(trial, self._proxy)}

    def table(self) -> str:
        """Return what was seen, as Markdown."""
        lines = [
            "| fault | store | times | exit codes seen before the last, which is 0 |",
            "|---|---|---|---|",
        ]
        for fault, where in sorted({key[:2] for key in self.counts}):
            seen = {
                codes: n for (f, w, codes), n in self.counts.items() if (f, w) == (fault, where)
            }
            codes = ", ".join(f"{' and '.join(map(str, c))} ({n})" for c, n in sorted(seen.items()))
            lines.append(f"| {fault} | {where} | {sum(seen.values())} | {codes} |")
        return "\n".join(lines)


@contextlib.contextmanager
def soak(folder: Path, seed: int) -> Iterator[Soak]:
    """Yield a soak with a storage of its own."""
    import pytest

    from tests import buckets

    with (
        buckets.served() as endpoint,
        Proxy(endpoint).serve() as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        buckets.named("soak", proxy.endpoint, patch)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield Soak(folder, seed, endpoint, proxy)


def run(made: Soak, numbers: range, nodes: Nodes | None = None) -> None:
    """Do these trials: without a cluster in this process's way, with one on it."""
    # each node has room for one job: where two run at once, one may be stopped for good
    executor = f"--max-workers 1 --address {nodes.address}" if nodes else "--executor local"
    both = LOCAL | cluster_faults(nodes) if nodes else LOCAL
    for number in numbers:
        in_bucket = number % 3 == 2
        faults = both | (made.bucket_faults() if in_bucket else IN_DIRECTORIES)
        made.one(number, executor, faults, "bucket" if in_bucket else "directory")
        if nodes:
            nodes.whole()


def main() -> None:
    """Print what was seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    from tests.nodes import two_nodes

    with tempfile.TemporaryDirectory() as folder, soak(Path(folder), options.seed) as made:
        with two_nodes() if options.ray else contextlib.nullcontext() as nodes:
            run(made, range(options.faults), nodes)
        print(made.table())


if __name__ == "__main__":
    main()
