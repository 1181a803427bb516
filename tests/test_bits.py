"""The same bits, whatever the memory, the threads, the executor, or what was killed on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.execute.drive.local import run_local
from pipeline.execute.drive.schedule import Lost
from pipeline.execute.work.receipt import Receipt
from pipeline.execute.work.urls import UrlBroker
from pipeline.execute.work.worker import Worker
from pipeline.planning.make import make_plan
from pipeline.planning.memory import project
from pipeline.planning.plan import Plan
from pipeline.planning.request import Request
from pipeline.sources.base import Source
from pipeline.statistics.gram import LEAST_IN_FLOAT32
from pipeline.statistics.parts import Sums
from pipeline.store.query import Store
from pipeline.store.tiles import encode
from tests.canary import in_processes
from tests.commands import hallmarks
from tests.conftest import TILE_BYTES
from tests.suites import trajectory, write_suite

VIEWS = ("similarity", "path", "indicators", "spectrum", "projection")


class Kept:
    """A sink that keeps results as the bytes of their files."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def put(self, tile_name: str, result: Sums) -> None:
        self.files[tile_name] = encode(result)


def results(plan: Plan, source: Source, threads: int, budget: int) -> dict[str, bytes]:
    """Return every tile's result file, computed in this process."""
    kept = Kept()
    memory = project(plan.tensors, plan.tiles, budget, threads + 1)
    worker = Worker(plan, kept, UrlBroker(plan, source), "cpu", threads, memory)
    tiles = [tile.index for tile in plan.tiles]
    outcomes = list(run_local(worker, threads + 1, tiles))
    assert sorted(outcome.tile for outcome in outcomes) == tiles
    return kept.files


@pytest.mark.parametrize(
    ("count", "most_threads"), [(65, 4), pytest.param(154, 2, marks=pytest.mark.slow)]
)
def test_threads_and_memory_decide_no_bit(count: int, most_threads: int, tmp_path: Path) -> None:
    """n = 65 is where a BLAS with four threads gives other bits than with one."""
    rows = trajectory("walk", count, LEAST_IN_FLOAT32, 0.1).astype(np.float32)
    suite = {"layers.0.mlp.up_proj.weight": rows, "norm.weight": rows[:, :300]}
    plan, source = make_plan(
        Request(str(write_suite(tmp_path / "suite", suite, "F16"))), least_tile_bytes=1 << 24
    )
    assert len(plan.tiles) > 1
    least = project(plan.tensors, plan.tiles, 1 << 40, 2).least
    expected = results(plan, source, 1, least)
    assert project(plan.tensors, plan.tiles, least, 2).row_bytes < 1 << 16
    torch.set_float32_matmul_precision("medium")  # what a careless user may have set
    try:
        for threads in range(1, most_threads + 1):
            assert results(plan, source, threads, 1 << 32) == expected
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.get_num_threads() > 0


def test_a_read_that_fails_is_tried_again_and_then_given_up(tmp_path: Path) -> None:
    rows = trajectory("walk", 3, 1000, 0.1)
    plan, source = make_plan(Request(str(write_suite(tmp_path / "suite", {"w": rows}))))

    memory = project(plan.tensors, plan.tiles, 1 << 30, 2)
    worker = Worker(plan, Kept(), UrlBroker(plan, source), "cpu", 1, memory)
    Path(plan.files[0].where).unlink()
    (outcome,) = run_local(worker, 2, [0])
    assert isinstance(outcome, Lost)
    assert "No such file" in outcome.error.message
    assert worker.counters.tiles_failed == 3
    assert not isinstance(outcome, Receipt)


SMALL_TILES = f"from pipeline.planning import tiles\ntiles.MIN_TILE_BYTES = {TILE_BYTES}\n"


