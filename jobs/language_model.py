"""A small language model, trained on real text: the demo's training run.

The demo's text is the reference of the Python language as `pydoc` shows it, `pydoc_data.topics`: half a
megabyte of English prose that lies on every machine with CPython (PSF licence), so that nothing is
downloaded. Tokens are bytes. The network is a decoder of the Llama family in plain torch, with
the names that transformers gives its tensors.

Letters: B sequences of a batch, T tokens of a sequence, C width, H heads, D width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.recorder.recorder import Recorder
from pipeline.recorder.schedule import recorded_steps

VOCABULARY = 256


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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: a network this small gains nothing by two, and on a machine that has
    something else to do their waiting for each other took five times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
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
    text = text or "\n".join(topics.topics.values()).encode()
    learned = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    network = _Decoder(shape)
    _initialise(network, shape, generator)
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


def _initialise(network: nn.Module, shape: Shape, generator: torch.Generator) -> None:
    """Normal with 0.02, and less for what is added to the residual stream (as in GPT-2)."""
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if weights.dim() == 2:
                added = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = 0.02 / math.sqrt(2 * shape.layers) if added else 0.02
                weights.copy_(scale * torch.randn(weights.shape, generator=generator))


class _Decoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(VOCABULARY, shape.width),
                "layers": nn.ModuleList(_Layer(shape) for _ in range(shape.layers)),
                "norm": nn.RMSNorm(shape.width, eps=1e-5),
            }
        )
        self.lm_head = nn.Linear(shape.width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, T, VOCABULARY) logits of (B, T) tokens."""
        states = self.model["embed_tokens"](tokens)
        for layer in cast(nn.ModuleList, self.model["layers"]):
            states = layer(states)
        return self.lm_head(self.model["norm"](states))


class _Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, eps=1e-5)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=1e-5)
        self.mlp = _GatedMlp(shape)

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.self_attn(self.input_layernorm(states))
        return states + self.mlp(self.post_attention_layernorm(states))


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(shape.width, shape.width, bias=False) for _ in range(4)
        )

    def forward(self, states: Tensor) -> Tensor:
        def split(projected: Tensor) -> Tensor:  # (B, T, C) → (B, H, T, D)
            return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k = (_rotated(split(project(states))) for project in (self.q_proj, self.k_proj))
        mixed = functional.scaled_dot_product_attention(
            q, k, split(self.v_proj(states)), is_causal=True
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class _GatedMlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down_proj = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(states)) * self.up_proj(states))


def _rotated(heads: Tensor) -> Tensor:
    """Return (B, H, T, D) with pairs of coordinates turned by their position (RoPE, Su 2021)."""
    length, half = heads.shape[-2], heads.shape[-1] // 2
    frequencies = 10_000.0 ** (-torch.arange(half) / half)
    angles = torch.arange(length)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
