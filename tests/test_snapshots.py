"""Estimates that fail are beside the work: told in one line, tried again after growing pauses."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import pipeline
from jobs.progress import JobProgress
from pipeline.errors import PlanDoesNotFit, StoreUnusable
from pipeline.job import snapshots
from pipeline.job.analyze import analyze
from pipeline.job.memory import worker_memory
from pipeline.job.progress import Silent
from pipeline.job.summary import Summary
from pipeline.planning.make import make_plan
from pipeline.planning.request import Request, Resources
from tests.commands import hallmarks
from tests.suites import trajectory, write_suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine tiles of one role."""
    rows = trajectory("walk", 4, 1000, 0.1)
    values = {f"layers.{i}.mlp.up_proj.weight": rows for i in range(9)}
    return write_suite(tmp_path_factory.mktemp("snapshots") / "suite", values)


@pytest.mark.parametrize(
    ("error", "line", "logs"),
    [
        (ZeroDivisionError("division by zero"), "internal error: ZeroDivisionError", 1),
        (MemoryError(), "out of memory", 0),
        (StoreUnusable("the disk is full"), "disk", 0),
    ],
    ids=repr,
)
def test_an_estimate_that_fails_is_told_in_one_line_once(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str,
    logs: int,
) -> None:  # fmt: skip
    """The traceback of an error that nobody thought of is kept in one log."""
    eager(monkeypatch)
    monkeypatch.setattr(JobProgress, "tile_done", Told.tile_done)
    tries = []

    def fails(*_: object) -> None:
        tries.append(0)
        raise error

    monkeypatch.setattr(snapshots, "estimated_sums", fails)
    done = hallmarks("analyze", suite, "--store", tmp_path / "store", "--executor", "local")
    assert done.returncode == 0, done.stderr
    assert len(tries) >= 3, done.stderr
    lines = done.stderr.splitlines()
    about = [each for each in lines if "estimate" in each or "error" in each or "disk" in each]
    assert len(about) == 1 and line in about[0], lines
    assert "no estimate" in about[0]
    kept = list(tmp_path.glob("*.log"))
    assert len(kept) == logs
    assert all(str(log) in about[0] and "Traceback" in log.read_text() for log in kept)
    rows = pipeline.open_store(str(tmp_path / "store")).sql("SELECT complete FROM runs").fetchall()
    assert rows == [(True,)]


class Told(Silent):
    """Waits for the estimate after each tile, and keeps what it is told."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.estimates: list[Summary] = []

    def tile_done(self, num_bytes: int) -> None:
        while any(thread.name == "snapshot" for thread in threading.enumerate()):
            time.sleep(0.001)

    def estimate_failed(self, error: Exception) -> None:
        self.failures.append(error)

    def estimated(self, summary: Summary) -> None:
        self.estimates.append(summary)


def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an estimate made after each tile, of which there are many."""
    monkeypatch.setattr("pipeline.planning.tiles.MIN_TILE_BYTES", 1)
    monkeypatch.setattr("pipeline.planning.tiles.BYTES_PER_RESULT_BYTE", 0)
    monkeypatch.setattr(snapshots, "SNAPSHOT_AFTER_S", 0.0)
    monkeypatch.setattr(snapshots, "AGAIN_AFTER_S", 0.0)
    monkeypatch.setattr(snapshots, "SNAPSHOT_SHARE", 1e9)
    monkeypatch.setattr(snapshots, "LEAST_TILES", 1)


def test_an_estimate_is_made_when_the_store_takes_it_again(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager(monkeypatch)
    store = tmp_path / "store"
    store.mkdir()
    (store / "similarity").write_text("a file where a directory should be")
    told, tries = Told(), []
    made = snapshots.Snapshots._make

    def counted(self: snapshots.Snapshots, *arguments: object) -> None:
        tries.append(0)
        if len(tries) == 4:
            (store / "similarity").unlink()
        made(self, *arguments)

    monkeypatch.setattr(snapshots.Snapshots, "_make", counted)
    summary = analyze(Request(str(suite)), str(store), Resources(executor="local"), progress=told)
    assert summary.complete
    assert len(told.failures) == 1 and isinstance(told.failures[0], StoreUnusable)
    assert len(tries) >= 4 and told.estimates


def test_an_estimate_for_which_memory_is_missing_is_left_out(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least budget leaves less beside the tiles than any estimate takes: said once."""
    eager(monkeypatch)
    plan, _ = make_plan(Request(str(suite)))
    least = worker_memory(plan, Resources(executor="local"), 2).least
    told = Told()
    resources = Resources(executor="local", memory=least, threads=1)
    summary = analyze(Request(str(suite)), str(tmp_path / "store"), resources, progress=told)
    assert summary.complete and not told.estimates
    (failure,) = told.failures
    assert isinstance(failure, PlanDoesNotFit) and "--memory leaves" in failure.message


def test_pauses_grow_with_failures_and_with_what_an_estimate_takes() -> None:
    pace = snapshots.Pace(100.0)
    assert pace.due == 100.0 + snapshots.SNAPSHOT_AFTER_S
    pace.failed(200.0, 0.0)
    first = pace.due - 200.0
    pace.failed(300.0, 0.0)
    assert pace.due - 300.0 == 2 * first
    pace.failed(400.0, 1e6)
    assert pace.due - 400.0 == 1e6 / snapshots.SNAPSHOT_SHARE
    pace.made(500.0, 2.0)
    assert pace.due == 500.0 + 2.0 / snapshots.SNAPSHOT_SHARE
    pace.failed(600.0, 0.0)
    assert pace.due - 600.0 == first, "from a success anew"
