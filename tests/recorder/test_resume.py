"""Trainings that were interrupted, at any moment, and are continued."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pipeline
from pipeline.errors import RequestError
from pipeline.recorder.recorder import Recorder
from tests.recorder.killed import SIZE, STEPS, network
from tests.recorder.test_recorder import assert_same, checkpoint, move, plain, recorded


def logged(directory: Path) -> list[int]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def train(directory: Path, until: int, resume: int | None = None) -> torch.nn.Module:
    """Train with moves that follow from the step alone; a training that is resumed has its weights."""
    made = plain()
    for step in range(resume or 0):
        torch.manual_seed(step)
        move(made)
    with Recorder(made, directory, "linear:10", last_step=40, resume=resume) as recorder:
        for step in range(resume or 0, until + 1):
            recorder.step(step, loss=step)
            torch.manual_seed(step)
            move(made)
    return made


def test_what_is_after_the_step_is_set_aside_and_that_is_said(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, 40)
    train(broken, 33)
    shutil.copytree(broken, tmp_path / "before")
    with pytest.warns(
        UserWarning,
        match=r"from step 15: .* moved to \.earlier-1: 2 checkpoint\(s\) and 18 line\(s\) of metrics$",
    ):
        train(broken, 40, resume=15)
    assert recorded(broken) == recorded(whole) == [0, 10, 20, 30, 40]
    for step in recorded(whole):
        assert_same(checkpoint(broken, step), checkpoint(whole, step))
    assert logged(broken) == [*range(16), *range(15, 41)]
    aside = broken / ".earlier-1"
    assert recorded(aside) == [20, 30] and logged(aside) == list(range(34))
    assert_same(checkpoint(aside, 30), checkpoint(tmp_path / "before", 30))
    plan = pipeline.plan(str(broken))
    assert [each.name for each in plan.checkpoints] == [
        f"step-{step}" for step in (0, 10, 20, 30, 40)
    ]
    (curve,) = plan.training.curves.values()
    assert curve.steps.tolist() == list(range(41))


def test_nothing_to_set_aside_is_nothing_to_say(tmp_path: Path) -> None:
    train(tmp_path, 20)
    train(tmp_path, 40, resume=20)
    assert recorded(tmp_path) == [0, 10, 20, 30, 40]
    with pytest.warns(UserWarning, match=r"\.earlier-1"):
        train(tmp_path, 40, resume=30)
    with pytest.warns(UserWarning, match=r"\.earlier-2"):
        train(tmp_path, 40, resume=0)
    assert recorded(tmp_path / ".earlier-2") == [10, 20, 30, 40]


def test_a_loop_may_begin_after_the_step_that_it_is_continued_from(tmp_path: Path) -> None:
    train(tmp_path, 20)
    with Recorder(plain(), tmp_path, "linear:10", resume=20) as recorder:
        recorder.step(21)
        recorder.step(30)
        with pytest.raises(RequestError, match="expected 30 or a later one"):
            recorder.step(20)
    assert recorded(tmp_path) == [0, 10, 20, 30]


def test_other_weights_than_were_recorded_are_refused(tmp_path: Path) -> None:
    train(tmp_path, 20)
    before = checkpoint(tmp_path, 20)
    with Recorder(plain(), tmp_path, "linear:10", resume=20) as recorder:
        with pytest.raises(
            RequestError, match="step-20' holds other weights than the network has now"
        ) as refused:
            recorder.step(20)
        assert "load the weights of step 20 before" in refused.value.hint
    assert_same(checkpoint(tmp_path, 20), before)
    (tmp_path / "step-20" / "model.safetensors").rename(tmp_path / "step-20" / "__0_0.distcp")
    with pytest.raises(RequestError, match="holds other weights"):
        Recorder(plain(), tmp_path, "linear:10", resume=20).record(20)


def test_what_was_not_recorded_is_said(tmp_path: Path) -> None:
    train(tmp_path, 40)
    for step in (10, 30):
        shutil.rmtree(tmp_path / f"step-{step}")
    with pytest.warns(
        UserWarning, match="step 40: these steps were due before and are not recorded: 10, 30$"
    ):
        Recorder(plain(), tmp_path, "linear:10", resume=40).close()
    with pytest.warns(UserWarning, match="not recorded: 0, 1, 2, 3, 4, 5 and 94 more"):
        Recorder(plain(), tmp_path / "new", "linear:1", resume=100).close()


def test_what_was_recorded_late_is_not_missed(tmp_path: Path) -> None:
    with Recorder(plain(), tmp_path, "linear:10") as recorder:
        for step in (0, 12, 24):
            recorder.step(step)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Recorder(plain(), tmp_path, "linear:10", resume=24).close()


def test_logs_of_others_are_left_as_they_are(tmp_path: Path) -> None:
    train(tmp_path, 20)
    log = tmp_path / "metrics.jsonl"
    for line in ('{"epoch": 3}\n', "step,loss\n", "[1]\n", '{"step": "3"}\n'):
        before = log.read_text()
        log.write_text(before + line)
        with pytest.raises(
            RequestError, match=r"metrics.jsonl': expected lines of a recorder, found"
        ):
            Recorder(plain(), tmp_path, "linear:10", resume=10)
        assert log.read_text() == before + line and recorded(tmp_path) == [0, 10, 20]
        log.write_text(before)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Before each file that is opened and each folder that is made or renamed, and at odd moments between.

    Whatever there is by a checkpoint's name is one, to the bit, and a training is continued from there.
    """
    command = [sys.executable, "-m", "tests.recorder.killed", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    directories = sorted(tmp_path.iterdir())
    assert len(directories) > 20 and {len(recorded_of(each)) for each in directories} >= set(
        range(STEPS)
    )
    for directory in directories:
        steps = recorded_of(directory)
        assert steps == list(range(len(steps)))
        for step in steps:
            (value,) = load_file(directory / f"step-{step}" / "model.safetensors").values()
            assert value.shape == (SIZE,) and bool((value == step).all())
        if len(steps) > 1:
            assert len(pipeline.plan(str(directory)).checkpoints) == len(steps)
        made = network()
        with warnings.catch_warnings(
            action="ignore"
        ):  # of lines of metrics after the last checkpoint
            recorder = Recorder(made, directory, "linear:1", resume=len(steps))
        with recorder:
            torch.nn.init.constant_(made.weight, len(steps))
            recorder.step(len(steps), loss=0.0)
        assert recorded(directory) == list(range(len(steps) + 1))


def recorded_of(directory: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in directory.glob("step-*") if p.name[5:].isdigit())
