"""Sweeps on one machine: what they leave in a store, and whatever happens to them meanwhile."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.progress import with_error
from pipeline.errors import HallmarksError, RequestError, RunInUse, TileLost
from pipeline.execute.drive.processes import processes
from pipeline.store.query import Store
from pipeline.sweep.config import read_sweep
from pipeline.sweep.grid import Run
from pipeline.sweep.pace import Pace
from pipeline.sweep.run import Place, carry_out
from pipeline.sweep.sweep import left_to_do
from pipeline.sweep.table import INDICATORS, table_of
from pipeline.sweep.train import train
from tests.commands import Done, hallmarks
from tests.sweep.driver import Driver, write_config

LOCAL = ("--executor", "local", "--max-workers", "1")


DIVERGING = "learning_rate = [0.5]\nweight_decay = [0.0, 100.0]"
"""A step with the larger one multiplies the weights by 1 - 0.5 · 100."""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Done]:
    """A configuration of two settings, of which one fails, and two seeds; its store; what the command said."""
    folder = tmp_path_factory.mktemp("swept")
    config, store = write_config(folder, seeds=2, steps=60, grid=DIVERGING), folder / "store"
    return config, store, hallmarks("sweep", config, "--store", store, *LOCAL)


def runs_of(config: Path) -> tuple[Run, ...]:
    return read_sweep(str(config)).runs


def place(folder: Path, **more: Any) -> Place:
    return Place(str(folder / "store"), str(folder / "trained"), "cpu", **more)


def identity(folder: Path) -> dict[str, int]:
    """Return what changes when a file below a folder is written anew."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def sound(config: Path) -> list[Run]:
    """Return the runs that do not fail."""
    return [run for run in runs_of(config) if run.varied["weight_decay"] == 0]


def test_what_a_sweep_leaves(swept: tuple[Path, Path, Done], tmp_path: Path) -> None:
    config, folder, _ = swept
    store, runs = Store(str(folder)), sound(config)
    rows = store.sql(
        "SELECT run, complete, settings, checkpoints FROM runs ORDER BY run"
    ).fetchall()
    assert [row[0] for row in rows] == sorted(run.name for run in runs)
    for run in runs:
        (row,) = [row for row in rows if row[0] == run.name]
        stated = json.loads(row[2])
        assert row[1] and row[3] == 5
        assert {key: stated[key] for key in run.stated} == dict(run.stated)
        # the weights are those that the training has by itself
        train(run.settings, tmp_path / run.name)
        saved = sorted(tmp_path.joinpath(run.name).glob("step-*/model.safetensors"))
        assert len(saved) == 5
        for weights in saved:
            other = folder / "_trained" / weights.relative_to(tmp_path)
            assert other.read_bytes() == weights.read_bytes()
    assert store.sql(
        "SELECT DISTINCT split, metric FROM training ORDER BY ALL"
    ).fetchall() == [
        ("train", "accuracy"), ("train", "loss"), ("validation", "accuracy"), ("validation", "loss"),
    ]  # fmt: skip


def test_a_failed_run_is_named_and_leaves_the_others(swept: tuple[Path, Path, Done]) -> None:
    config, folder, done = swept
    assert done.returncode == 3, done.stderr
    assert "sweep s: 2 runs trained and analyzed" in done.stdout and "2 failed" in done.stdout
    told = [line for line in done.stderr.splitlines() if "failed:" in line]
    failed = [run.name for run in runs_of(config) if run not in sound(config)]
    assert len(told) == len(failed) == 2
    for line, name in zip(sorted(told), sorted(failed), strict=True):
        assert re.match(rf"run {name} failed: the loss is (inf|nan) at step \d+ of 60", line)
        assert not (folder / "_trained" / name).exists()


def test_the_table_is_the_means_over_seeds(swept: tuple[Path, Path, Done]) -> None:
    config, folder, done = swept
    store = Store(str(folder))
    (row,) = table_of(read_sweep(str(config)), store)
    assert row.varied == {"learning_rate": 0.5, "weight_decay": 0.0}
    over_seeds = store.sql(
        "SELECT indicator, seeds, mean, stderr, null_value FROM over_seeds(NULL)"
    ).fetchall()
    expected = {name: rest for name, *rest in over_seeds if name in INDICATORS}
    assert set(expected) == set(INDICATORS)
    for name, (seeds, mean, stderr, null_value) in expected.items():
        figure = row.figures[name]
        assert (figure.seeds, seeds) == (2, 2)
        assert figure.mean == pytest.approx(mean, rel=1e-12)
        assert figure.stderr == pytest.approx(stderr, rel=1e-9)
        assert figure.null_value == pytest.approx(null_value, rel=1e-12)
    accuracies = [
        store.sql(
            "SELECT value FROM training WHERE run = ? AND step = 60 AND split = 'validation'"
            " AND metric = 'accuracy'",
            [run.name],
        ).fetchall()[0][0]
        for run in sound(config)
    ]
    accuracy = row.figures["validation_accuracy"]
    assert accuracy.mean == pytest.approx(statistics.mean(accuracies))
    assert accuracy.stderr == pytest.approx(statistics.stdev(accuracies) / 2**0.5)
    heads, _, shown, *_ = done.stdout.splitlines()
    assert heads.split()[:4] == ["learning_rate", "weight_decay", "seeds", "validation_accuracy"]
    assert shown.split()[:4] == [
        "0.5",
        "0",
        "2",
        with_error(accuracy.mean, accuracy.stderr).split()[0],
    ]