@pytest.fixture(scope="module")
def undisturbed(twelve_tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    store = tmp_path_factory.mktemp("undisturbed")
    run_command(twelve_tiles, store, "--executor", "local")
    return everything(store)


def command(directory: Path, store: Path, *options: str) -> list[str]:
    program = f"{SMALL_TILES}from jobs.cli import main\nmain()"
    return [sys.executable, "-c", program, "analyze", *arguments(directory, store), *options]


def arguments(directory: Path, store: Path) -> list[str]:
    return [str(directory), "--store", str(store), "--run", "r"]


def run_command(directory: Path, store: Path, *options: str) -> dict:
    """Run the job from its command line, in this process; return its summary."""
    done = hallmarks("analyze", *arguments(directory, store), "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def everything(path: Path | str) -> dict[str, list]:
    """Return all rows of all views, sorted by their text; not where the checkpoints lie."""
    store = Store(str(path))
    columns = "COLUMNS(lambda name: name NOT IN ('source_i', 'source_j'))"
    return {
        view: sorted(store.sql(f"SELECT {columns} FROM {view}").fetchall(), key=repr)
        for view in VIEWS
    }


STOPS_ITSELF = f"""{SMALL_TILES}
import os, signal
from jobs import cli, progress
def tile_done(self, num_bytes):
    self.tiles = getattr(self, "tiles", 0) + 1
    if self.tiles == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
progress.JobProgress.tile_done = tile_done
cli.main()
"""


def stopped(directory: Path, store: Path, *options: str) -> subprocess.Popen[str]:
    """Start the job and return when it has two of twelve tiles, and has stopped itself."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPS_ITSELF, "analyze", *arguments(directory, store), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert state is not None and state.si_code == os.CLD_STOPPED, process.communicate()
    return process


@pytest.fixture(
    params=[signal.SIGKILL, signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def interrupted(
    request: pytest.FixtureRequest, twelve_tiles: Path, tmp_path: Path
) -> Iterator[Path]:
    """A store in which a job was stopped half-way."""
    process = stopped(twelve_tiles, tmp_path, "--executor", "local")
    process.send_signal(request.param)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=30)
    if request.param == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert "rerun the same command to resume" in errors
        assert "Traceback" not in errors
    assert not (tmp_path / "runs").exists()
    yield tmp_path


def test_a_killed_job_goes_on_where_it_stopped(
    interrupted: Path, twelve_tiles: Path, undisturbed: dict[str, list]
) -> None:
    summary = run_command(twelve_tiles, interrupted, "--executor", "local", "--memory", "150MB")
    assert summary["resumed_tiles"] >= 2
    assert summary["bytes_read"] < summary["bytes_total"]
    assert everything(interrupted) == undisturbed
    assert not list(interrupted.glob("_tiles/**/*.safetensors"))


def test_a_damaged_result_is_done_again(
    twelve_tiles: Path, tmp_path: Path, undisturbed: dict[str, list]
) -> None:
    process = stopped(twelve_tiles, tmp_path, "--executor", "local")
    process.kill()
    process.communicate()
    damaged = next(tmp_path.glob("_tiles/run=r/*/*.safetensors"))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    run_command(twelve_tiles, tmp_path, "--executor", "local")
    assert everything(tmp_path) == undisturbed


def test_fresh_discards_what_was_left(twelve_tiles: Path, tmp_path: Path) -> None:
    process = stopped(twelve_tiles, tmp_path, "--executor", "local")
    process.kill()
    process.communicate()
    summary = run_command(twelve_tiles, tmp_path, "--executor", "local", "--fresh")
    assert summary["resumed_tiles"] == 0
    assert summary["bytes_read"] == summary["bytes_total"]


def test_a_complete_run_is_not_read_again(twelve_tiles: Path, tmp_path: Path) -> None:
    first = run_command(twelve_tiles, tmp_path, "--executor", "local")
    again = run_command(twelve_tiles, tmp_path, "--executor", "local")
    assert again["already_complete"]
    assert again["bytes_read"] == 0
    assert again["mds"] == first["mds"]


@pytest.mark.ray
@pytest.mark.parametrize("first", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_ray_gives_the_same_bits_and_one_line(
    first: str, twelve_tiles: Path, tmp_path: Path, undisturbed: dict[str, list]
) -> None:
    """Killed, with its Ray if it has one, then resumed on Ray; nothing but the result on standard output."""
    process = stopped(twelve_tiles, tmp_path, "--executor", first)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    done = subprocess.run(
        command(twelve_tiles, tmp_path, "--json"), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    summary = json.loads(done.stdout)
    assert summary["executor"] == "ray"
    assert summary["resumed_tiles"] >= 2
    assert everything(tmp_path) == undisturbed


@pytest.mark.ray
@pytest.mark.slow  # tests/test_ending_on_ray.py does it with a smaller suite
def test_ray_is_interrupted_in_time(
    twelve_tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none of its processes, which it starts from this one, has the user's token."""
    monkeypatch.setenv("HF_TOKEN", "hf_canaryToken")
    process = stopped(twelve_tiles, tmp_path)
    assert in_processes(["ray::WorkerActor"], but=[])
    assert in_processes(["hf_canaryToken"], but=[]) == [f"/proc/{process.pid}/environ"]
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "rerun the same command to resume" in errors
    assert "Traceback" not in errors
