"""The end of a run: it is there whole or not at all, whatever happens at whatever moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.errors import HallmarksError, StoreFailed
from pipeline.job.analyze import analyze
from pipeline.job.progress import Silent
from pipeline.job.summary import Summary
from pipeline.planning.request import Request, Resources
from pipeline.store import lease
from pipeline.store.folder import Folder
from pipeline.store.schema import SCHEMAS
from tests import buckets
from tests.buckets import Proxy
from tests.suites import trajectory, write_suite
from tests.test_bits import everything
from tests.test_status import told

LOCAL = Resources(executor="local", threads=1)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = trajectory("walk", 4, 700_000, 0.1)
    folder = tmp_path_factory.mktemp("end") / "suite"
    return write_suite(folder, {"layers.0.w.weight": rows, "layers.1.w.weight": rows + 1})


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.planning.tiles.MIN_TILE_BYTES", 1 << 20)


@pytest.fixture(scope="module")
def undisturbed(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    store = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.planning.tiles.MIN_TILE_BYTES", 1 << 20)
        analysed(suite, store)
    return everything(store)


class Told(Silent):
    """Keeps what it is told, and does something when the reduction begins."""

    def __init__(self, at_the_end: Callable[[], Any] = lambda: None) -> None:
        self.notes: list[str] = []
        self.failures: list[Exception] = []
        self.lost: list[int] = []
        self.plans: list[Any] = []
        self._at_the_end = at_the_end

    def planned(self, plan: Any, finished_bytes: int) -> None:
        self.plans.append(plan)

    def tile_lost(self, lost: Any) -> None:
        self.lost.append(lost.tile)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def estimate_failed(self, error: Exception) -> None:
        self.failures.append(error)

    def reducing(self) -> None:
        self._at_the_end()


def analysed(suite: Path, store: Path | str, told: Told | None = None) -> Summary:
    return analyze(Request(str(suite), run="r"), str(store), LOCAL, progress=told)


def nothing_is_left(store: Path | str, bars: int = 0) -> None:
    """`bars`: files that keep drivers from writing the run that were taken for dead."""
    folder = Folder(str(store))
    assert folder.list("_tiles") == []
    found = {table: len(folder.list(table)) - bars * (table == "runs") for table in SCHEMAS}
    assert found == dict.fromkeys(SCHEMAS, 1)


PROGRAM = """
import os, signal, sys
from pipeline.planning import tiles
from pipeline.store import lease
tiles.MIN_TILE_BYTES = 1 << 20
exec(sys.argv.pop(1))
from jobs.cli import main
main()
"""


def job(suite: Path, store: Path | str, before: str = "") -> subprocess.Popen[str]:
    """Start the command line, and before it run something in its process."""
    arguments = ["analyze", str(suite), "--store", str(store), "--run", "r", "--executor", "local"]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, before, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def row_appears(store: Path, process: subprocess.Popen[str]) -> None:
    while not list(store.glob("runs/run=r/*.parquet")):
        assert process.poll() is None, process.communicate()


@pytest.mark.parametrize(
    "number",
    [  # the two that can be put off are sent in the commit itself, below
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, signal.SIGINT)),
        signal.SIGKILL,
    ],
)
def test_a_signal_when_the_row_appears(
    suite: Path, tmp_path: Path, undisturbed: dict[str, list], number: int
) -> None:
    process = job(suite, tmp_path)
    row_appears(tmp_path, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 130, -signal.SIGKILL) and "Traceback" not in errors
    assert told(tmp_path) == {"r": {"run": "r", "state": "complete"}}
    assert everything(tmp_path) == undisturbed
    assert analysed(suite, tmp_path).already_complete
    nothing_is_left(tmp_path)
    assert everything(tmp_path) == undisturbed


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_signal_in_the_commit_itself(
    suite: Path, tmp_path: Path, undisturbed: dict[str, list], moment: str
) -> None:
    """It is put off until the row is there; what is left over goes with the next run."""
    ending = "os.kill(os.getpid(), signal.SIGTERM)"
    create = "made = create(self, path, data)"
    body = [ending, create] if moment == "before" else [create, ending]
    process = job(
        suite,
        tmp_path,
        "from pipeline.store.folder import Folder\ncreate = Folder.create\n"
        "def ending(self, path, data):\n"
        "    if not path.startswith('runs/'): return create(self, path, data)\n"
        f"    {body[0]}; {body[1]}\n    return made\nFolder.create = ending",
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.count("interrupted (SIGTERM)") == 1 and "Traceback" not in errors
    assert told(tmp_path) == {"r": {"run": "r", "state": "complete"}}
    assert everything(tmp_path) == undisturbed
    assert analysed(suite, tmp_path).already_complete
    nothing_is_left(tmp_path)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with buckets.served() as endpoint:
        yield endpoint


@pytest.fixture
def proxy(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    monkeypatch.setattr("pipeline.transport.limits.FIRST_PAUSE_S", 0.0001)
    monkeypatch.setattr("pipeline.job.patience.PAUSES_S", ())
    with Proxy(moto).serve() as found:
        yield found


@pytest.mark.parametrize(
    "every", [pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(900)]), 25]
)
def test_object_storage_fails_at_every_request_of_the_end(
    suite: Path, proxy: Proxy, undisturbed: dict[str, list], every: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """From the n-th request on nothing is answered; the last may have had its effect or not."""
    bucket = buckets.named("ends", proxy.endpoint, monkeypatch)
    marks: list[int] = []
    analysed(suite, f"{bucket}/whole-{every}", Told(lambda: marks.append(len(proxy.requests))))
    first, last = marks[0], len(proxy.requests)
    assert last - first > 20
    for number in range(first, last, every):
        store = f"{bucket}/{every}-{number}"
        begin, fault = len(proxy.requests), ("500", "drop")[number % 2]
        proxy.fault = lambda _, at=begin + number, fault=fault: (
            None if len(proxy.requests) <= at else fault if len(proxy.requests) == at + 1 else "500"
        )
        try:
            analysed(suite, store)
        except HallmarksError as error:
            assert isinstance(error, StoreFailed) and error.exit_code == 1
        proxy.fault = lambda request: None
        summary = analysed(suite, store)
        assert summary.complete and summary.mds is not None
        assert everything(store) == undisturbed
        nothing_is_left(store)


STALE = "lease.STALE_AFTER_S, lease.RENEWED_EVERY_S = 1.5, 0.2\n"
STOPS_ITSELF = (
    "from jobs.progress import JobProgress\n"
    "JobProgress.reducing = lambda self: os.kill(os.getpid(), signal.SIGSTOP)\n"
)
STOPS_BEFORE_THE_ROW = (
    "from pipeline.store.folder import Folder\ncreate = Folder.create\n"
    "def stopping(self, path, data):\n"
    "    if path.startswith('runs/'): os.kill(os.getpid(), signal.SIGSTOP)\n"
    "    return create(self, path, data)\n"
    "Folder.create = stopping\n"
)


@pytest.mark.parametrize(
    ("where", "stops"),
    [
        ("bucket", STOPS_BEFORE_THE_ROW),
        pytest.param("directory", STOPS_ITSELF, marks=pytest.mark.slow),
        pytest.param("directory", STOPS_BEFORE_THE_ROW, marks=pytest.mark.slow),
        pytest.param("bucket", STOPS_ITSELF, marks=pytest.mark.slow),
    ],
)
def test_a_driver_that_was_away_for_too_long(
    suite: Path, tmp_path: Path, undisturbed: dict[str, list], moto: str, where: str, stops: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Another has taken its lease and ended the run: that is the run, and the first says so."""
    store = str(tmp_path)
    if where == "bucket":
        store = f"{buckets.named('away', moto, monkeypatch)}/{tmp_path.name}"
    away = job(suite, store, STALE + stops)
    os.waitid(os.P_PID, away.pid, os.WSTOPPED | os.WNOWAIT)
    time.sleep(2)  # its lease is stale by then
    other = job(suite, store, STALE)
    assert other.wait(60) == 0, other.communicate()
    away.send_signal(signal.SIGCONT)
    _, errors = away.communicate(timeout=60)
    assert away.returncode == 1 and "Traceback" not in errors
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and ("lost the lease" in lines[0] or "taken over" in lines[0])
    assert everything(store) == undisturbed
    assert analysed(suite, store).already_complete
    nothing_is_left(store, bars=1)


