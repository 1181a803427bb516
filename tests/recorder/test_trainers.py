"""Real trainings by other people's trainers, recorded, and what `analyze` reads of them."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

import pipeline
from pipeline.errors import RequestError
from pipeline.recorder.lightning import RecorderCallback as LightningRecorder
from pipeline.recorder.transformers import RecorderCallback as TrainerRecorder
from tests.commands import hallmarks
from tests.recorder.test_recorder import State, assert_same, checkpoint, copied, recorded

STEPS, LAST = [0, 2, 4, 6, 7], 7


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
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


class Watching(TrainerCallback):
    """Knows the weights at every step, by itself."""

    def __init__(self) -> None:
        self.states: dict[int, State] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.states[state.global_step] = untied(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.states[state.global_step] = untied(kwargs["model"])


def untied(model: nn.Module) -> State:
    state = copied(model)
    assert torch.equal(state.pop("lm_head.weight"), state["model.embed_tokens.weight"])
    return state


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return LlamaForCausalLM(
        LlamaConfig(
            **sizes, num_attention_heads=2, max_position_embeddings=16, tie_word_embeddings=True
        )
    )


def trainer(folder: Path, last: int, **more: Any) -> tuple[Trainer, Watching]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(32, (16, 8), generator=generator)
    data = [{"input_ids": row, "labels": row} for row in tokens]
    options = {
        "logging_steps": 2,
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 4,
    } | more
    arguments = TrainingArguments(
        str(folder / "out"), max_steps=last, per_device_train_batch_size=4, report_to=[],
        use_cpu=True, disable_tqdm=True, learning_rate=1e-2, **options,
    )  # fmt: skip
    watching = Watching()
    callbacks = [TrainerRecorder(folder / "recorded", "linear:2"), watching]
    made = Trainer(
        llama(), arguments, train_dataset=data, eval_dataset=data[:4], callbacks=callbacks
    )
    return made, watching


def test_the_trainer_of_transformers(tmp_path: Path) -> None:
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
    made, _ = trainer(tmp_path, LAST)
    made.callback_handler.callbacks = [TrainerRecorder(tmp_path / "out", "linear:2")]
    with pytest.raises(RequestError, match="expected another than the Trainer's output_dir"):
        made.train()


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
        self.states: dict[int, State] = {}
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        self.states[self.global_step] = copied(self)
        loss = self.net(batch[0]).square().mean()
        self.log("train_loss", loss)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: list[Tensor], number: int) -> None:
        self.log("val_loss", self.net(batch[0]).square().mean())

    def on_train_end(self) -> None:
        self.states[self.global_step] = copied(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def lightning(folder: Path, last: int, **more: Any) -> pl.Trainer:
    return pl.Trainer(
        max_steps=last, accelerator="cpu", log_every_n_steps=1, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, logger=False,
        enable_checkpointing=False, callbacks=[LightningRecorder(folder / "recorded", "linear:2")],
        **more,
    )  # fmt: skip


def batches() -> DataLoader[Any]:
    data = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(data), batch_size=4)


def test_the_trainer_of_lightning(tmp_path: Path) -> None:
    module, made = Module(), lightning(tmp_path, LAST)
    made.fit(module, batches(), batches())
    assert not made.loggers
    assert_recorded(tmp_path / "recorded", module.states)
    curves = analyzed(tmp_path / "recorded", tmp_path / "store")
    assert curves["train", "loss"] == dict(enumerate(module.losses))
    assert sorted(curves["val", "loss"]) == [2, 5]


def test_a_training_that_lightning_continues(tmp_path: Path) -> None:
    module, made = Module(), lightning(tmp_path, 4)
    made.fit(module, batches())
    made.save_checkpoint(tmp_path / "state.ckpt")
    with pytest.raises(RequestError, match="holds checkpoints up to step 4"):
        lightning(tmp_path, LAST).fit(Module(), batches())
    continued = Module()
    lightning(tmp_path, LAST).fit(continued, batches(), ckpt_path=tmp_path / "state.ckpt")
    assert_recorded(tmp_path / "recorded", module.states | continued.states)


def test_an_error_in_the_loop_leaves_what_was_recorded(tmp_path: Path) -> None:
    class Broken(Module):
        def on_train_batch_end(self, *arguments: Any) -> None:
            if self.global_step == 5:
                raise ZeroDivisionError

    made = lightning(tmp_path, LAST)
    with pytest.raises(ZeroDivisionError):
        made.fit(Broken(), batches())
    assert recorded(tmp_path / "recorded") == [0, 2, 4] and not made.loggers
