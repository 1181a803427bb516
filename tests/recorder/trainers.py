"""Small trainings by the trainers of transformers and Lightning, with recorders of theirs.

Apart from the tests, which import it when they run: both together take seconds to import, which each
process that only collects tests would spend.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from pipeline.recorder.lightning import RecorderCallback as LightningRecorder
from pipeline.recorder.transformers import RecorderCallback as TrainerRecorder
from tests.recorder.test_recorder import State, copied

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
transformers_logging.disable_progress_bar()


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
