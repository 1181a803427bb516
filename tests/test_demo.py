"""`hallmarks demo`, with a network and a training run that are smaller."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from jobs import demo
from jobs.language_model import Settings, Shape, train
from tests.commands import Done, hallmarks
from tests.suites import trajectory, write_suite


def ran(store: Path, patch: pytest.MonkeyPatch) -> Done:
    small = Shape(layers=1, width=16, heads=2, hidden=16, context=16)
    patch.setattr(demo, "train", partial(train, settings=Settings(steps=5), shape=small))
    return hallmarks("demo", "--store", store, "--executor", "local")


def test_the_demo_leaves_checkpoints_a_store_and_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "shown"
    for _ in range(2):  # the second takes the place of the first
        done = ran(store, monkeypatch)
        assert done.returncode == 0, done.stderr
        assert "trained in" in done.stdout and "report.html" in done.stdout
        assert (store / "demo" / "step-5" / "model.safetensors").exists()
        assert "<canvas" not in (store / "report.html").read_text()
    planned = hallmarks("plan", store / "demo")
    assert "6: step-0 … step-5" in planned.stdout and "not understood" not in planned.stdout


def test_the_demo_removes_no_checkpoints_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = write_suite(tmp_path / "demo", {"w": trajectory("walk", 3, 20, 0.1)})
    for folder in list(theirs.iterdir()):
        folder.rename(theirs / folder.name.replace("step", "step-"))
    done = ran(tmp_path, monkeypatch)
    assert done.returncode == 2 and "not the demo's" in done.stderr
    assert len(list(theirs.glob("step-*/model.safetensors"))) == 3
