"""Sketches against their definition, number by number, whatever divides the work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.planning import tiles
from pipeline.planning.make import make_plan
from pipeline.planning.request import Request
from pipeline.statistics.pieces import CHUNK
from pipeline.statistics.sketch import Sketch, part_name
from tests.following import read, sketched_slowly
from tests.suites import stored_weights, write_suite

KNOWN = "layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("name", ["neox-f16", "llama-bf16", "gpt2-f32"])
@pytest.mark.parametrize(("buckets", "seed"), [(256, 0), (2048, 7)])
def test_every_part_of_trained_networks(
    trained: dict[str, Path], name: str, buckets: int, seed: int
) -> None:
    """Parts whose elements lie apart in fused tensors, small ones, in all formats."""
    plan, source = make_plan(Request(str(trained[name])))
    plan = plan.sketched(buckets, seed)
    sums = read(plan, source)
    stored = stored_weights(trained[name])
    kinds = set()
    for row, key in enumerate(sums.keys):
        tensor = plan.tensors[key.tensor]
        part = tensor.parts[key.part]
        places = np.arange(tensor.numel) % part.period
        values = stored[tensor.name][:, (places >= part.start) & (places < part.stop)]
        found, squares = (sums.arrays[f"sketch.{each}"][row] for each in ("buckets", "squares"))
        whole = values.shape[1] <= 2 * buckets
        kinds.add((whole, part.label))
        expected = (
            values
            if whole
            else sketched_slowly(values, part_name(tensor.name, part), seed, buckets)
        )
        width = expected.shape[1]
        norms = np.linalg.norm(values, axis=1)
        assert (np.abs(found[:, :width] - expected) <= 1e-12 * norms[:, None]).all()
        assert not found[:, width:].any()
        np.testing.assert_allclose(squares, norms**2, rtol=1e-12)
    assert {(True, ""), (False, "")} <= kinds
    if name == "neox-f16":
        assert {label for _, label in kinds} == {"", "q", "k", "v"}


def test_a_known_sketch() -> None:
    """A part that was kept by an earlier version must fit to what this one keeps."""
    values = np.arange(1.0, 41.0)[None]
    sketch = sketched_slowly(values, KNOWN, 0, 8)
    assert sketch[0].tolist() == [-62.0, 3.0, -106.0, -1.0, -50.0, 33.0, 98.0, 29.0]


def test_names_of_parts_differ() -> None:
    from pipeline.checkpoint.parts import Part

    parts = [
        Part("", "other", 1, 0, 1),
        Part("q", "attn_q", 12, 0, 4),
        Part("q", "attn_q", 12, 0, 2, head=0),
        Part("q", "attn_q", 12, 2, 4, head=1),
        Part("gate", "mlp_gate", 12, 0, 4, expert=0),
        Part("gate", "mlp_gate", 12, 0, 4, expert=1),
    ]
    assert len({part_name("w", part) for part in parts}) == len(parts)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_threads_and_memory_decide_no_bit(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor in several tiles, whose last block of buckets is cut."""
    monkeypatch.setattr(tiles, "MIN_TILE_BYTES", 1 << 16)
    rng = np.random.default_rng(0)
    numel = CHUNK + 12_345
    suite = {KNOWN: rng.standard_normal((2, numel)), "norm.weight": rng.standard_normal((2, 600))}
    directory = write_suite(tmp_path / "suite", suite, dtype)
    plan, source = make_plan(Request(str(directory)))
    plan = plan.sketched()
    assert len(plan.tiles) > 1
    first = read(plan, source)
    for threads, budget in ((3, 1 << 32), (1, 40 << 20)):
        again = read(plan, source, threads, budget)
        assert again.keys == first.keys
        for name, array in first.arrays.items():
            assert array.tobytes() == again.arrays[name].tobytes(), name
    (row,) = (n for n, key in enumerate(first.keys) if plan.tensors[key.tensor].name == KNOWN)
    values = stored_weights(directory)[KNOWN]
    found = first.arrays["sketch.buckets"][row]
    assert found.shape == (2, 4096)
    expected = sketched_slowly(values, KNOWN, 0, 4096)
    bound = 1e-12 * np.linalg.norm(values, axis=1)[:, None]
    assert (np.abs(found - expected) <= bound).all()


def test_columns_are_what_parts_need() -> None:
    sketch = Sketch(256)
    assert sketch.columns_for([100, 512]) == 512
    assert sketch.columns_for([100, 513]) == 256
    assert sketch.columns_for([7]) == 7
    assert sketch.columns_for([400, 10**9]) == 400
