"""Real checkpoints: small networks of `transformers`, trained for real and saved by it.

Imported late and used by one session fixture: transformers takes seconds to import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

STEPS = (0, 1, 2, 4, 8, 12)

# Name → shard size of each checkpoint in turn: one file, and shards that differ in number.
SHARDS: dict[str, tuple[str, ...]] = {
    "neox-f16": ("5GB", "60KB", "25KB"),
    "llama-bf16": ("5GB",),
    "gpt2-f32": ("40KB", "5GB", "90KB"),
}
_DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def write_all(root: Path) -> dict[str, Path]:
    """Write the checkpoints of every network of SHARDS under `root`; return their directories."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    return {name: _write(root / name, name) for name in SHARDS}


def model(name: str) -> Any:
    """Return a freshly initialised network of the family that `name` starts with."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
    )

    torch.manual_seed(0)
    match name.partition("-")[0]:
        case "neox":
            return GPTNeoXForCausalLM(
                GPTNeoXConfig(
                    vocab_size=96,
                    hidden_size=48,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    intermediate_size=96,
                    max_position_embeddings=32,
                )
            )
        case "llama":
            return LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=96,
                    hidden_size=48,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    intermediate_size=96,
                    max_position_embeddings=32,
                )
            )
        case _:
            return GPT2LMHeadModel(
                GPT2Config(vocab_size=96, n_embd=48, n_layer=2, n_head=4, n_positions=32)
            )


def _write(directory: Path, name: str) -> Path:
    network, dtype = model(name), _DTYPES[name.rpartition("-")[2]]
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            sizes = SHARDS[name]
            saved = model(name)
            saved.load_state_dict(network.state_dict())
            saved.to(dtype).save_pretrained(
                directory / f"step{step}", max_shard_size=sizes[STEPS.index(step) % len(sizes)]
            )
        tokens = torch.randint(0, 96, (4, 16), generator=generator).cumsum(1) % 96
        network(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return directory
