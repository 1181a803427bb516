"""Real trainings by other people's trainers, recorded, and what `analyze` reads of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.errors import RequestError
from tests.commands import hallmarks
from tests.recorder.test_recorder import State, assert_same, checkpoint, recorded

STEPS, LAST = [0, 2, 4, 6, 7], 7


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the trainers
        yield


def analyzed(directory: Path, store: Path) -> dict[tuple[str | None, str], dict[int, float]]:
    """Analyze what was recorded; return its metrics: (split, metric) → step → value."""
    done = hallmarks("analyze", directory, "--store", store, "--executor", "local")
    assert done.returncode == 0, done.stderr
    opened = pipeline.open_store(store)
    found = opened.sql("SELECT step FROM checkpoints ORDER BY k").fetchall()
    assert [step for (step,) in found] == STEPS
    curves: dict[tuple[str | None, str], dict[int, float]] = {}
    for split, metric, step, value in opened.sql(
        "SELECT split, metric, step, value FROM training"
    ).fetchall():
        curves.setdefault((split, metric), {})[step] = value
    return curves


def assert_recorded(directory: Path, states: dict[int, State]) -> None:
    assert recorded(directory) == STEPS
    for step in STEPS:
        assert_same(checkpoint(directory, step), states[step])


def test_the_trainer_of_transformers(tmp_path: Path) -> None:
    from tests.recorder.trainers import trainer

    made, watching = trainer(tmp_path, LAST)
    made.train()
    assert_recorded(tmp_path / "recorded", watching.states)
    curves = analyzed(tmp_path / "recorded", tmp_path / "store")
    history = made.state.log_history
    assert curves["train", "loss"] == {e["step"]: e["loss"] for e in history if "loss" in e}
    assert curves["eval", "loss"] == {
        e["step"]: e["eval_loss"] for e in history if "eval_loss" in e
    }
    assert sorted(curves["train", "loss"]) == [2, 4, 6]
    config = json.loads((tmp_path / "recorded" / "step-0" / "config.json").read_text())
    assert config["model_type"] == "llama" and config["num_attention_heads"] == 2


def test_a_training_that_the_trainer_continues(tmp_path: Path) -> None:
    """From its checkpoint of step 3, after step 4 was recorded and the training broke off."""
    from transformers import TrainerCallback

    from tests.recorder.trainers import trainer

    first, _ = trainer(tmp_path, LAST)

    class Breaking(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise ZeroDivisionError

    first.add_callback(Breaking())
    with pytest.raises(ZeroDivisionError):
        first.train()
    first.callback_handler.callbacks.clear()  # its recorder with it
    with pytest.raises(RequestError, match="holds checkpoints up to step 4 of an earlier training"):
        trainer(tmp_path, LAST)[0].train()
    made, watching = trainer(tmp_path, LAST)
    with pytest.warns(
        UserWarning, match=r"continued from step 3: .* moved to \.earlier-1: 1 checkpoint"
    ):
        made.train(resume_from_checkpoint=True)
    assert min(watching.states) == 3 and recorded(tmp_path / "recorded") == STEPS
    for step in (4, 6, 7):
        assert_same(checkpoint(tmp_path / "recorded", step), watching.states[step])


def test_the_trainer_s_own_folder_is_another(tmp_path: Path) -> None:
    from tests.recorder.trainers import TrainerRecorder, trainer

    made, _ = trainer(tmp_path, LAST)
    made.callback_handler.callbacks = [TrainerRecorder(tmp_path / "out", "linear:2")]
    with pytest.raises(RequestError, match="expected another than the Trainer's output_dir"):
        made.train()


def test_the_trainer_of_lightning(tmp_path: Path) -> None:
    from tests.recorder.trainers import Module, batches, lightning

    module, made = Module(), lightning(tmp_path, LAST)
    made.fit(module, batches(), batches())
    assert not made.loggers
    assert_recorded(tmp_path / "recorded", module.states)
    curves = analyzed(tmp_path / "recorded", tmp_path / "store")
    assert curves["train", "loss"] == dict(enumerate(module.losses))
    assert sorted(curves["val", "loss"]) == [2, 5]


def test_a_training_that_lightning_continues(tmp_path: Path) -> None:
    from tests.recorder.trainers import Module, batches, lightning

    module, made = Module(), lightning(tmp_path, 4)
    made.fit(module, batches())
    made.save_checkpoint(tmp_path / "state.ckpt")
    with pytest.raises(RequestError, match="holds checkpoints up to step 4"):
        lightning(tmp_path, LAST).fit(Module(), batches())
    continued = Module()
    lightning(tmp_path, LAST).fit(continued, batches(), ckpt_path=tmp_path / "state.ckpt")
    assert_recorded(tmp_path / "recorded", module.states | continued.states)


def test_an_error_in_the_loop_leaves_what_was_recorded(tmp_path: Path) -> None:
    from tests.recorder.trainers import Module, batches, lightning

    class Broken(Module):
        def on_train_batch_end(self, *arguments: Any) -> None:
            if self.global_step == 5:
                raise ZeroDivisionError

    made = lightning(tmp_path, LAST)
    with pytest.raises(ZeroDivisionError):
        made.fit(Broken(), batches())
    assert recorded(tmp_path / "recorded") == [0, 2, 4] and not made.loggers
