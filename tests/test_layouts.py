"""One tree of files, in a directory, in a bucket and on the Hub: the same checkpoints and figures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
import torch
from obstore.store import from_url
from safetensors.torch import save_file
from torch.distributed.checkpoint import save as save_distributed

import pipeline
from pipeline.checkpoint import formats
from pipeline.checkpoint.formats import Format
from pipeline.checkpoint.layouts import Folder, discover
from pipeline.checkpoint.stored import StoredTensor
from pipeline.checkpoint.weight_file import WeightFile
from pipeline.errors import FormatError, NothingMatches
from pipeline.transport import object_client
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


def ranks(state: State, folder: Path) -> None:
    """Two stages of a pipeline, each in a folder of its rank."""
    for stage, part in enumerate(halves(state)):
        (folder / f"mp_rank_00_{stage:03d}").mkdir()
        torch.save({"model": part}, folder / f"mp_rank_00_{stage:03d}" / "model_optim_rng.pt")
        torch.save({}, folder / f"mp_rank_00_{stage:03d}" / "distrib_optim.pt")


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
    "ranks": ("iter_{}", ranks),
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


def planned(source: str) -> dict[str, Any]:
    """Return what of a plan must not depend on where the files lie: which bytes are which weights, too."""
    plan = pipeline.plan(source)
    return {
        "checkpoints": [(c.name, c.step, c.elapsed) for c in plan.checkpoints],
        "files": [(f.checkpoint.name, f.path, f.size) for f in plan.files],
        "left out": [(entry.name, entry.reason) for entry in plan.left_out_checkpoints],
        "tensors": plan.tensors,
    }


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
    found = {kind: planned(source) for kind, source in sources.items()}
    assert [step for _, step, _ in found["directory"]["checkpoints"]] == list(STEPS)
    assert found["bucket"] == found["directory"]
    assert found["hub"] == found["directory"]


READ = ("index", "legacy", "bin", "distributed")
"""Of each format a layout: those of the same bytes are read alike."""


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(each, marks=[] if each in READ else pytest.mark.slow)
        for each in FOLDERS | FILES
    ],
)
def test_figures_are_the_same_wherever_a_tree_lies(
    layout: str, bucket: str, hub: Hub, tmp_path: Path
) -> None:
    name = f"read-{layout.replace(' ', '-').replace(',', '')}"
    sources = published(tree(layout, tmp_path / "suite"), name, bucket, hub)
    found = {kind: read(source, tmp_path / kind) for kind, source in sources.items()}
    assert [step for _, _, step, *_ in found["directory"]["checkpoints"]] == list(STEPS)
    assert found["bucket"] == found["directory"]
    assert found["hub"] == found["directory"]


@pytest.mark.parametrize("layout", ["flat", "model_and_optim"])
def test_checkpoints_that_a_table_lists(layout: str, bucket: str, hub: Hub, tmp_path: Path) -> None:
    sources = published(tree(layout, tmp_path / "suite"), f"listed-{layout}", bucket, hub)
    found = {}
    for kind in ("directory", "bucket"):
        name = (FOLDERS | FILES)[layout][0]
        rows = [f"{sources[kind]}/{name.format(step)},{step}\n" for step in STEPS]
        (tmp_path / f"{kind}.csv").write_text("uri,step\n" + "".join(rows))
        found[kind] = read(str(tmp_path / f"{kind}.csv"), tmp_path / kind)
    assert found["bucket"] == found["directory"]


@pytest.mark.parametrize("folder", ["model_and_optim", "whatever"])
def test_revisions_whose_weights_lie_further_down(folder: str, hub: Hub, tmp_path: Path) -> None:
    name = f"org/revisions-{folder}"
    for step in STEPS:
        distributed(weights(step), tmp_path / f"step{step}" / folder)
        hub.repository(name).commit_folder(tmp_path / f"step{step}", f"step{step}")
    plan = pipeline.plan(name)
    assert [checkpoint.name for checkpoint in plan.checkpoints] == [f"step{s}" for s in STEPS]
    assert {tensor.name for tensor in plan.tensors} == weights(0).keys()


def test_a_bucket_is_asked_for_what_is_needed_alone(
    bucket: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing for the prefix, for each folder in it, and for each folder of a checkpoint, once."""
    published(tree("model_and_optim", tmp_path / "a"), "asked-a", bucket, hub)
    published(tree("beside", tmp_path / "b"), "asked-b", bucket, hub)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    with buckets.Proxy(endpoint).serve() as proxy:
        for variable, value in buckets.environment(proxy.endpoint).items():
            monkeypatch.setenv(variable, value)
        object_client.client.cache_clear()
        counts = []
        for name in ("asked-a", "asked-b"):
            proxy.requests.clear()
            assert len(pipeline.plan(f"{bucket}/{name}").checkpoints) == len(STEPS)
            counts.append(sum("list-type=2" in request for request in proxy.requests))
    object_client.client.cache_clear()
    folders = len(STEPS) + 2  # and the logs, in two folders
    assert counts == [1 + folders + len(STEPS), 1 + folders + 2 * len(STEPS)]


