"""A checkpoint of a series that cannot be read is left out and named; the others are analysed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint import save as save_distributed

import pipeline
from pipeline.errors import FormatError
from pipeline.planning.make import make_joint_plan
from pipeline.planning.plan import Plan
from pipeline.planning.request import Request
from tests.commands import hallmarks

State = dict[str, torch.Tensor]
COUNT = 4


def weights(k: int) -> State:
    generator = torch.Generator().manual_seed(k)
    return {f"layers.{n}.mlp.up_proj.weight": torch.randn(16, 8, generator=generator) for n in "01"}


def whole(state: State, folder: Path) -> None:
    save_file(state, folder / "model.safetensors")


def torch_file(state: State, folder: Path) -> None:
    torch.save({"model": state}, folder / "ckpt.pt")


def old_torch_file(state: State, folder: Path) -> None:
    torch.save(state, folder / "ckpt.pt", _use_new_zipfile_serialization=False)


def indexed(state: State, folder: Path) -> None:
    names = {name: f"part-{number}.safetensors" for number, name in enumerate(state)}
    for name, file in names.items():
        save_file({name: state[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def numbered(state: State, folder: Path) -> None:
    for number, name in enumerate(state, 1):
        save_file({name: state[name]}, folder / f"model-{number:05d}-of-00002.safetensors")


def distributed(state: State, folder: Path) -> None:
    save_distributed({"model": state}, checkpoint_id=folder, no_dist=True)


def cut(name: str, left: int) -> Callable[[Path], None]:
    """Return what keeps so many bytes of a file, or drops as many from its end."""

    def damage(folder: Path) -> None:
        path = folder / name
        os.truncate(path, left if left >= 0 else path.stat().st_size + left)

    return damage


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


class Program:
    def __reduce__(self) -> tuple:
        return os.system, ("touch hacked",)


def programmed(folder: Path) -> None:
    torch.save({"model": weights(0), "extra": Program()}, folder / "ckpt.pt")


def pointer(folder: Path) -> None:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{1:064d}\nsize 9880\n"
    (folder / "model.safetensors").write_text(text)


KINDS: dict[str, tuple[Callable[[State, Path], None], Callable[[Path], None], str]] = {
    "values cut off": (
        whole,
        cut("model.safetensors", -100),
        "not a valid safetensors file: expected tensors",
    ),
    "header cut off": (
        whole,
        cut("model.safetensors", 30),
        "expected a header within the file's 30",
    ),
    "empty": (whole, cut("model.safetensors", 0), "model.safetensors: "),
    "archive cut off": (torch_file, cut("ckpt.pt", -300), "not an archive of torch.save"),
    "pickle cut off": (old_torch_file, cut("ckpt.pt", 700), "ends at"),
    "shard of an index": (indexed, without("part-1.safetensors"), "'part-1.safetensors' .*absent"),
    "numbered shard": (numbered, without("model-00002-of-00002.safetensors"), "00002.*' .*absent"),
    "chunks": (distributed, cut("__0_0.distcp", 500), "ends beyond"),
    "pointer": (whole, pointer, "a pointer of Git LFS"),
    "program": (torch_file, programmed, "found a pickle that names '(?:posix|nt).system'"),
}


def suite(root: Path, write: Callable[[State, Path], None], count: int = COUNT) -> Path:
    for k in range(count):
        folder = root / f"checkpoint-{10 * (k + 1)}"
        folder.mkdir(parents=True)
        write(weights(k), folder)
    return root


def names(plan: Plan) -> list[str]:
    return [checkpoint.name for checkpoint in plan.checkpoints]


@pytest.mark.parametrize("kind", KINDS)
def test_one_of_a_series(kind: str, tmp_path: Path) -> None:
    write, damage, reason = KINDS[kind]
    source = suite(tmp_path / "run", write)
    damage(source / "checkpoint-20")
    done = hallmarks("plan", source, "--json")
    assert done.returncode == 0, done.stderr
    described = json.loads(done.stdout)
    assert [c["name"] for c in described["checkpoints"]] == [
        f"checkpoint-{n}" for n in (10, 30, 40)
    ]
    (entry,) = described["incomplete"]
    assert entry["name"] == "checkpoint-20" and str(tmp_path) not in entry["reason"]
    with pytest.raises(FormatError, match=reason) as raised:
        pipeline.plan(source, revisions=["checkpoint-10", "checkpoint-20"])
    assert raised.value.message.endswith(entry["reason"].partition(": ")[2])
    assert not Path("hacked").exists()


def test_figures_are_those_of_the_others(tmp_path: Path) -> None:
    source = suite(tmp_path / "whole", whole)
    shutil.copytree(source, tmp_path / "damaged")
    cut("model.safetensors", -100)(tmp_path / "damaged" / "checkpoint-10")
    shutil.rmtree(source / "checkpoint-10")
    for run in ("whole", "damaged"):
        arguments = ("--store", tmp_path / "store", "--executor", "local")
        done = hallmarks("analyze", tmp_path / run, *arguments)
        assert done.returncode == 0, done.stderr
    store = pipeline.open_store(tmp_path / "store")
    query = "SELECT i, j, dot FROM similarity WHERE run = '{}' AND scope = 'model' ORDER BY ALL"
    expected, rows = (store.sql(query.format(run)).fetchall() for run in ("whole", "damaged"))
    assert rows == expected
    told = store.sql(
        "SELECT run, severity, message FROM findings WHERE kind = 'incomplete_checkpoint'"
    )
    ((run, severity, message),) = told.fetchall()
    assert (run, severity) == ("damaged", "warning")
    assert message.startswith("checkpoint-10: model.safetensors: not a valid safetensors file")
    assert message.endswith("; left out")


def test_all_but_one(tmp_path: Path) -> None:
    source = suite(tmp_path / "run", whole)
    for step in (10, 20, 40):
        cut("model.safetensors", -100)(source / f"checkpoint-{step}")
    done = hallmarks("plan", source)
    assert done.returncode == 2
    assert "checkpoint-10/model.safetensors: not a valid" in done.stderr


def test_a_path_of_a_joint_plan(tmp_path: Path) -> None:
    sources = [suite(tmp_path / name, whole, 3) for name in "ab"]
    cut("model.safetensors", -100)(sources[0] / "checkpoint-10")
    plan, _ = make_joint_plan([Request(str(source)) for source in sources], "both")
    assert len(plan.checkpoints) == 5 and plan.firsts == (0, 2)
    assert [[e.name for e in alone.account.lacking] for alone in plan.alone()] == [
        ["checkpoint-10"], [],
    ]  # fmt: skip
    cut("model.safetensors", -100)(sources[0] / "checkpoint-30")
    with pytest.raises(FormatError, match="checkpoint-10"):
        make_joint_plan([Request(str(source)) for source in sources], "both")


def test_the_last_checkpoint_behind_one_that_cannot_be_read(tmp_path: Path) -> None:
    source = suite(tmp_path / "run", whole)
    shutil.copytree(source / "checkpoint-30", source / "final")
    cut("model.safetensors", -100)(source / "checkpoint-40")
    plan = pipeline.plan(source)
    assert names(plan) == ["checkpoint-10", "checkpoint-20", "checkpoint-30"]
    assert {e.name: e.reason for e in plan.left_out_checkpoints} == {
        "final": "the same weights as checkpoint-30"
    }
    save_file(weights(9), source / "final" / "model.safetensors")
    assert names(pipeline.plan(source))[-1] == "final"
