"""What the benchmarks' figures stand on: the made-up suite's truth, what is counted, what is compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

import pipeline
from benchmarks import ratios
from benchmarks.shapes import distinct_groups
from benchmarks.suites import Suite, pythia
from benchmarks.virtual import STEPS, Blocks, File, Network, shards, tensors

SMALL = Network("org/small", 2, 128, 4, 700, 2)


def test_the_truth_of_the_virtual_suite_is_that_of_its_files() -> None:
    """Read in ranges of any length, and the products of all parts' stored values."""
    blocks = Blocks([STEPS[0], STEPS[9], STEPS[-1]])
    held = tensors(SMALL)
    assert len(STEPS) == 154 and STEPS[:4] == (0, 1, 2, 4) and STEPS[10:12] == (512, 1000)
    stored: list[dict[str, np.ndarray]] = [{} for _ in blocks.rows]
    rng = np.random.default_rng(0)
    for name, shard in shards(SMALL, held).items():
        for values, row in zip(stored, blocks.rows, strict=True):
            file = File(shard, row, name)
            data = bytes(file.read(0, file.size))
            for start, length in zip(*rng.integers(1, file.size, (2, 20)).tolist(), strict=True):
                assert bytes(file.read(start, start + length)) == data[start : start + length]
            values |= load(data)
    for tensor in held:
        for intervals in tensor.parts(SMALL).values():
            rows = [
                np.concatenate([values[tensor.name].reshape(-1)[a:b] for a, b in intervals])
                for values in stored
            ]
            exact = np.stack(rows).astype(np.float64)
            gram = blocks.gram(tensor.first, intervals)
            np.testing.assert_allclose(gram, exact @ exact.T, rtol=1e-12)


def test_groups_of_the_same_parts_count_once(tmp_path: Path) -> None:
    """Two layers, each with one tensor of every role but norms, and heads of its attention."""
    shapes = {
        name: shape
        for name, shape in pythia(2, 16, 30).items()
        if name.endswith(("query_key_value.weight", "dense.weight", "layernorm.weight"))
    }
    config = {"model_type": "gpt_neox", "num_attention_heads": 2, "hidden_size": 16}
    suite = Suite("", 3, shapes, config=config)
    suite.write(tmp_path / "suite")
    pipeline.analyze(
        str(tmp_path / "suite"), str(tmp_path / "store"), executor="local", by_head=True
    )
    # the model is the body; per layer: itself, q, k, v, dense, norms and the two of them; 6 heads
    # of 2; per role over layers: q, k, v, dense, norm
    per_layer = 1 + 3 + 1 + 1 + 2 + 6
    assert distinct_groups(tmp_path / "store") == 1 + 2 * per_layer + 5


def test_a_ratio_that_got_worse_ends_in_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "ratios.json"
    monkeypatch.setattr(ratios, "STORED", stored)
    monkeypatch.setattr("sys.argv", ["ratios.py"])
    monkeypatch.setattr(ratios, "ratios", lambda: {"one": 0.5, "other": 8.0})
    ratios.main()
    assert "never" in capsys.readouterr().out
    stored.write_text(json.dumps({"date": "2026-01-01", "one": 0.6, "other": 9.0}))
    ratios.main()
    stored.write_text(json.dumps({"date": "2026-01-01", "one": 0.6, "other": 11.0}))
    with pytest.raises(SystemExit, match="1 ratios are worse"):
        ratios.main()
    assert "| other | 11.0 | 8.0 | **worse** |" in capsys.readouterr().out
