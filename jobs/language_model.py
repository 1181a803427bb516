"""A small language model, trained on real text: the demo's training run.

The demo's text is the reference of the Python language (pipeline/sweep/data.py); tokens are bytes. The
network is a decoder of the Llama family (pipeline/sweep/networks.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pipeline.recorder.recorder import Recorder
from pipeline.recorder.schedule import recorded_steps
from pipeline.sweep.data import VOCABULARY, reference_text
from pipeline.sweep.networks import Decoder, initialise
from pipeline.sweep.train import reproducible


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of the network: about 0.9 million weights."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    hidden: int = 352
    context: int = 96


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the training run."""

    steps: int = 600
    batch: int = 12
    peak_rate: float = 2e-3
    warmup: int = 40
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0


@reproducible()
def train(
    directory: Path,
    *,
    settings: Settings | None = None,
    shape: Shape | None = None,
    text: bytes | None = None,
    on_checkpoint: Callable[[int, float], None] | None = None,
) -> None:
    """Train and record checkpoints as `directory/step-N/model.safetensors`: steps 1, 2, 4, …, then evenly.

    Args:
        text: what is learned; default: the reference of the Python language.
        on_checkpoint: told the step and the loss at every checkpoint.
    """
    settings, shape = settings or Settings(), shape or Shape()
    generator = torch.Generator().manual_seed(settings.seed)
    text = text or reference_text()
    learned = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    network = Decoder(VOCABULARY, shape.width, shape.layers, shape.heads, shape.hidden)
    initialise(network, shape.layers, generator)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    schedule = f"pythia:{max(1, settings.steps // 36)}"  # about 40 checkpoints
    recorded = set(recorded_steps(schedule, settings.steps))
    with Recorder(
        network, directory, schedule, last_step=settings.steps, config=_config(shape, settings)
    ) as recorder:
        for step in range(settings.steps + 1):
            starts = torch.randint(
                len(learned) - shape.context - 1, (settings.batch, 1), generator=generator
            )
            window = learned[starts + torch.arange(shape.context + 1)].long()
            logits = network(window[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
            recorder.step(step, train_loss=loss, learning_rate=rates.get_last_lr()[0])
            if on_checkpoint is not None and step in recorded:
                on_checkpoint(step, loss.item())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            optimizer.step()
            rates.step()


def _rate(step: int, settings: Settings) -> float:
    """Linear warm-up, then a half cosine down to a tenth."""
    if step < settings.warmup:
        return settings.peak_rate * step / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.peak_rate * (0.55 + 0.45 * math.cos(math.pi * min(1.0, done)))


def _config(shape: Shape, settings: Settings) -> dict[str, Any]:
    """Return what transformers would state of the network, and the settings of its training."""
    return {
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "training": asdict(settings),
    }
