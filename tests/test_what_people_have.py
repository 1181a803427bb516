"""Layouts that trainers leave: what is read, what is named instead, what is said where nothing is."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

import pipeline
from pipeline.errors import FormatError, NothingMatches, RequestError
from pipeline.planning.plan import Plan
from tests.commands import hallmarks
from tests.hub import Hub

NAME = "layers.0.mlp.up_proj.weight"
State = dict[str, torch.Tensor]


def weights(step: float, name: str = NAME) -> State:
    return {name: torch.full((4, 8), float(step)) + torch.arange(8)}


def written(path: Path, step: float, name: str = NAME) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (save_file if path.suffix == ".safetensors" else torch.save)(weights(step, name), path)
    return path


def stored(path: Path, **state: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state or {"state": {}}, path)


def names(plan: Plan) -> list[str]:
    return [checkpoint.name for checkpoint in plan.checkpoints]


def read(plan: Plan) -> list[str]:
    return [file.path for file in plan.files]


def unread(plan: Plan) -> dict[str, str]:
    return {path: kind.what for files in plan.unread for path, kind in files.items()}


def first_values(source: Path, store: Path, **options: Any) -> list[float]:
    """Return the norms that `analyze` finds: of which files it read the weights."""
    pipeline.analyze(str(source), str(store), run="r", executor="local", **options)
    rows = pipeline.open_store(str(store)).sql(
        "SELECT norm FROM path WHERE scope = 'model' ORDER BY k"
    )
    return [row[0] for row in rows.fetchall()]


def norms(*steps: float) -> Any:
    return pytest.approx([float(weights(step)[NAME].double().norm()) for step in steps])


# ---- weights below the folder of a step, beside what is none


def diffusers(folder: Path, step: int) -> None:
    written(folder / "unet" / "diffusion_pytorch_model.safetensors", step)
    written(folder / "unet_ema" / "diffusion_pytorch_model.safetensors", -step)
    for name in ("optimizer.bin", "scheduler.bin", "sampler.bin"):
        stored(folder / name)


def verl(folder: Path, step: int) -> None:
    written(folder / "actor" / "model_world_size_1_rank_0.pt", step)
    written(folder / "critic" / "model_world_size_1_rank_0.pt", -step)
    for name in ("actor/optim_world_size_1_rank_0.pt", "actor/extra_state_world_size_1_rank_0.pt",
                 "data.pt"):  # fmt: skip
        stored(folder / name)


def verl_merged(folder: Path, step: int) -> None:
    written(folder / "actor" / "huggingface" / "model.safetensors", step)
    (folder / "actor" / "huggingface" / "config.json").write_text("{}")


def automodel(folder: Path, step: int) -> None:
    written(folder / "model" / "model-00001-of-00001.safetensors", step)
    stored(folder / "optim" / "optimizer.pt")


def anything(folder: Path, step: int) -> None:
    written(folder / "my_net" / "weights.pt", step)


def olmo(folder: Path, step: int) -> None:
    written(folder / "model.pt", step)
    for name in ("optim.pt", "train.pt"):
        stored(folder / name)
    (folder / "config.yaml").write_text("model: {}")


def accelerate(folder: Path, step: int) -> None:
    written(folder / "model.safetensors", step)
    written(folder / "model_1.safetensors", -step, "disc.weight")
    for name in ("optimizer.bin", "optimizer_1.bin", "sampler_1.bin", "scheduler.bin"):
        stored(folder / name)
    (folder / "random_states_0.pkl").write_bytes(b"x")


def sentence_transformers(folder: Path, step: int) -> None:
    written(folder / "model.safetensors", step)
    written(folder / "2_Dense" / "model.safetensors", -step, "linear.weight")


LAYOUTS: dict[str, tuple[Callable[[Path, int], None], str, dict[str, str]]] = {
    # who writes it: how, its weights, what else is named
    "diffusers": (
        diffusers, "unet/diffusion_pytorch_model.safetensors",
        {"optimizer.bin": "optimizer", "sampler.bin": "sampler", "scheduler.bin": "scheduler",
         "unet_ema/diffusion_pytorch_model.safetensors": "weights that are not read"},
    ),
    "verl": (
        verl, "actor/model_world_size_1_rank_0.pt",
        {"actor/optim_world_size_1_rank_0.pt": "optimizer",
         "actor/extra_state_world_size_1_rank_0.pt": "trainer state", "data.pt": "dataloader state",
         "critic/model_world_size_1_rank_0.pt": "weights that are not read"},
    ),
    "verl, merged": (
        verl_merged, "actor/huggingface/model.safetensors",
        {"actor/huggingface/config.json": "configuration"},
    ),
    "automodel": (
        automodel, "model/model-00001-of-00001.safetensors", {"optim/optimizer.pt": "optimizer"},
    ),
    "anything": (anything, "my_net/weights.pt", {}),
    "olmo": (
        olmo, "model.pt",
        {"optim.pt": "optimizer", "train.pt": "trainer state", "config.yaml": "configuration"},
    ),
    "accelerate": (
        accelerate, "model.safetensors",
        {"model_1.safetensors": "weights that are not read", "optimizer.bin": "optimizer",
         "optimizer_1.bin": "optimizer", "sampler_1.bin": "sampler", "scheduler.bin": "scheduler",
         "random_states_0.pkl": "RNG"},
    ),
    "sentence-transformers": (
        sentence_transformers, "model.safetensors",
        {"2_Dense/model.safetensors": "weights that are not read"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("writer", LAYOUTS)
def test_the_weights_are_read_and_the_rest_is_named(writer: str, tmp_path: Path) -> None:
    write, expected, others = LAYOUTS[writer]
    for step in (10, 20, 30):
        write(tmp_path / "run" / f"checkpoint-{step}", step)
    plan = pipeline.plan(str(tmp_path / "run"))
    assert names(plan) == ["checkpoint-10", "checkpoint-20", "checkpoint-30"]
    assert read(plan) == [expected] * 3
    assert unread(plan) == others
    assert first_values(tmp_path / "run", tmp_path / "store") == norms(10, 20, 30)
    kinds = {row[0] for row in findings(tmp_path / "store")}
    assert ("unread_weights" in kinds) == ("weights that are not read" in others.values())


def findings(store: Path) -> list[tuple[str, str, int | None, str]]:
    query = "SELECT kind, severity, k, message FROM findings"
    return pipeline.open_store(str(store)).sql(query).fetchall()


def test_the_user_says_which_files_are_the_weights(tmp_path: Path) -> None:
    for step in (10, 20):
        diffusers(tmp_path / "a" / f"checkpoint-{step}", step)
        accelerate(tmp_path / "b" / f"checkpoint_{step}", step)
    for glob in ("unet_ema/*", "unet_ema/*.safetensors", "*_ema/*"):
        plan = pipeline.plan(str(tmp_path / "a"), weights=glob)
        assert read(plan) == ["unet_ema/diffusion_pytorch_model.safetensors"] * 2
        assert unread(plan)["optimizer.bin"] == "optimizer"
    assert first_values(tmp_path / "a", tmp_path / "store", weights="unet_ema/*") == norms(-10, -20)
    both = pipeline.plan(str(tmp_path / "b"), weights=["model.safetensors", "model_1.*"])
    assert {tensor.name for tensor in both.tensors} == {NAME, "disc.weight"}
    with pytest.raises(NothingMatches) as raised:
        pipeline.plan(str(tmp_path / "a"), weights="nothing/*")
    assert raised.value.hint.startswith("--weights 'nothing/*': no such file; 'checkpoint-")
    with pytest.raises(RequestError, match="--weights"):
        pipeline.plan(str(tmp_path / "a"), weights="../*")


def test_of_several_files_without_a_usual_name_the_user_chooses(tmp_path: Path) -> None:
    for step in (1, 2):
        written(tmp_path / f"step{step}" / "a.pt", step)
        written(tmp_path / f"step{step}" / "b.pt", -step)
    with pytest.raises(FormatError, match="one set of weights, found 2 files") as raised:
        pipeline.plan(str(tmp_path))
    assert "--weights" in raised.value.hint
    assert first_values(tmp_path, tmp_path / "out" / "s", weights="b.pt") == norms(-1, -2)


def test_shards_that_the_user_names(tmp_path: Path) -> None:
    for step in (1, 2):
        folder = tmp_path / f"step{step}" / "ema"
        for number, name in enumerate(("a.weight", "b.weight"), 1):
            written(folder / f"ema-{number}.safetensors", step, name)
        index = {"a.weight": "ema-1.safetensors", "b.weight": "ema-2.safetensors"}
        (folder / "ema.index.json").write_text(json.dumps({"weight_map": index}))
    for globs in ("ema/*.safetensors", "ema/ema.index.json"):
        plan = pipeline.plan(str(tmp_path), weights=globs)
        assert {tensor.name for tensor in plan.tensors} == {"a.weight", "b.weight"}


def test_the_rows_of_a_manifest_are_read_alike(tmp_path: Path) -> None:
    rows = []
    for step in (10, 20):
        diffusers(tmp_path / f"x{step}", step)
        rows.append(f"{tmp_path / f'x{step}'},u{step}\n")
    (tmp_path / "m.csv").write_text("uri,name\n" + "".join(rows))
    plan = pipeline.plan(str(tmp_path / "m.csv"), names=r"u(?P<step>\d+)", weights="unet_ema/*")
    assert [checkpoint.step for checkpoint in plan.checkpoints] == [10, 20]
    assert read(plan) == ["unet_ema/diffusion_pytorch_model.safetensors"] * 2


# ---- names, on disk


SERIES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    # files: those that are read, in order; those that are named instead
    "nanochat": (
        ["model_000250.pt", "model_000500.pt", "model_001000.pt"], ["optim_000250_rank0.pt"],
    ),
    "bare numbers": (["000250.safetensors", "000500.safetensors", "001000.safetensors"], []),
    "modded-nanogpt": (["state_step000125.pt", "state_step000250.pt"], []),
    "timm": (
        ["checkpoint-0.pth.tar", "checkpoint-1.pth.tar", "model_best.pth.tar", "last.pth.tar"], [],
    ),
    "lightning": (["epoch=0-step=100.ckpt", "epoch=1-step=200.ckpt", "last.ckpt"], []),
    "open_clip": (["epoch_1.pt", "epoch_2.pt", "epoch_10.pt", "epoch_latest.pt"], []),
    "fairseq": (["checkpoint_1_6000.pt", "checkpoint_2_12000.pt", "checkpoint_last.pt"], []),
    "epochs with blanks": (["epoch 1.pt", "epoch 2.pt"], []),
}  # fmt: skip


@pytest.mark.parametrize("trainer", SERIES)
def test_files_are_in_order(trainer: str, tmp_path: Path) -> None:
    taken, others = SERIES[trainer]
    for step, name in enumerate(taken):
        written(tmp_path / "run" / name, step)
    for name in others:
        stored(tmp_path / "run" / name)
    plan = pipeline.plan(str(tmp_path / "run"))
    assert names(plan) == list(taken)
    assert [each.path for each in plan.account.beside] == list(others)
    assert first_values(tmp_path / "run", tmp_path / "store") == norms(*range(len(taken)))


FOLDERS = {
    "NeMo Automodel": ["epoch_0_step_10", "epoch_0_step_20", "LATEST"],
    "torchtune": ["epoch_0", "epoch_1", "epoch_10"],
    "LitGPT": ["step-00001000", "step-00002000", "final"],
    "by hand": ["ckpt_7k", "ckpt_10k", "ckpt_100k"],
    "with figures": ["step=100-loss=2.31", "step=200-loss=1.90", "step=1000-loss=1.75"],
}


@pytest.mark.parametrize("trainer", FOLDERS)
def test_folders_are_in_order(trainer: str, tmp_path: Path) -> None:
    for step, name in reversed([*enumerate(FOLDERS[trainer])]):
        written(tmp_path / name / "model.safetensors", step)
    plan = pipeline.plan(str(tmp_path))
    assert names(plan) == FOLDERS[trainer]
    assert not plan.left_out_checkpoints


def test_words_of_training_data_and_folders_being_written(tmp_path: Path) -> None:
    for step, name in enumerate(("chck_1M", "chck_2M", "chck_10M", "chck_100M", "tmp-chck_200M")):
        written(tmp_path / name / "model.safetensors", step)
    written(tmp_path / ".cache" / "step7" / "model.safetensors", 7)
    plan = pipeline.plan(str(tmp_path))
    assert names(plan) == ["chck_1M", "chck_2M", "chck_10M", "chck_100M"]
    assert [checkpoint.tokens for checkpoint in plan.checkpoints] == [1e6, 2e6, 1e7, 1e8]
    assert [entry.name for entry in plan.left_out_checkpoints] == ["tmp-chck_200M"]
    assert ".cache/" in {each.path for each in plan.account.beside}


def test_names_that_no_table_knows(tmp_path: Path) -> None:
    for step in (5, 1, 10):
        written(tmp_path / f"u{step}k" / "model.safetensors", step)
    with pytest.raises(NothingMatches) as raised:
        pipeline.plan(str(tmp_path))
    assert "--names" in raised.value.hint and "manifest" in raised.value.hint
    plan = pipeline.plan(str(tmp_path), names="u(?P<step>.*)")
    assert [checkpoint.step for checkpoint in plan.checkpoints] == [1000, 5000, 10_000]
    done = hallmarks("plan", tmp_path, "--names", "u(?P<step>.*)", "--json")
    assert [c["name"] for c in json.loads(done.stdout)["checkpoints"]] == ["u1k", "u5k", "u10k"]
    with pytest.raises(NothingMatches) as raised:
        pipeline.plan(str(tmp_path), names="v(?P<step>.*)")
    assert "--names" in raised.value.hint


@pytest.mark.parametrize("pattern", ["(", r"step(\d+)", r"(?P<seed>\d+)", r"(?P<it>\d+)", ""])
def test_expressions_that_say_nothing_of_names(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--names"):
        pipeline.plan(str(tmp_path), names=pattern)
    done = hallmarks("plan", tmp_path, "--names", pattern)
    assert done.returncode == 2 and "--names" in done.stderr


# ---- parallel runs


def parallel(root: Path) -> Path:
    for step, seed in ((0, "default"), (10, "default"), (0, "aux-2"), (10, "aux-2"), (20, "aux-2")):
        written(root / f"step{step}-seed-{seed}" / "model.safetensors", step + len(seed))
    return root


def test_seeds_are_never_mixed(tmp_path: Path) -> None:
    root = parallel(tmp_path / "run")
    plan = pipeline.plan(str(root))
    assert names(plan) == [f"step{step}-seed-aux-2" for step in (0, 10, 20)]
    reasons = {entry.name: entry.reason for entry in plan.left_out_checkpoints}
    assert reasons.keys() == {"step0-seed-default", "step10-seed-default"}
    assert all("--seeds" in reason for reason in reasons.values())
    other = pipeline.plan(str(root), seeds="default")
    assert names(other) == ["step0-seed-default", "step10-seed-default"]
    chosen = pipeline.plan(str(root), revisions="*default")
    assert names(chosen) == names(other)
    with pytest.raises(NothingMatches, match="'aux-2', 'default'"):
        pipeline.plan(str(root), seeds="none")
    with pytest.raises(RequestError, match="2 runs"):
        pipeline.plan(str(root), seeds="all")


def test_a_run_each(tmp_path: Path) -> None:
    root, store = parallel(tmp_path / "suite"), tmp_path / "store"
    done = hallmarks(
        "analyze", root, "--store", store, "--seeds", "all", "--executor", "local", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = {each["run"]: each["checkpoints"] for each in json.loads(done.stdout)["runs"]}
    assert found == {"suite--aux-2": 3, "suite--default": 2}
    dots = "SELECT run, dot FROM similarity WHERE scope = 'model' AND i = 0 AND j = 0 ORDER BY run"
    expected = [float(weights(n)[NAME].double().square().sum()) for n in (5, 7)]
    rows = pipeline.open_store(str(store)).sql(dots).fetchall()
    assert [dot for _, dot in rows] == pytest.approx(expected)


def test_a_run_without_a_seed_beside_others(tmp_path: Path) -> None:
    for name in ("step1", "step2", "step1-seed-2", "step2-seed-2", "step3-seed-2", "final"):
        written(tmp_path / name / "model.safetensors", len(name))
    assert names(pipeline.plan(str(tmp_path)))[:3] == [f"step{n}-seed-2" for n in (1, 2, 3)]
    assert names(pipeline.plan(str(tmp_path), seeds="none"))[:2] == ["step1", "step2"]
    lines = hallmarks("plan", tmp_path, "--seeds", "all").stdout.splitlines()
    assert sum(line.startswith("run ") for line in lines) == 2


def test_seeds_in_folders_and_ingredients(tmp_path: Path) -> None:
    for seed, steps in ((1, (1, 2)), (2, (1, 2, 3))):
        for step in steps:
            written(tmp_path / "a" / f"seed{seed}" / f"step{step}" / "model.safetensors", step)
    assert names(pipeline.plan(str(tmp_path / "a"))) == [f"seed2/step{n}" for n in (1, 2, 3)]
    assert names(pipeline.plan(str(tmp_path / "a"), seeds="1")) == ["seed1/step1", "seed1/step2"]
    for name in ("stage1-step1", "stage2-ingredient1-step1", "stage2-ingredient2-step1"):
        written(tmp_path / "b" / name / "model.safetensors", len(name))
    assert names(pipeline.plan(str(tmp_path / "b")))[1] == "stage2-ingredient1-step1"
    plan = pipeline.plan(str(tmp_path / "b"), seeds="ingredient2")
    assert names(plan) == ["stage1-step1", "stage2-ingredient2-step1"]


# ---- last and best checkpoints


def many(step: float) -> State:
    return {f"layers.{n}.weight": torch.full((40, 50), float(step + n)) for n in range(3)}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_copies_of_a_step_are_no_checkpoints(tmp_path: Path, suffix: str) -> None:
    write = save_file if suffix == ".safetensors" else torch.save
    for step in (1, 2, 3):
        write(many(step), tmp_path / f"step{step}{suffix}")
    write(many(3), tmp_path / f"last{suffix}")
    shutil.copy(tmp_path / f"step2{suffix}", tmp_path / f"best{suffix}")
    plan = pipeline.plan(str(tmp_path))
    assert names(plan) == [f"step{step}{suffix}" for step in (1, 2, 3)]
    reasons = {entry.name: entry.reason for entry in plan.left_out_checkpoints}
    assert reasons == {
        f"last{suffix}": f"the same weights as step3{suffix}",
        f"best{suffix}": f"the same weights as step2{suffix}",
    }
    changed = many(3)
    changed["layers.1.weight"][20, 25] += 1
    write(changed, tmp_path / f"last{suffix}")
    assert names(pipeline.plan(str(tmp_path)))[-1] == f"last{suffix}"


def test_numbers_that_are_epochs_beside_updates(tmp_path: Path) -> None:
    for step, name in enumerate(("checkpoint_1_6000.pt", "checkpoint_2_12000.pt", "checkpoint1.pt",
                                 "checkpoint2.pt")):  # fmt: skip
        written(tmp_path / name, step)
    plan = pipeline.plan(str(tmp_path))
    assert [checkpoint.step for checkpoint in plan.checkpoints] == [6000, 12_000]
    assert {entry.name for entry in plan.left_out_checkpoints} == {
        "checkpoint1.pt",
        "checkpoint2.pt",
    }


def test_the_last_checkpoint_of_one_seed_is_not_another_ones(tmp_path: Path) -> None:
    root = parallel(tmp_path / "run")
    written(root / "final" / "model.safetensors", 99)
    assert names(pipeline.plan(str(root)))[-1] == "final"
    assert "final" not in names(pipeline.plan(str(root), seeds="default"))


def test_the_last_checkpoint_of_a_stage(served_hub: Hub) -> None:
    repository = served_hub.repository("org/stages")
    series = {"base_0010": 1, "base_0020": 2, "mid_1_0005": 3, "mid_1_0010": 4, "base_final": 2,
              "mid_1_final": 5}  # fmt: skip
    for name, step in series.items():
        repository.commit({"model.safetensors": save(weights(step))}, name)
    plan = pipeline.plan("org/stages")
    assert names(plan) == ["base_0010", "base_0020", "mid_1_0005", "mid_1_0010", "mid_1_final"]
    reasons = {entry.name: entry.reason for entry in plan.left_out_checkpoints}
    assert reasons["base_final"] == "the same commit as base_0020"
    repository.commit({"model.safetensors": save(weights(2)), "README.md": b""}, "base_final")
    assert "base_final" not in names(pipeline.plan("org/stages"))
    repository.commit({"model.safetensors": save(weights(2.5))}, "base_final")
    assert names(pipeline.plan("org/stages"))[2] == "base_final"


def test_another_network_is_not_the_last_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):
        written(tmp_path / f"step{step}" / "model.safetensors", step)
    written(tmp_path / "final" / "model.safetensors", 3, "another.weight")
    plan = pipeline.plan(str(tmp_path))
    assert names(plan) == ["step1", "step2"]
    assert "other tensors" in plan.left_out_checkpoints[0].reason


def test_final_weights_beside_the_folders_of_steps(tmp_path: Path) -> None:
    for step in (500, 1000):
        written(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors", step)
    written(tmp_path / "run" / "model.safetensors", 1200)
    stored(tmp_path / "run" / "training_args.bin")
    plan = pipeline.plan(str(tmp_path / "run"))
    assert names(plan) == ["checkpoint-500", "checkpoint-1000", "main"]
    assert unread(plan) == {"training_args.bin": "trainer state"}
    assert first_values(tmp_path / "run", tmp_path / "store") == norms(500, 1000, 1200)
    kinds = {kind: (severity, k) for kind, severity, k, _ in findings(tmp_path / "store")}
    assert kinds["unplaced_checkpoint"] == ("info", 2)
    written(tmp_path / "run" / "model.safetensors", 1000)
    assert names(pipeline.plan(str(tmp_path / "run"))) == ["checkpoint-500", "checkpoint-1000"]


# ---- folders without weights


def without_metadata(folder: Path) -> None:
    save_distributed(weights(4), checkpoint_id=folder, no_dist=True)
    (folder / ".metadata").unlink()


def optimizer_alone(folder: Path) -> None:
    stored(folder / "optimizer.pt")


def empty(folder: Path) -> None:
    folder.mkdir()


@pytest.mark.parametrize("interrupted", [without_metadata, optimizer_alone, empty])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_an_interrupted_save_is_a_warning(
    tmp_path: Path, interrupted: Callable[[Path], None], step: int
) -> None:
    for n in {1, 2, 3, 4} - {step}:
        written(tmp_path / "run" / f"step{n}" / "model.safetensors", n)
    interrupted(tmp_path / "run" / f"step{step}")
    assert len(first_values(tmp_path / "run", tmp_path / "store")) == 3
    found = [row for row in findings(tmp_path / "store") if row[0] == "incomplete_checkpoint"]
    assert [(severity, message.partition(":")[0]) for _, severity, _, message in found] == [
        ("warning", f"step{step}")
    ]
    done = hallmarks("plan", tmp_path / "run")
    assert f"incomplete: step{step}" in done.stdout


def test_a_revision_without_weights_is_a_warning(served_hub: Hub, tmp_path: Path) -> None:
    repository = served_hub.repository("org/interrupted")
    for step in (1, 2, 3):
        repository.commit({"model.safetensors": save(weights(step))}, f"step{step}")
    repository.commit({"README.md": b"", "optimizer.pt": b"x"}, "step4")
    plan = pipeline.plan("org/interrupted")
    assert names(plan) == ["step1", "step2", "step3"]
    assert [entry.name for entry in plan.account.lacking] == ["step4"]


def test_folders_of_evaluations_are_no_lost_checkpoints(tmp_path: Path) -> None:
    for step in (1, 2):
        written(tmp_path / f"step{step}" / "model.safetensors", step)
        (tmp_path / f"eval_step{step}").mkdir()
        (tmp_path / f"eval_step{step}" / "results.json").write_text("{}")
    plan = pipeline.plan(str(tmp_path))
    assert not plan.account.lacking
    assert {"eval_step1/", "eval_step1/results.json"} <= {b.path for b in plan.account.beside}


# ---- formats that are not read, places


FOREIGN = {
    "flax_model.msgpack": "Flax", "model.weights.h5": "Keras", "model-f16.gguf": "GGUF",
    "weights.npz": "NumPy", "model.ckpt.data-00000-of-00001": "TensorFlow", "model.onnx": "ONNX",
    "default/_METADATA": "orbax", "model.nemo": "NeMo", "weights.tar.gz": "archive",
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_formats_that_are_not_read_are_named(name: str, tmp_path: Path) -> None:
    for step in (100, 200):
        path = tmp_path / "run" / f"checkpoint-{step}" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"GGUF" + bytes(100))
    done = hallmarks("plan", tmp_path / "run")
    assert done.returncode == 2
    assert FOREIGN[name] in done.stderr and "is not read" in done.stderr
    assert "hint: " in done.stderr
    for step in (100, 200):
        written(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors", step)
    plan = pipeline.plan(str(tmp_path / "run"))
    assert FOREIGN[name] in unread(plan)[name]
    described = json.loads(hallmarks("plan", tmp_path / "run", "--json").stdout)
    assert [e["advice"] != "" for e in described["files_of_checkpoints"] if e["path"] == name] == [
        True, True,
    ]  # fmt: skip


def test_files_of_such_formats_that_are_checkpoints_themselves(tmp_path: Path) -> None:
    for step in (100, 200):
        np.savez(tmp_path / f"step_{step}.npz", w=np.zeros(3))
    with pytest.raises(NothingMatches, match=r"'step_\d00\.npz' is NumPy, which is not read"):
        pipeline.plan(str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.ckpt"])
def test_pointers_of_large_files(name: str, tmp_path: Path) -> None:
    for step in (1, 2):
        path = tmp_path / f"step{step}" / name
        path.parent.mkdir()
        path.write_text(
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{step:064d}\nsize 988097824\n"
        )
    with pytest.raises(FormatError, match="a pointer of Git LFS") as raised:
        pipeline.plan(str(tmp_path))
    assert "git lfs pull" in raised.value.hint


def hub_cache(root: Path, commits: Mapping[str, Mapping[str, bytes]], refs: Sequence[str]) -> Path:
    """Write what `hf download` leaves: links to blobs in a snapshot for each commit."""
    for number, (name, files) in enumerate(commits.items()):
        commit = hashlib.sha1(name.encode()).hexdigest()
        for path, data in files.items():
            blob = root / "blobs" / hashlib.sha256(data).hexdigest()
            link = root / "snapshots" / commit / path
            for folder in (blob.parent, link.parent):
                folder.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(data)
            link.symlink_to(blob)
        if number < len(refs):
            ref = root / "refs" / refs[number]
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)
    return root


def test_a_folder_of_the_hub_cache(tmp_path: Path) -> None:
    commits = {f"c{n}": {"model.safetensors": save(weights(n))} for n in (1, 2, 3, 4)}
    root = hub_cache(tmp_path / "models--org--run", commits, ["step1", "step2", "pr/step3"])
    for source in (root, root / "snapshots"):
        plan = pipeline.plan(str(source))
        assert names(plan) == ["step1", "step2", "pr/step3"]
        assert plan.run == "org--run"
        assert "no branch or tag" in plan.account.beside[0].kind.what
    assert first_values(root, tmp_path / "store") == norms(1, 2, 3)


def test_incomplete_downloads_are_named(tmp_path: Path) -> None:
    commits = {f"c{n}": {"model.safetensors": save(weights(n))} for n in (1, 2, 3)}
    refs = ["step1", "step2", "step3"]
    root = hub_cache(tmp_path / "models--org--run", commits, refs)
    (root / "blobs" / hashlib.sha256(save(weights(2))).hexdigest()).unlink()
    plan = pipeline.plan(str(root))
    assert names(plan) == ["step1", "step3"]
    assert [entry.name for entry in plan.account.lacking] == ["step2"]
    for step in (1, 2, 3):
        link = tmp_path / "links" / f"step{step}" / "model.safetensors"
        link.parent.mkdir(parents=True)
        link.symlink_to(root / "blobs" / hashlib.sha256(save(weights(step))).hexdigest())
    plan = pipeline.plan(str(tmp_path / "links"))
    assert names(plan) == ["step1", "step3"]
    (lacking,) = plan.account.lacking
    assert lacking.name == "step2" and "leads nowhere" in lacking.reason


def test_one_revision_in_the_hub_cache_whose_folders_are_checkpoints(tmp_path: Path) -> None:
    files = {f"step{n}/model.safetensors": save(weights(n)) for n in (1, 2)}
    root = hub_cache(tmp_path / "models--org--run", {"c": files}, ["main"])
    plan = pipeline.plan(str(root))
    assert names(plan) == ["step1", "step2"]
    assert plan.run == "org--run"


# ---- the Hub


HUB: dict[str, tuple[list[str], list[str], str]] = {
    # repository: branches in order, others that are left out, how
    "DataDecide": (
        [f"step{n}-seed-default" for n in (0, 1250, 69_369)],
        ["step0-seed-small-aux-2", "step6250-seed-small-aux-2"], "",
    ),
    "ettin": (["step2995", "step599525", "ext1000", "ext2000", "decay100", "decay500"], [], "usually"),
    "K2-V2": (
        ["base_0020000", "base_1245000", "mid_1_0001000", "mid_2_0001000", "mid_4_0001000"], [],
        "usually",
    ),
    "Apertus-8B": (
        ["step50000-tokens210B", "step2627139-tokens15T", "longctx-step50", "longctx-step1700"], [],
        "usually",
    ),
    "SmolLM3": (
        ["stage1-step-40000", "stage2-step-3450000", "stage3-step-4720000", "lc-4k-to-32k-step-4000",
         "lc-4k-to-32k-step-20000", "lc-32k-to-64k-step-4000"], [], "usually",
    ),
    "Lucie": (["step0005000", "step0700000", "extension_step0000250"], [], "usually"),
    "FuxiTranyu": (["10B", "20B", "593B"], [], ""),
    "comma": (
        ["stage1-step010000-tokens21B", "stage1-step460000-tokens965B",
         "stage2-step002000-tokens969B"], [], "",
    ),
    "OLMo-2-32B": (
        ["stage1-step1000-tokens9B", "stage2-ingredient1-step10-tokens1B"],
        ["stage2-ingredient2-step10-tokens1B"], "",
    ),
    "Olmo-3-RL": (["step_0025", "step_0100", "step_1375"], [], ""),
    "rlvr": (["step_1", "step_2", "step_500"], [], ""),
    "babylm": (["chck_1M", "chck_9M", "chck_10M", "chck_100M", "chck_1000M"], [], ""),
    "openeurollm": (["checkpoint_0005000", "checkpoint_0010000", "checkpoint_0953675"], [], ""),
    "crystal": (
        ["CrystalCoder_phase1_checkpoint_055500", "CrystalCoder_phase2_checkpoint_000500",
         "CrystalCoder_phase3_checkpoint_001000"], [], "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("suite", HUB)
def test_suites_by_their_names_alone(suite: str, served_hub: Hub) -> None:
    taken, others, how = HUB[suite]
    repository = served_hub.repository(f"org/{suite}")
    shuffled = [*taken, *others]
    random.Random(suite).shuffle(shuffled)
    for name in shuffled:
        values = save(weights(shuffled.index(name)))
        repository.commit({"model.safetensors": values, "config.json": b"{}"}, name)
    repository.commit({"model.safetensors": save(weights(shuffled.index(taken[-1])))}, "main")
    plan = pipeline.plan(f"org/{suite}")
    assert names(plan) == taken
    assert {entry.name for entry in plan.left_out_checkpoints} == {*others, "main"}
    assert how in plan.account.ordering and bool(how) == bool(plan.account.ordering)
    elapsed = [c.elapsed for c in plan.checkpoints if c.elapsed is not None]
    assert elapsed == sorted(set(elapsed))
    done = hallmarks("plan", f"org/{suite}")
    lines = done.stdout.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 100
    if how:
        assert "stages ordered by" in done.stdout


# ---- one screen


def test_a_plan_of_everything_at_once_fits_one_screen(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(60):
        stage = number // 6
        step = [1, 2, 3, 5, 6, 7][number % 6]
        folder = tmp_path / f"mid_{stage}_{step:05d}"
        written(folder / "model.safetensors", float(rng.random()))
        for name in ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "x.unknown",
                     "a.gguf", "b.onnx", "c.h5", "d.npz", "tokenizer.json", "e.msgpack"):  # fmt: skip
            (folder / (name if number % 3 else f"{number}{name}")).write_bytes(b"x")
        (tmp_path / f"mid_{stage}_{step + 100:05d}").mkdir()
    lines = hallmarks("plan", tmp_path).stdout.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 100
    assert any("not understood" in line for line in lines)
    assert any("incomplete" in line for line in lines)
    described = json.loads(hallmarks("plan", tmp_path, "--json").stdout)
    assert len(described["incomplete"]) == 60
    assert len(described["files_of_checkpoints"]) == 60 * 12
