"""A sweep on a Ray of its own: a worker is killed during a training, and the store is as without."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pipeline.sweep.config import read_sweep
from pipeline.sweep.train import train
from tests.commands import hallmarks
from tests.sweep.driver import Driver, write_config

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def test_a_worker_is_killed_and_its_run_begins_again(tmp_path: Path) -> None:
    config, store = write_config(tmp_path, steps=400), tmp_path / "store"
    trained = store / "_trained"
    driver = Driver(config, store, "--max-workers", "1")
    driver.wait_for(lambda: list(trained.glob(".*/step-*")))
    (worker,) = driver.others("ray::_call")
    os.kill(worker, signal.SIGKILL)
    code, result, errors = driver.ended()
    assert code == 0, errors
    assert "a worker died (WorkerCrashedError); started again" in errors
    runs = read_sweep(str(config)).runs
    assert sorted(done["run"] for done in result["done"]) == sorted(run.name for run in runs)
    assert all(row["figures"]["mds"]["seeds"] == 1 for row in result["table"])
    assert {path.name for path in trained.iterdir()} == {run.name for run in runs}
    # the same weights as without Ray, nor a kill
    train(runs[0].settings, tmp_path / "alone")
    for weights in (tmp_path / "alone").glob("step-*/model.safetensors"):
        other = trained / runs[0].name / weights.relative_to(tmp_path / "alone")
        assert other.read_bytes() == weights.read_bytes()
    again = hallmarks("sweep", config, "--store", store, "--executor", "local")
    assert again.returncode == 0 and "2 stored earlier" in again.stdout