def test_what_is_finished_is_left_alone(tmp_path: Path) -> None:
    config = write_config(tmp_path, seeds=2)
    for run in runs_of(config):
        carry_out(run, place(tmp_path))
    before = identity(tmp_path)
    where = ("--store", tmp_path / "store", "--checkpoints", tmp_path / "trained")
    again = hallmarks("sweep", config, *where, *LOCAL, "--json")
    assert again.returncode == 0
    result = json.loads(again.stdout)
    assert (result["runs"], result["stored"], result["done"]) == (4, 4, [])
    assert [row["momentum"] for row in result["table"]] == [0, 0.9]
    assert identity(tmp_path) == before
    shutil.rmtree(tmp_path / "trained")  # the store alone counts
    assert hallmarks("sweep", config, *where, *LOCAL).returncode == 0
    assert not (tmp_path / "trained").exists()


def test_a_dry_run_says_what_is_left_and_writes_nothing(
    swept: tuple[Path, Path, Done], tmp_path: Path
) -> None:
    config, folder, _ = swept
    done = hallmarks("sweep", config, "--store", tmp_path / "new", "--dry-run", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0 and not (tmp_path / "new").exists()
    assert [run["run"] for run in told["runs"]] == [run.name for run in runs_of(config)]
    trained = folder / "_trained" / sound(config)[0].name
    saved = [path.stat().st_size for path in trained.glob("step-*/model.safetensors")]
    for run in told["runs"]:
        assert (run["steps"], run["checkpoints"]) == (60, len(saved))
        assert 0.5 * sum(saved) < run["disk_bytes"] <= sum(saved)  # but for the headers
        assert run["seconds"] > 0
    shown = hallmarks("sweep", config, "--store", folder, "--dry-run").stdout
    assert shown.count(" stored\n") == 2 and "2 of 4 runs left" in shown


def test_other_settings_are_refused_and_replaced(tmp_path: Path) -> None:
    for run in runs_of(write_config(tmp_path, steps=8)):
        carry_out(run, place(tmp_path))
    other = write_config(tmp_path, steps=9)
    before = identity(tmp_path)
    where = ("--store", tmp_path / "store", "--checkpoints", tmp_path / "trained")
    refused = hallmarks("sweep", other, *where, *LOCAL)
    assert refused.returncode == 2 and "steps '8', now '9'" in refused.stderr
    assert "--replace" in refused.stderr and identity(tmp_path) == before
    for run in runs_of(other):
        with pytest.raises(RequestError, match="other settings"):
            carry_out(run, place(tmp_path))  # nor by a process that is asked to
        assert carry_out(run, place(tmp_path, replace=True)).training_seconds > 0
        assert carry_out(run, place(tmp_path, replace=True)).seconds == 0
    steps = Store(str(tmp_path / "store")).sql("SELECT max(step) FROM checkpoints").fetchall()
    assert steps == [(9,)]


def test_checkpoints_are_used_if_they_are_of_this_training_and_else_refused(tmp_path: Path) -> None:
    first, second = runs_of(write_config(tmp_path))
    train(first.settings, tmp_path / "trained" / first.name)
    before = identity(tmp_path)
    done = carry_out(first, place(tmp_path))
    assert done.analysis_seconds > 0 and identity(tmp_path / "trained") == before
    train(first.settings, tmp_path / "trained" / second.name)  # of another momentum
    with pytest.raises(RequestError, match=r"have other settings: momentum '0.0', now '0.9'"):
        left_to_do(read_sweep(str(tmp_path / "s.toml")), place(tmp_path))


@pytest.mark.parametrize("replace", [False, True])
def test_what_is_no_training_is_not_touched(tmp_path: Path, replace: bool) -> None:
    config = write_config(tmp_path)
    name = runs_of(config)[0].name
    precious = tmp_path / "trained" / name / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("…")
    with pytest.raises(RequestError, match="not a training"):
        left_to_do(read_sweep(str(config)), place(tmp_path, replace=replace))
    with pytest.raises(RequestError, match="not a training"):
        carry_out(runs_of(config)[0], place(tmp_path, replace=replace))
    assert precious.read_text() == "…"


def test_a_run_that_another_process_has_is_in_use_until_it_ends(tmp_path: Path) -> None:
    run, _ = runs_of(write_config(tmp_path))
    lock = tmp_path / "trained" / f".{run.name}.lock"
    lock.parent.mkdir()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunInUse):
            carry_out(run, place(tmp_path))
        assert lock.exists()
    assert carry_out(run, place(tmp_path)).seconds > 0  # one that was left is nobody's
    assert not lock.exists()


