"""One tree of files, in a directory, in a bucket and on the Hub: the same checkpoints and figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import obstore
import pytest
import torch
from obstore.store import from_url
from safetensors.torch import save_file
from torch.distributed.checkpoint import save as save_distributed

import pipeline
from tests import buckets
from tests.conftest import serving
from tests.hub import Hub

State = dict[str, torch.Tensor]
STEPS = (0, 5, 20)


def weights(step: int) -> State:
    generator = torch.Generator().manual_seed(step)
    return {
        "layers.0.q_proj.weight": torch.randn(6, 8, generator=generator),
        "layers.0.q_proj.bias": torch.randn(6, generator=generator),
        "head.weight": torch.randn(5, 8, generator=generator),
    }


def halves(state: State) -> tuple[State, State]:
    first, *others = state
    return {first: state[first]}, {name: state[name] for name in others}


def sharded(state: State, folder: Path, file: str, index: str = "") -> None:
    weight_map = {}
    for number, part in enumerate(halves(state), 1):
        name = file.format(number)
        if name.endswith(".bin"):
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    if index:
        (folder / index).write_text(json.dumps({"weight_map": weight_map}))


def distributed(state: State, folder: Path) -> None:
    optimizer = {"state": {"x": torch.ones(7)}}
    save_distributed({"model": state, "optim": optimizer}, checkpoint_id=folder, no_dist=True)


def beside(state: State, folder: Path) -> None:
    """What trainers leave beside weights: states, logs, folders of their own."""
    save_file(state, folder / "model.safetensors")
    torch.save({"state": {0: torch.ones(3)}}, folder / "optimizer.pt")
    torch.save({"python": 1}, folder / "rng_state.pth")
    (folder / "train").mkdir()
    torch.save({"rank": 0}, folder / "train" / "rank0.pt")
    (folder / "runs").mkdir()
    (folder / "runs" / "events").write_text("x")


def neox(state: State, folder: Path) -> None:
    first, rest = halves(state)
    torch.save(first, folder / "layer_02-model_00-model_states.pt")
    torch.save(rest, folder / "layer_05-model_00-model_states.pt")
    torch.save({"module": None, "iteration": 3}, folder / "mp_rank_00_model_states.pt")


def deepspeed(state: State, folder: Path) -> None:
    torch.save({"module": state, "global_steps": 7}, folder / "mp_rank_00_model_states.pt")
    zero = folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": {}}, zero)


FOLDERS: dict[str, tuple[str, Callable[[State, Path], object]]] = {
    "safetensors": ("step{}", lambda s, f: save_file(s, f / "model.safetensors")),
    "index": (
        "checkpoint-{}",
        lambda s, f: sharded(s, f, "part{}.safetensors", "model.safetensors.index.json"),
    ),
    "numbered": ("step{}", lambda s, f: sharded(s, f, "model-0000{}-of-00002.safetensors")),
    "bin": ("step{}", lambda s, f: torch.save(s, f / "pytorch_model.bin")),
    "bin index": (
        "step{}",
        lambda s, f: sharded(
            s, f, "pytorch_model-0000{}-of-00002.bin", "pytorch_model.bin.index.json"
        ),
    ),
    "legacy": (
        "step{}",
        lambda s, f: torch.save(s, f / "model.pt", _use_new_zipfile_serialization=False),
    ),
    "one file": ("epoch_{}", lambda s, f: torch.save({"model": s, "epoch": 1}, f / "ckpt.pth")),
    "beside": ("checkpoint-{}", beside),
    "layers": ("global_step{}", neox),
    "deepspeed": ("global_step{}", deepspeed),
    "distributed": ("step{}", distributed),
    "model_and_optim": ("step{}", lambda s, f: distributed(s, f / "model_and_optim")),
    "fsdp": ("checkpoint_{}", lambda s, f: distributed(s, f / "pytorch_model_fsdp_0")),
    "nested": ("outputs/run/step{}", lambda s, f: save_file(s, f / "model.safetensors")),
}
FILES: dict[str, tuple[str, Callable[[State, Path], object]]] = {
    "flat": ("step{}.safetensors", save_file),
    "flat, torch": ("model_step-{}.pt", torch.save),
}


def tree(layout: str, root: Path) -> Path:
    for step in STEPS:
        name, write = (FOLDERS | FILES)[layout]
        path = root / name.format(step)
        (path if layout in FOLDERS else root).mkdir(parents=True, exist_ok=True)
        if layout in FOLDERS:
            (path / "config.json").write_text('{"model_type": "made_up"}')
        write(weights(step), path)
    (root / "README.md").write_text("a suite")
    (root / "logs" / "deep").mkdir(parents=True)
    (root / "logs" / "deep" / "log.txt").write_text("x")
    return root


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with buckets.served() as endpoint, pytest.MonkeyPatch.context() as patch:
        yield buckets.named("layouts", endpoint, patch)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    found = Hub()
    with serving(found):
        yield found


def published(root: Path, name: str, bucket: str, hub: Hub) -> dict[str, str]:
    """Return the sources that hold the same tree."""
    url = f"{bucket}/{name}"
    for path in root.rglob("*"):
        if path.is_file():
            obstore.put(from_url(url), str(path.relative_to(root)), path.read_bytes())
    hub.repository(f"org/{name}").commit_folder(root, "main")
    return {"directory": str(root), "bucket": url, "hub": f"hf://org/{name}@main"}


def read(source: str, store: Path) -> dict[str, list]:
    """Return everything that must not depend on where the files lie."""
    plan = pipeline.plan(source)
    pipeline.analyze(source, str(store), executor="local", run="r")
    opened = pipeline.open_store(str(store))
    checkpoints = "SELECT k, name, step, elapsed, bytes, dtype FROM checkpoints ORDER BY k"
    dots = "SELECT scope, layer, component, tensor, i, j, dot FROM similarity ORDER BY ALL"
    return {
        "files": sorted((f.checkpoint.name, f.path, f.size) for f in plan.files),
        "left out": [(entry.name, entry.reason) for entry in plan.left_out_checkpoints],
        "checkpoints": opened.sql(checkpoints).fetchall(),
        "similarity": opened.sql(dots).fetchall(),
    }


@pytest.mark.parametrize("layout", FOLDERS | FILES)
def test_a_tree_is_the_same_wherever_it_lies(
    layout: str, bucket: str, hub: Hub, tmp_path: Path
) -> None:
    root = tree(layout, tmp_path / "suite")
    sources = published(root, layout.replace(" ", "-").replace(",", ""), bucket, hub)
    found = {kind: read(source, tmp_path / kind) for kind, source in sources.items()}
    assert [step for _, _, step, *_ in found["directory"]["checkpoints"]] == list(STEPS)
    assert found["bucket"] == found["directory"]
    assert found["hub"] == found["directory"]