def test_several_runs_in_one_tree_are_not_one_trajectory(
    bucket: str, hub: Hub, tmp_path: Path
) -> None:
    for run, steps in (("a", (0, 10)), ("b", (5, 20, 30))):
        for step in steps:
            folder = tmp_path / "runs" / run / f"step{step}"
            folder.mkdir(parents=True)
            save_file(weights(step), folder / "model.safetensors")
    for source in published(tmp_path / "runs", "runs", bucket, hub).values():
        with pytest.raises(NothingMatches, match="in 2 folders: 'a' .2., 'b' .3.") as raised:
            pipeline.plan(source)
        assert "a/*" in raised.value.hint
        plan = pipeline.plan(source, revisions=["b/*"])
        assert [checkpoint.step for checkpoint in plan.checkpoints] == [5, 20, 30]


def test_stages_in_folders_of_their_own_are_one_trajectory(
    bucket: str, hub: Hub, tmp_path: Path
) -> None:
    for name in ("stage1/step10", "stage1/step20", "stage2/step5"):
        folder = tmp_path / "stages" / name
        folder.mkdir(parents=True)
        save_file(weights(len(name)), folder / "model.safetensors")
    for source in published(tmp_path / "stages", "stages", bucket, hub).values():
        assert [c.elapsed for c in pipeline.plan(source).checkpoints] == [10, 20, 25]


def test_a_tree_without_checkpoints_is_not_searched_for_ever(tmp_path: Path) -> None:
    for first in range(60):
        for second in range(40):
            (tmp_path / "disk" / str(first) / f"x{second}" / "step1").mkdir(parents=True)
    asked = []

    def listing(path: str) -> Folder[None]:
        asked.append(path)
        entries = sorted((tmp_path / "disk" / path).iterdir())
        return Folder(tuple(entry.name for entry in entries))

    assert discover(listing).checkpoints == []
    assert len(asked) <= 1 + 60


def test_a_new_format_is_a_reader_and_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, then what they are, then where that begins: alone, in shards, and beside others."""

    def read_toy(file: WeightFile) -> dict[str, StoredTensor]:
        begin = int.from_bytes(file.read(file.size - 8, file.size), "little")
        if not 4 <= begin <= file.size - 8:
            raise FormatError(f"{file.where}: not a toy file: expected a header, found none")
        found = json.loads(file.read(begin, file.size - 8))
        return {
            name: StoredTensor("F32", tuple(shape), start, start + 4 * math.prod(shape))
            for name, (start, shape) in found.items()
        }

    def write_toy(state: State, path: Path) -> None:
        data, header = b"TOY1", {}
        for name, value in state.items():
            header[name] = (len(data), list(value.shape))
            data += value.numpy().tobytes()
        begin = len(data).to_bytes(8, "little")
        path.write_bytes(data + json.dumps(header).encode() + begin)

    def shards(state: State, folder: Path) -> None:
        for number, part in enumerate(halves(state), 1):
            write_toy(part, folder / f"model-0000{number}-of-00002.toy")

    row = Format("toy", read_toy, (".toy",), b"TOY1", whole="model.toy")
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, row))
    writers = {
        "safetensors": lambda s, f: save_file(s, f / "model.safetensors"),
        "whole": lambda s, f: write_toy(s, f / "model.toy"),
        "alone": lambda s, f: write_toy(s, f / "anything.toy"),
        "shards": shards,
    }
    found = {}
    for kind, write in writers.items():
        for step in STEPS:
            folder = tmp_path / kind / f"step{step}"
            folder.mkdir(parents=True)
            write(weights(step), folder)
        found[kind] = read(str(tmp_path / kind), tmp_path / f"{kind} store")["similarity"]
    assert found["whole"] == found["alone"] == found["shards"] == found["safetensors"]
    write_toy({"other": torch.ones(2)}, tmp_path / "safetensors" / "step5" / "model.toy")
    assert len(pipeline.plan(str(tmp_path / "safetensors")).tensors) == len(weights(0))
    for file in tmp_path.glob("alone/*/anything.toy"):  # a single one would be left out
        file.write_bytes(b"what" * 9)
    with pytest.raises(FormatError, match="expected a toy, found a file that begins with .*what"):
        pipeline.plan(str(tmp_path / "alone"))


@pytest.mark.parametrize(
    "path",
    ["trainer_state.json", "checkpoint-20/trainer_state.json", "runs/a/metrics.csv", "metrics.csv"],
)
def test_logs_are_read_wherever_the_tree_lies(
    path: str, bucket: str, hub: Hub, tmp_path: Path
) -> None:
    folder = tree("index", tmp_path / "run")
    log = folder / path
    log.parent.mkdir(parents=True, exist_ok=True)
    state = {"log_history": [{"loss": 1.5, "step": 5}, {"loss": 1.0, "step": 7}]}
    is_state = path.endswith(".json")
    log.write_text(json.dumps(state) if is_state else "step,train_loss\n5,1.5\n7,1.0\n")
    name = f"logs-{path.replace('/', '-')}"
    for source in published(folder, name, bucket, hub).values():
        training = pipeline.plan(source).training
        assert not training.notes and training.logs[0].endswith(f"/{path}")
        (curve,) = training.curves.values()
        assert curve.steps.tolist() == [5, 7] and curve.k.tolist() == [1, -1]