@pytest.mark.parametrize("moment", ["training", pytest.param("analysis", marks=pytest.mark.slow)])
def test_a_driver_is_killed_and_another_goes_on(tmp_path: Path, moment: str) -> None:
    config, store = write_config(tmp_path, seeds=2, steps=300), tmp_path / "store"
    trained = store / "_trained"
    killed = Driver(config, store, "--executor", "local", "--max-workers", "2")
    glob = ".*/step-*" if moment == "training" else "s--*"
    killed.wait_for(lambda: list(trained.glob(glob)))
    killed.kill()
    whole = {path.name for path in trained.glob("s--*")}
    before = {name: identity(trained / name) for name in whole}
    code, result, errors = Driver(config, store, *LOCAL).ended()
    assert code == 0, errors
    assert result["stored"] + len(result["done"]) == 4
    assert {name: identity(trained / name) for name in whole} == before
    names = {run.name for run in runs_of(config)}
    assert {path.name for path in trained.iterdir()} == names  # nothing half-written is left
    complete = Store(str(store)).sql("SELECT run FROM runs WHERE complete").fetchall()
    assert {name for (name,) in complete} == names


@pytest.mark.slow
def test_a_process_that_dies_takes_nothing_with_it(tmp_path: Path) -> None:
    config, store = write_config(tmp_path, steps=300), tmp_path / "store"
    driver = Driver(config, store, *LOCAL)
    driver.wait_for(lambda: list((store / "_trained").glob(".*/step-*")))
    (pid,) = driver.others()
    os.kill(pid, signal.SIGKILL)
    code, result, errors = driver.ended()
    assert code == 0, errors
    assert len(result["done"]) == 2
    assert "the process died (SIGKILL); started again" in errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    config, store = write_config(tmp_path, seeds=40, steps=300), tmp_path / "store"
    driver = Driver(config, store, "--executor", "local")
    driver.wait_for(lambda: list((store / "_trained").glob(".*/step-*")))
    driver.process.send_signal(number)
    code, result, errors = driver.ended()
    assert (code, result) == (130, {})
    assert errors.splitlines()[-1] == (
        f"interrupted ({number.name}): finished runs are kept; rerun the same command to resume"
    )
    assert driver.others() == []
    left = {path.name for path in (store / "_trained").iterdir()}
    assert not {name for name in left if name.startswith(".")}  # nothing half-written


@pytest.mark.slow
def test_two_drivers_share_the_runs(tmp_path: Path) -> None:
    config, store = write_config(tmp_path, seeds=3, steps=300), tmp_path / "store"
    drivers = [Driver(config, store, *LOCAL) for _ in range(2)]
    ended = [driver.ended() for driver in drivers]
    assert [code for code, _, _ in ended] == [0, 0], ended
    done = [each["run"] for _, result, _ in ended for each in result["done"]]
    assert sorted(done) == sorted(run.name for run in runs_of(config))  # each once
    assert ended[0][1]["table"] == ended[1][1]["table"]
    assert Store(str(store)).sql("SELECT count(*) FROM runs WHERE complete").fetchall() == [(6,)]


def test_processes_make_calls_side_by_side_and_tell_how_they_end(tmp_path: Path) -> None:
    marker = tmp_path / "m"
    with processes(2) as calls:
        assert calls.free == 2
        calls.begin(1, time.sleep, 60)
        calls.begin(2, int, "7")
        assert calls.free == 0
        assert calls.ended(30) == [(2, 7)]
        calls.begin(3, int, "x")
        ((number, error),) = calls.ended(30)
        assert (number, type(error)) == (3, ValueError)
        assert "invalid literal" in error.__notes__[0]  # where it was raised
        calls.begin(4, os._exit, 3)
        ((number, error),) = calls.ended(30)
        assert (number, type(error), error.message) == (
            4,
            TileLost,
            "the process died (exit code 3)",
        )
        calls.begin(5, open, str(marker), "w")  # an answer that cannot be sent
        ((number, error),) = calls.ended(30)
        assert number == 5 and isinstance(error, RuntimeError)
        assert calls.ended(0.01) == []
        began = time.monotonic()
    assert time.monotonic() - began < 30  # the first call does not keep it


def test_how_long_the_rest_takes(tmp_path: Path) -> None:
    slow, quick = runs_of(write_config(tmp_path))
    pace = Pace()
    assert pace.seconds_left([slow], [(quick, 3.0)]) is None
    pace.took(slow, 100.0)
    pace.took(slow, 200.0)
    pace.took(quick, 10.0)
    assert pace.seconds_left([slow, quick], []) == 160
    # two at once; one has been at it for longer than was to be expected
    assert pace.seconds_left([slow, slow], [(slow, 50.0), (quick, 99.0)]) == (300 + 100) / 2


def test_what_cannot_hold_checkpoints(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    done = hallmarks(
        "sweep", config, "--store", tmp_path / "s", "--checkpoints", "s3://b/c", *LOCAL
    )
    assert done.returncode == 2 and "expected a directory" in done.stderr
    (tmp_path / "file").touch()
    where = Place(str(tmp_path / "s"), str(tmp_path / "file"), "cpu")
    with pytest.raises(HallmarksError, match="cannot be written"):
        carry_out(runs_of(config)[0], where)