def results(store: Path) -> list[Path]:
    return sorted(store.glob("_tiles/run=r/*/*.safetensors"))


def flip_a_byte(store: Path) -> None:
    flip_a_byte_of(results(store)[1])


def flip_a_byte_of(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove_two(store: Path) -> None:
    for path in results(store)[1:3]:
        path.unlink()


@pytest.mark.parametrize("harm", [flip_a_byte, remove_two])
def test_a_result_that_is_harmed_before_the_reduction_is_made_again(
    suite: Path, tmp_path: Path, undisturbed: dict[str, list], harm: Callable[[Path], None]
) -> None:
    moments = iter([lambda: harm(tmp_path)])
    told = Told(lambda: next(moments, lambda: None)())
    summary = analysed(suite, tmp_path, told)
    assert summary.complete and summary.mds is not None
    assert told.notes and all("damaged or gone; recomputing it" in note for note in told.notes)
    assert everything(tmp_path) == undisturbed
    nothing_is_left(tmp_path)


def test_a_result_that_is_harmed_again_and_again_is_lost(
    suite: Path, tmp_path: Path, undisturbed: dict[str, list]
) -> None:
    harmed: list[Path] = []

    def harm_the_same() -> None:
        harmed.extend(results(tmp_path)[1:2] if not harmed else ())
        if harmed[0].exists():
            flip_a_byte_of(harmed[0])

    told = Told(harm_the_same)
    summary = analysed(suite, tmp_path, told)
    assert not summary.complete and summary.mds is None and len(summary.lost) == 1
    assert told.lost == [1] and "its result is damaged or gone, 3 times" in summary.lost[0]
    assert not list(tmp_path.glob("_sums/run=r/*/complete"))
    again = analysed(suite, tmp_path)
    assert again.complete and again.resumed_tiles > 0 and again.bytes_read < again.bytes_total
    assert everything(tmp_path) == undisturbed
    nothing_is_left(tmp_path)


def test_tables_that_are_gone_are_written_again(
    suite: Path, tmp_path: Path, undisturbed: dict[str, list]
) -> None:
    """From the stored sums: nothing is read."""
    analysed(suite, tmp_path)
    for table in ("similarity", "indicators", "findings"):
        shutil.rmtree(tmp_path / table)
        summary = analysed(suite, tmp_path)
        assert summary.recomputed and summary.bytes_read == 0 and summary.mds is not None
        assert everything(tmp_path) == undisturbed
        nothing_is_left(tmp_path)


def test_the_store_is_moved_away_and_back(
    suite: Path, tmp_path: Path, undisturbed: dict[str, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is away nothing is put in its place, and the job waits for it for a while."""
    monkeypatch.setattr("pipeline.job.patience.PAUSES_S", (0,) * 4)
    store, away = tmp_path / "store", tmp_path / "away"
    tries = 0

    def away_for_three_tries() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            store.rename(away)

    class Waiting(Told):
        def note(self, text: str) -> None:
            super().note(text)
            assert not store.exists()
            if len(self.notes) == 3:
                away.rename(store)

    told = Waiting(away_for_three_tries)
    assert analysed(suite, store, told).complete
    assert len(told.notes) == 3 and all("is gone" in note for note in told.notes)
    assert everything(store) == undisturbed
    nothing_is_left(store)


def test_the_store_is_moved_away_for_good(
    suite: Path, tmp_path: Path, undisturbed: dict[str, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.job.patience.PAUSES_S", (0, 0))
    store, away = tmp_path / "store", tmp_path / "away"
    with pytest.raises(StoreFailed, match="is gone") as raised:
        analysed(suite, store, Told(lambda: store.rename(away)))
    assert raised.value.exit_code == 1 and not store.exists()
    summary = analysed(suite, away)
    assert summary.complete and summary.bytes_read == 0
    assert everything(away) == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def filled(disk: Path) -> Path:
    """Leave room for a lease and a record, but not for a tile's result."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes((1 << 20) - 4 * 4096))
    return ballast


def test_a_full_disk_ends_the_job_and_keeps_what_is_finished(
    suite: Path, small_disk: Path, undisturbed: dict[str, list]
) -> None:
    ballast, store = filled(small_disk), small_disk / "store"
    process = job(suite, store, "import pipeline.job.patience as j; j.PAUSES_S = (0, 0)")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in errors
    assert errors.count("retrying in 0 s") == 2
    lines = errors.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert "cannot be written" in lines[-2] and lines[-1].startswith(
        "hint: finished tiles are kept"
    )
    ballast.unlink()
    assert analysed(suite, store).complete
    assert everything(store) == undisturbed


def test_room_is_made_while_the_job_waits(
    suite: Path, small_disk: Path, undisturbed: dict[str, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    ballast, store = filled(small_disk), small_disk / "store"
    monkeypatch.setattr("pipeline.job.patience.PAUSES_S", (0, 0))

    class Making(Told):
        def note(self, text: str) -> None:
            super().note(text)
            ballast.unlink(missing_ok=True)

    told = Making()
    assert analysed(suite, store, told).complete
    assert len(told.notes) == 1 and "retrying in 0 s" in told.notes[0]
    assert everything(store) == undisturbed
    nothing_is_left(store)


def test_estimates_that_fail_say_so_once(
    suite: Path, tmp_path: Path, undisturbed: dict[str, list], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.job.snapshots.SNAPSHOT_AFTER_S", 0.0)
    monkeypatch.setattr("pipeline.job.snapshots.LEAST_TILES", 1)
    store = tmp_path / "store"
    store.mkdir()
    (store / "similarity").write_text("a file where a directory should be")
    told = Told(lambda: (store / "similarity").unlink(missing_ok=True))
    assert analysed(suite, store, told).complete
    assert len(told.failures) <= 1
    assert everything(store) == undisturbed


def test_another_driver_has_finished_it_meanwhile(suite: Path, tmp_path: Path) -> None:
    """Between the first look at the store and the lease."""
    done: list[Summary] = []
    with pytest.MonkeyPatch.context() as patch:
        acquire = lease.Lease.acquire

        def acquire_late(self: Any) -> None:
            patch.undo()
            done.append(pipeline.analyze(str(suite), str(tmp_path), executor="local", run="r"))
            acquire(self)

        patch.setattr(lease.Lease, "acquire", acquire_late)
        assert analysed(suite, tmp_path).already_complete and not done[0].already_complete
