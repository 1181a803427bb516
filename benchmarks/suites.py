"""The checkpoints that benchmarks analyse: a drift plus noise, in steps that shrink as 0.1 / (1 + k).

Names and shapes are those of real networks, so that layers, roles, experts and heads are recognised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

_NOISE = 1 << 22
"""Values of noise, which every step uses from another place on: drawing as many as there are weights
takes longer than everything that is measured."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Suite:
    """Checkpoints of one network."""

    title: str
    checkpoints: int
    shapes: Shapes
    dtype: str = "float16"
    config: Mapping[str, object] | None = None
    options: tuple[str, ...] = ()
    """Of `analyze`."""

    @property
    def numel(self) -> int:
        """Weights of one checkpoint."""
        return sum(map(prod, self.shapes.values()))

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights."""
        return self.checkpoints * self.numel * (4 if self.dtype == "float32" else 2)

    def at(self, **changed: object) -> Suite:
        """Return another suite of the kind."""
        return replace(self, **changed)

    def write(self, directory: Path) -> list[Path]:
        """Write the checkpoints as folders of a directory; return the files of weights."""
        import torch
        from safetensors.torch import save_file

        generator = torch.Generator().manual_seed(0)
        weights, drift = (0.02 * torch.randn(self.numel, generator=generator) for _ in range(2))
        noise = 0.02 * torch.randn(_NOISE, generator=generator)
        values = torch.empty(self.numel, dtype=getattr(torch, self.dtype))
        stored, first = {}, 0
        for name, shape in self.shapes.items():
            stored[name] = values[first : first + prod(shape)].view(shape)
            first += prod(shape)
        files = []
        for k in range(self.checkpoints):
            folder = directory / f"step{k}"
            folder.mkdir(parents=True)
            if self.config is not None:
                (folder / "config.json").write_text(json.dumps(self.config))
            values.copy_(weights)
            files.append(folder / "model.safetensors")
            save_file(stored, files[-1])
            size, first = 0.1 / (1 + k), 0
            weights.add_(drift, alpha=size)
            while first < self.numel:
                at = int(torch.randint(_NOISE, (), generator=generator))
                piece = noise[at : at + self.numel - first]
                weights[first : first + len(piece)].add_(piece, alpha=size)
                first += len(piece)
        return files


def llama(layers: int, width: int, vocabulary: int, gate: bool = True, head: bool = True) -> Shapes:
    """Return a decoder as Llama's: nine tensors a layer with a gate, and two or three more."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        found |= {f"{prefix}self_attn.{x}_proj.weight": (width, width) for x in "qkvo"}
        for name in ("gate", "up") if gate else ("up",):
            found[f"{prefix}mlp.{name}_proj.weight"] = (4 * width, width)
        found[prefix + "mlp.down_proj.weight"] = (width, 4 * width)
        found[prefix + "input_layernorm.weight"] = (width,)
        found[prefix + "post_attention_layernorm.weight"] = (width,)
    found["model.norm.weight"] = (width,)
    return found | ({"lm_head.weight": (vocabulary, width)} if head else {})


def pythia(layers: int, width: int, vocabulary: int) -> Shapes:
    """Return a decoder as Pythia's: twelve tensors a layer, and four more."""
    found: dict[str, tuple[int, ...]] = {"gpt_neox.embed_in.weight": (vocabulary, width)}
    for layer in range(layers):
        prefix = f"gpt_neox.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            found |= {f"{prefix}{name}.weight": (width,), f"{prefix}{name}.bias": (width,)}
        for name, rows, columns in (
            ("attention.query_key_value", 3 * width, width),
            ("attention.dense", width, width),
            ("mlp.dense_h_to_4h", 4 * width, width),
            ("mlp.dense_4h_to_h", width, 4 * width),
        ):
            found |= {f"{prefix}{name}.weight": (rows, columns), f"{prefix}{name}.bias": (rows,)}
    found |= {f"gpt_neox.final_layer_norm.{x}": (width,) for x in ("weight", "bias")}
    return found | {"embed_out.weight": (vocabulary, width)}


def experts(layers: int, count: int, width: int) -> Shapes:
    """Return the experts of a mixture, three tensors each."""
    return {
        f"model.layers.{layer}.mlp.experts.{expert}.{x}_proj.weight": (width, width)
        for layer in range(layers)
        for expert in range(count)
        for x in ("gate", "up", "down")
    }


_VALUE_HEADS = {f"value_head.{n}.{x}": (128,) for n in range(4) for x in ("weight", "bias")}
_SMALL = Suite(
    "154 × 7.4 M in 300 tensors, fp16",
    154,
    pythia(24, 128, 10_300) | _VALUE_HEADS,
    config={"model_type": "gpt_neox", "num_attention_heads": 8, "hidden_size": 128},
)

SUITES: dict[str, Suite] = {
    "large": Suite("64 × 33.5 M in 12 tensors, fp16", 64, llama(1, 1024, 8192)),
    "long": Suite("16 × 250 M, fp16", 16, llama(4, 2048, 12_150, gate=False)),
    "small": _SMALL,
    "heads": _SMALL.at(title="the same, --by-head", options=("--by-head",)),
    "experts": Suite(
        "24 × 12.3 M in 12,000 tensors, bf16", 24, experts(20, 200, 32), "bfloat16"
    ),
    "many": Suite(
        "935 × 1 M in 20 tensors, fp32", 935, llama(2, 128, 3_700, head=False), "float32"
    ),
}  # fmt: skip
"""What shapes.py compares."""
