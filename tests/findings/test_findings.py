"""Each real defect of public suites, rebuilt small, gives its finding; clean runs give none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.torch import save_file

import pipeline
from jobs.audit import audit
from pipeline.store.query import Store
from tests.findings.clean import COVERED, RUNS, train
from tests.suites import trajectory, write_suite

COUNT = 12
SHAPES = {
    "model.embed_tokens.weight": (64, 32),
    "model.layers.0.mlp.up_proj.weight": (64, 32),
    "model.layers.1.mlp.up_proj.weight": (64, 32),
    "lm_head.weight": (64, 32),
    "model.norm.weight": (32,),
}
FIRST_SHARD = tuple(SHAPES)[:2]
Weights = dict[str, NDArray[np.float64]]


def weights(kind: str = "smooth", step: float = 0.02) -> Weights:
    found = {}
    for seed, (name, shape) in enumerate(SHAPES.items()):
        rows = trajectory(kind, COUNT, int(np.prod(shape)), step, seed)
        found[name] = rows.reshape(COUNT, *shape)
    return found


def write_sharded(directory: Path, values: Weights) -> Path:
    """Two files and their index for every checkpoint."""
    for k in range(COUNT):
        folder = directory / f"step{k}"
        folder.mkdir(parents=True)
        shards: list[dict[str, torch.Tensor]] = [{}, {}]
        for name, rows in values.items():
            shards[name not in FIRST_SHARD][name] = torch.from_numpy(rows[k]).float()
        places = {}
        for number, shard in enumerate(shards, 1):
            file = f"model-0000{number}-of-00002.safetensors"
            save_file(shard, folder / file)
            places |= dict.fromkeys(shard, file)
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def found_in(directory: Path, store: Path, **options: Any) -> list[dict[str, Any]]:
    summary = pipeline.analyze(str(directory), str(store), executor="local", **options)
    columns = ("severity", "kind", "k", "tensor", "message", "evidence")
    query = f"SELECT {', '.join(columns)} FROM findings WHERE run = '{summary.run}'"
    rows = Store(str(store)).sql(query).fetchall()
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    assert sum(summary.findings.values()) == len(found)
    for entry in found:
        entry["evidence"] = json.loads(entry["evidence"])
    return found


def judged(found: Sequence[dict[str, Any]]) -> list[tuple[str, str, int | None]]:
    """What is an error or a warning."""
    return [(f["severity"], f["kind"], f["k"]) for f in found if f["severity"] != "info"]


def test_identical_checkpoints_in_the_middle(tmp_path: Path) -> None:
    values = weights()
    for rows in values.values():
        rows[3] = rows[9] = rows[6]
    found = found_in(write_suite(tmp_path / "run", values), tmp_path / "store")
    assert judged(found) == [("error", "identical_checkpoints", 3)]
    evidence = found[0]["evidence"]
    assert [entry["k"] for entry in evidence["checkpoints"]] == [3, 6, 9]
    assert evidence["belongs_at"] == {"k": 6, "name": "step6", "step": 6}
    assert "step3 (step 3)" in found[0]["message"] and "step9 (step 9)" in found[0]["message"]


def test_final_content_in_early_branches(tmp_path: Path) -> None:
    """Of several early branches, some hold the last checkpoint, one something near it."""
    values = weights()
    for rows in values.values():
        rows[0] = rows[1] = rows[3] = rows[COUNT - 1]
        rows[5] = 0.05 * rows[COUNT - 2] + 0.95 * rows[COUNT - 1]
    found = found_in(write_suite(tmp_path / "run", values), tmp_path / "store")
    assert judged(found) == [
        ("error", "identical_checkpoints", 0),
        ("warning", "off_trajectory", 5),
    ]
    assert found[0]["evidence"]["belongs_at"]["k"] == COUNT - 1


def test_two_neighbours_of_which_one_is_wrong(tmp_path: Path) -> None:
    values = weights()
    for rows in values.values():
        rows[7] = rows[6]
    found = found_in(write_suite(tmp_path / "run", values), tmp_path / "store")
    assert judged(found) == [("error", "identical_checkpoints", 7)]


def test_a_shard_of_the_last_checkpoint_in_another(tmp_path: Path) -> None:
    values = weights()
    for name in FIRST_SHARD:
        values[name][4] = values[name][COUNT - 1]
        values[name][7] = values[name][COUNT - 1]
    found = found_in(write_sharded(tmp_path / "run", values), tmp_path / "store")
    assert judged(found) == [("error", "foreign_tensors", 4), ("error", "foreign_tensors", 7)]
    assert found[0]["evidence"]["tensors"] == sorted(FIRST_SHARD)
    assert found[0]["evidence"]["of"][0]["k"] == COUNT - 1


def test_a_shard_of_a_neighbour(tmp_path: Path) -> None:
    values = weights()
    for name in FIRST_SHARD:
        values[name][5] = values[name][4]
    found = found_in(write_sharded(tmp_path / "run", values), tmp_path / "store")
    assert judged(found) == [("error", "foreign_tensors", 5)]


def test_nothing_moves_in_the_first_step(tmp_path: Path) -> None:
    """Warm-up begins at rate 0."""
    values = weights()
    for rows in values.values():
        rows[1] = rows[0]
    found = found_in(write_suite(tmp_path / "run", values), tmp_path / "store")
    assert judged(found) == []
    assert [(f["kind"], f["k"]) for f in found] == [("identical_checkpoints", 1)]


def test_a_run_that_does_not_descend_from_its_first_checkpoint(tmp_path: Path) -> None:
    values = weights()
    for name, rows in values.items():
        rows[0] = 0.02 * np.random.default_rng(len(name)).standard_normal(rows[0].shape)
    found = found_in(write_suite(tmp_path / "run", values), tmp_path / "store")
    assert judged(found) == [("warning", "discontinuity", 1)]
    assert set(found[0]["evidence"]["unrelated"]) == {n for n in SHAPES if "norm" not in n}


def test_a_leap(tmp_path: Path) -> None:
    values = weights()
    for rows in values.values():
        rows[6:] += 12 * (rows[6] - rows[5])
    found = found_in(write_suite(tmp_path / "run", values), tmp_path / "store")
    assert judged(found) == [("warning", "discontinuity", 6)]


def test_one_checkpoint_beside_the_path(tmp_path: Path) -> None:
    values = weights("walk")
    for rows in values.values():
        rows[5] += 0.2 * np.random.default_rng(3).standard_normal(rows[5].shape) * 0.02
    found = found_in(write_suite(tmp_path / "run", values), tmp_path / "store")
    assert judged(found) == [("warning", "off_trajectory", 5)]


def test_missing_steps(tmp_path: Path) -> None:
    steps = [100 * k for k in range(COUNT + 2) if k not in (5, 6)]
    found = found_in(write_suite(tmp_path / "run", weights(), steps=steps), tmp_path / "store")
    assert judged(found) == [("warning", "missing_steps", 5)]
    assert found[0]["evidence"] == {"stage": None, "after": 400, "before": 700, "missing": 2}


def test_values_that_are_not_numbers(tmp_path: Path) -> None:
    values = weights()
    values["lm_head.weight"][4, 0, 0] = np.nan
    values["lm_head.weight"][8:, 3, 3] = np.inf
    found = found_in(write_suite(tmp_path / "run", values), tmp_path / "store")
    assert judged(found) == [("error", "non_finite", 4), ("error", "non_finite", 8)]
    assert found[0]["tensor"] == "lm_head.weight"
    assert [entry["k"] for entry in found[1]["evidence"]["checkpoints"]] == [8, 9, 10, 11]


def test_what_is_not_comparable_or_does_not_move(tmp_path: Path) -> None:
    values = weights()
    values["model.norm.weight"][:] = values["model.norm.weight"][0]
    directory = write_suite(tmp_path / "run", values, ["F32"] * 6 + ["BF16"] * 6)
    grown = {name: torch.from_numpy(rows[6]).bfloat16() for name, rows in values.items()}
    grown["lm_head.weight"] = torch.cat((grown["lm_head.weight"], torch.zeros(8, 32).bfloat16()))
    del grown["model.embed_tokens.weight"]
    grown["model.layers.0.attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(grown, directory / "step6" / "model.safetensors")
    found = found_in(directory, tmp_path / "store")
    assert judged(found) == [("warning", "shape_changed", 6), ("warning", "missing_tensor", 6)]
    kinds = {f["kind"]: f for f in found}
    assert kinds["shape_changed"]["tensor"] == "lm_head.weight"
    assert kinds["dtype_changed"]["k"] == 6
    assert kinds["excluded_tensor"]["tensor"].endswith("inv_freq")


def test_frozen_and_tied_tensors(tmp_path: Path) -> None:
    values = weights()
    values["model.norm.weight"][:] = values["model.norm.weight"][0]
    values["lm_head.weight"] = values["model.embed_tokens.weight"]
    directory = write_suite(tmp_path / "run", values)
    for folder in directory.iterdir():
        (folder / "config.json").write_text('{"tie_word_embeddings": true}')
    found = found_in(directory, tmp_path / "store")
    assert [(f["severity"], f["kind"], f["tensor"]) for f in found] == [
        ("info", "frozen_tensor", "model.norm.weight"),
        ("info", "tied_weights", "lm_head.weight"),
    ]


def test_steps_below_rounding(tmp_path: Path) -> None:
    """In bf16 at steps of 1e-4 the angles say nothing; and a rate of zero at the end is no error."""
    values = weights(step=1e-4)
    for rows in values.values():
        rows[-2:] = rows[-3]
    found = found_in(write_suite(tmp_path / "run", values, "BF16"), tmp_path / "store")
    assert judged(found) == []
    assert [f["kind"] for f in found] == ["identical_checkpoints", "below_noise_floor"]


def test_a_sample_says_that_it_is_one(tmp_path: Path) -> None:
    values = {"w.weight": trajectory("smooth", COUNT, 100_000, 0.02).reshape(COUNT, 250, 400)}
    values["w.weight"][8] = values["w.weight"][4]
    directory = write_suite(tmp_path / "run", values)
    found = found_in(directory, tmp_path / "store", fraction=0.05)
    assert judged(found) == [("error", "identical_checkpoints", 8)]
    assert "of the weights that was read" in found[0]["message"]


def test_several_runs_from_one_read(tmp_path: Path) -> None:
    """The findings of each path, in its own run and in the run over all."""
    directories = []
    for name in ("a", "b"):
        values = weights()
        for rows in values.values():
            rows += 0.01 if name == "b" else 0.0
        if name == "b":
            values["lm_head.weight"][3, 0, 0] = np.nan
        directories.append(str(write_suite(tmp_path / name, values)))
    summaries = pipeline.analyze_joint(
        directories, str(tmp_path / "store"), executor="local", run="both"
    )
    assert [entry.findings["error"] for entry in summaries] == [0, 1, 1]
    row = (
        Store(str(tmp_path / "store"))
        .sql("SELECT k, message FROM findings WHERE run = 'both'")
        .fetchall()[0]
    )
    assert row[0] == COUNT + 3 and row[1].startswith("b: step3")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in COVERED)) for name in RUNS],
)
def test_a_clean_run_has_no_error_and_no_warning(name: str, tmp_path: Path) -> None:
    run = RUNS[name]
    values = {key: rows.double().numpy() for key, rows in train(run).items()}
    directory = write_suite(tmp_path / "run", values, run.dtype, steps=run.steps)
    assert judged(found_in(directory, tmp_path / "store")) == []


def test_audit(tmp_path: Path) -> None:
    values = weights()
    values["lm_head.weight"][4, 0, 0] = np.nan
    store = str(tmp_path / "store")
    found_in(write_suite(tmp_path / "bad", values), tmp_path / "store")
    found_in(write_suite(tmp_path / "good", weights()), tmp_path / "store")

    def told(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(audit, ["--store", store, *arguments], standalone_mode=False)
        return done.return_value, done.output

    code, output = told()
    assert code == 0 and "run bad: 1 error" in output and "run good: nothing found" in output
    assert "error   non_finite: step4 (step 4): lm_head.weight holds NaN" in output
    assert told("--strict")[0] == 3
    assert told("--strict", "--run", "good")[0] == 0
    assert "no run 'worse'" in str(
        CliRunner().invoke(audit, ["--store", store, "--run", "worse"]).exception
    )
