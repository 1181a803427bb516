"""Real files of every kind that is read, written by the libraries that others use."""

from __future__ import annotations

import argparse
import io
import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from safetensors.torch import save
from torch.distributed.checkpoint import save as save_distributed

from pipeline.statistics.parts import PartKey, Sums
from pipeline.statistics.statistic import specs
from pipeline.statistics.table import ALWAYS
from pipeline.store.tiles import encode
from tests.hub import Hub

NAME = "org/fuzzed"


def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    both = torch.randn(6, 4)
    return {
        "model.embed_tokens.weight": both,
        "lm_head.weight": both,
        "model.layers.0.self_attn.qkv_proj.weight": torch.randn(24, 8),
        "model.layers.0.mlp.experts.gate_up_proj": torch.randn(2, 4, 4).bfloat16(),
        "model.layers.0.input_layernorm.weight": torch.ones(4).half(),
        "model.layers.1.w": torch.randn(8, 8)[:, :4],
        "model.layers.1.t": torch.randn(8, 4).T,
        "scalar": torch.tensor(1.0),
        "mask": torch.ones(3, dtype=torch.uint8),
    }


def _torch(found: Any, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(found, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def write(folder: Path) -> None:
    """Write everything below a folder."""
    weights = _weights()
    plain = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
    linear = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    beside = [argparse.Namespace(lr=[0.1]), Path("x"), np.arange(3), {1, 2}, torch.eye(2).to_sparse(),
              torch.nn.Buffer(torch.ones(2)), frozenset({1}), 1j, b"x"]  # fmt: skip
    state = {"model": linear.state_dict(), "step": 7, "args": {"lr": beside, "name": "x"}}
    (folder / "x.safetensors").write_bytes(save(plain, {"format": "pt"}))
    (folder / "zip.bin").write_bytes(_torch(weights, True))
    (folder / "legacy.bin").write_bytes(_torch(state, False))
    (folder / "pickle.bin").write_bytes(_torch(state, True))
    save_distributed({"model": weights, "optim": {"m": plain}}, checkpoint_id=folder / "dcp",
                     no_dist=True)  # fmt: skip
    _suite(folder / "suite", plain)
    _tables(folder, [str(path) for path in sorted((folder / "suite").iterdir())])
    (folder / "tile.safetensors").write_bytes(encode(_tile()))
    _listings(folder / "hub")


def _suite(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Two sharded checkpoints with an index and a configuration."""
    config = {
        "model_type": "phi3", "num_attention_heads": 1, "num_key_value_heads": 1,
        "tie_word_embeddings": True, "ffn_config": {"moe_num_experts": 2},
        "attn_config": {"kv_n_heads": 1}, "multi_query": False,
    }  # fmt: skip
    for step in (1, 2):
        path = folder / f"step{step}"
        path.mkdir(parents=True)
        (path / "a.safetensors").write_bytes(save(weights))
        places = dict.fromkeys(weights, "a.safetensors")
        index = {"metadata": {"total_size": 9}, "weight_map": places}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        (path / "config.json").write_text(json.dumps(config))


def _tables(folder: Path, uris: list[str]) -> None:
    rows = [
        {"uri": uri, "name": f"step{n}", "step": n, "tokens": 1e9 * n} for n, uri in enumerate(uris)
    ]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = pa.Table.from_pylist(rows)
    pyarrow.csv.write_csv(table, folder / "t.csv")
    pyarrow.parquet.write_table(table, folder / "t.parquet")


def _tile() -> Sums:
    count = 5
    arrays = {spec.name: spec.empty(2, packed=True) for spec in specs(ALWAYS, count)}
    arrays["gram.increments"][0] = np.arange(count * (count + 1) / 2)
    return Sums((PartKey(0, 0, 0), PartKey(1, 0, 3)), arrays, "cpu")


def _listings(folder: Path) -> None:
    """What a Hub answers; the file's name is the address."""
    hub = Hub()
    repository = hub.repository(NAME)
    for step in (1, 2):
        files = {"config.json": b"{}", "model.safetensors": b"x" * 40}
        commit = repository.commit(files, f"step{step}", f"step {step}")
        repository.commit({f"step{step}/model.safetensors": b"y"}, message=f"step {step}")
    base = f"api/models/{NAME}"
    paths = ("refs", "commits/main", "revision/main", f"tree/{commit}?recursive=True", "")
    with hub.serve() as endpoint:
        for path in (f"{base}/{path}".rstrip("/") for path in paths):
            with urllib.request.urlopen(f"{endpoint}/{path}") as answer:
                target = folder / path.partition("?")[0] / "answer.json"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(answer.read())
