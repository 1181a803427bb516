"""What a run is called, and what may take its place in a store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.errors import RequestError
from pipeline.job.summary import Summary
from pipeline.planning.make import run_name
from pipeline.planning.request import Request
from tests.commands import Done, hallmarks
from tests.suites import trajectory, write_suite
from tests.test_bits import everything

STEPS = [100, 200, 300, 400]


@pytest.fixture
def trainer(tmp_path: Path) -> dict[str, Path]:
    """Two runs of one trainer, which calls every run's folder the same."""
    return {
        name: write_suite(
            tmp_path / name / "outputs" / "checkpoint",
            {"layers.0.mlp.up_proj.weight": trajectory("walk", 4, 64, 0.1 * n, seed=n)},
            steps=STEPS,
        )
        for n, name in enumerate(("exp1", "exp2"), 1)
    }


def analyzed(source: Path | str, store: Path, **options: Any) -> Summary:
    return pipeline.analyze(str(source), str(store), **{"executor": "local", **options})


def command(*arguments: object) -> Done:
    return hallmarks("analyze", *arguments, "--executor", "local")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("demo", "demo"),
        ("exp1/outputs/checkpoint", "exp1--outputs--checkpoint"),
        ("exp1/Checkpoints", "exp1--Checkpoints"),
        ("runs/llama-7b/ckpts", "llama-7b--ckpts"),
        ("big/lightning_logs/version_3/checkpoints", "big--lightning_logs--version_3--checkpoints"),
        ("grid/multirun/2024-01-01/12-30-00/7", "multirun--2024-01-01--12-30-00--7"),
        ("sweep/lr=0.1,wd=0/models", "lr-0.1-wd-0--models"),
        ("a/seed0", "seed0"),
    ],
)
def test_default_names_go_back_to_a_folder_that_tells_something(
    tmp_path: Path, path: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / path
    folder.mkdir(parents=True)
    assert run_name(Request(str(folder))) == name
    monkeypatch.chdir(folder.parent)
    assert run_name(Request(folder.name)) == name, "from wherever it is named"


def test_other_defaults() -> None:
    assert run_name(Request("EleutherAI/pythia-70m")) == "EleutherAI--pythia-70m"
    assert run_name(Request("s3://bucket/exp1/checkpoint")) == "bucket-exp1-checkpoint"


def test_a_table_is_called_by_its_folder_too(tmp_path: Path) -> None:
    for name in ("exp1", "exp2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.csv").write_text("uri\n")
    assert run_name(Request(str(tmp_path / "exp1" / "manifest.csv"))) == "exp1--manifest"


def test_two_runs_of_one_trainer_are_two_runs(trainer: dict[str, Path], tmp_path: Path) -> None:
    for name, source in trainer.items():
        assert analyzed(source, tmp_path / "store").run == f"{name}--outputs--checkpoint"
    assert len(pipeline.open_store(tmp_path / "store").runs()) == 2


def test_a_run_of_another_source_is_not_replaced(trainer: dict[str, Path], tmp_path: Path) -> None:
    store, (one, other) = tmp_path / "store", trainer.values()
    assert command(one, "--store", store, "--run", "r").returncode == 0
    before = everything(store)
    done = command(other, "--store", store, "--run", "r")
    assert done.returncode == 2 and not done.stdout
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: run r of this store was made from something else: source ")
    assert str(one) in error and str(other) in error
    assert hint.startswith("hint: ") and "--run NAME" in hint and "--replace" in hint
    assert everything(store) == before and not list(store.glob("_tiles/run=r/*/*"))
    done = command(other, "--store", store, "--run", "r", "--replace")
    assert done.returncode == 0 and everything(store) != before
    assert command(other, "--store", store, "--run", "r").returncode == 0, "it is that one's now"


@pytest.mark.parametrize(
    "options",
    [
        {"steps": "100:300"}, {"revisions": ["step[123]00"]}, {"include": ["mlp"]},
        {"exclude": ["norm"]}, {"fraction": 0.5}, {"budget": "100KB"},
    ],
)  # fmt: skip
def test_nor_one_of_another_selection(tmp_path: Path, options: dict[str, Any]) -> None:
    rows = trajectory("walk", 4, 20_000, 0.1)
    tensors = {"layers.0.mlp.up_proj.weight": rows, "layers.0.norm.weight": rows[:, :8]}
    suite, store = write_suite(tmp_path / "suite", tensors, steps=STEPS), tmp_path / "store"
    analyzed(suite, store)
    before = everything(store)
    with pytest.raises(RequestError, match=next(iter(options))) as refused:
        analyzed(suite, store, **options)
    assert "--run" in refused.value.hint
    assert everything(store) == before
    assert analyzed(suite, store, run="other", **options).complete
    assert analyzed(suite, store, run="other", **options).already_complete
    assert analyzed(suite, store, replace=True, **options).complete


def test_what_has_grown_is_the_same(trainer: dict[str, Path], tmp_path: Path) -> None:
    store, source = tmp_path / "store", trainer["exp1"]
    assert analyzed(source, store, steps="100:").checkpoints == 4
    shutil.copytree(source / "step400", source / "step500")
    assert analyzed(source, store, steps="100:").checkpoints == 5


def test_one_source_however_it_is_named(
    trainer: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, source = tmp_path / "store", trainer["exp1"]
    analyzed(source, store)
    monkeypatch.chdir(source.parent)
    (tmp_path / "link").symlink_to(source)
    shutil.copytree(source / "step400", source / "step500")
    assert analyzed("./checkpoint", store).checkpoints == 5
    shutil.copytree(source / "step400", source / "step600")
    link = tmp_path / "link"
    assert analyzed(link, store).run == "exp1--outputs--checkpoint"


def test_a_glance_may_become_the_whole(tmp_path: Path) -> None:
    """And heads may be added: nothing is lost then. The other way round something is."""
    query = trajectory("walk", 4, 64 * 64, 0.1).reshape(4, 64, 64)
    suite = write_suite(tmp_path / "suite", {"model.layers.0.self_attn.q_proj.weight": query})
    for step in suite.iterdir():
        (step / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 4}')
    store = tmp_path / "store"
    for options in ({"fraction": 0.1}, {}, {"by_head": True}):
        assert analyzed(suite, store, **options).complete
    for options in ({}, {"fraction": 0.1, "by_head": True}):
        with pytest.raises(RequestError, match="made from something else"):
            analyzed(suite, store, **options)


def test_the_parts_of_a_joint_run_are_runs_of_their_sources(tmp_path: Path) -> None:
    """Read alone or together: the same sources, the same selection."""
    sources = [
        write_suite(tmp_path / name, {"w": trajectory("walk", 3, 500, 0.1, seed=n)})
        for n, name in enumerate("ab")
    ]
    store = tmp_path / "store"
    analyzed(sources[0], store)
    pipeline.analyze_joint(sources, store, executor="local", run="both")
    analyzed(sources[0], store)
    other = write_suite(tmp_path / "c", {"w": np.ones((3, 500))})
    with pytest.raises(RequestError, match="run both of this store"):
        pipeline.analyze_joint([sources[0], other], store, executor="local", run="both")
    assert {row[0] for row in pipeline.open_store(store).sql("SELECT run FROM runs").fetchall()} == {
        "a", "b", "both",
    }  # fmt: skip
