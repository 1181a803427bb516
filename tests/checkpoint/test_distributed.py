"""Metadata of distributed checkpoints: what it says, and what it must not do."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint import save
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata

from pipeline.checkpoint.distributed import read_distributed
from pipeline.checkpoint.stored import StoredTensor
from pipeline.errors import FormatError
from tests.checkpoint import in_memory

STATE = {
    "layers.0.w": torch.arange(12.0).view(3, 4),
    "mask": torch.ones(3, dtype=torch.bool),
    "scalar": torch.tensor(2.0, dtype=torch.bfloat16),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("dcp"), {"model": STATE, "optim": {"m": torch.ones(2)}})


def written(folder: Path, state: dict[str, Any]) -> Path:
    save(state, checkpoint_id=folder, no_dist=True)
    return folder


def read(folder: Path, metadata: bytes | None = None) -> dict[str, StoredTensor]:
    chunks = [in_memory(f.read_bytes(), f.name, f.name) for f in sorted(folder.glob("*.distcp"))]
    first = (folder / ".metadata").read_bytes() if metadata is None else metadata
    return read_distributed(in_memory(first, ".metadata", "here", *chunks))


def changed(folder: Path, change: Callable[[Metadata], Any]) -> bytes:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    return pickle.dumps(metadata)


def test_where_tensors_lie(folder: Path) -> None:
    found = read(folder)
    assert {(name, place.dtype, place.shape) for name, place in found.items()} == {
        ("layers.0.w", "F32", (3, 4)), ("mask", "BOOL", (3,)), ("scalar", "BF16", ()),
    }  # fmt: skip
    place = found["layers.0.w"]
    data = next(folder.glob("*.distcp")).read_bytes()
    assert [extent.first for extent in place.extents] == [0]
    values = torch.frombuffer(bytearray(data[place.start : place.stop]), dtype=torch.float32)
    assert values.tolist() == list(range(12))


def test_names_without_a_model_key(tmp_path: Path) -> None:
    state = {"embed.weight": torch.ones(2, 2), "optimizer": {"embed.weight": torch.ones(2, 2)}}
    assert list(read(written(tmp_path / "x", state))) == ["embed.weight"]


def _info(metadata: Metadata) -> Any:
    return next(v for k, v in metadata.storage_data.items() if k.fqn == "model.layers.0.w")


def _set(attribute: str, value: Any) -> Callable[[Metadata], Any]:
    return lambda metadata: setattr(_info(metadata), attribute, value)


def _chunks(*chunks: tuple[tuple[int, ...], tuple[int, ...]]) -> Callable[[Metadata], Any]:
    def change(metadata: Metadata) -> None:
        entry: Any = metadata.state_dict_metadata["model.layers.0.w"]
        entry.chunks = [ChunkStorageMetadata(torch.Size(o), torch.Size(n)) for o, n in chunks]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("relative_path", "../elsewhere.distcp"), "is absent"),
        (_set("relative_path", ["x"]), "is absent"),
        (_set("offset", 10**9), "ends beyond"),
        (_set("offset", -1), "ends beyond"),
        (_set("length", 2**70), "ends beyond"),
        (_set("length", "9"), "lies nowhere"),
        (_set("transform_descriptors", ["zstd"]), "compressed"),
        (_chunks(((0, 0), (3, 5))), "within"),
        (_chunks(((0, 0), (2, 4))), "expected 8 F32 values"),
        (_chunks(((0, 0), (3, 4)), ((0, 0), (3, 4))), "gap or overlap"),
        (_chunks(), "expected 12 values, found 0"),
        (_chunks(((1, 0), (2, 4))), "is absent"),
        (lambda m: m.storage_data.clear(), "is absent"),
        (lambda m: setattr(m, "storage_data", None), "expected the metadata"),
        (lambda m: setattr(m, "state_dict_metadata", [1]), "expected the metadata"),
    ],
)
def test_metadata_that_lies(folder: Path, change: Callable[[Metadata], Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read(folder, changed(folder, change))


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch /tmp/hallmarks-was-here",)


def test_nothing_is_executed(folder: Path) -> None:
    with pytest.raises(FormatError, match="posix.system"):
        read(folder, pickle.dumps(Evil()))
    with pytest.raises(FormatError, match="expected the metadata"):
        read(folder, pickle.dumps(torch.FloatStorage))
    assert not Path("/tmp/hallmarks-was-here").exists()


@given(data=st.data())
def test_damaged_metadata_fails_as_such(folder: Path, data: st.DataObject) -> None:
    damaged = bytearray((folder / ".metadata").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        read(folder, bytes(damaged))


def test_a_transposed_tensor_refuses_no_other(tmp_path: Path) -> None:
    state = {"w": torch.ones(3, 4), "t": torch.arange(12.0).view(3, 4).T}
    tensors = read(written(tmp_path / "x", {"model": state}))
    assert tensors["t"].lost and "transposed" in tensors["t"].unreadable
    assert tensors["w"].shape == (3, 4) and not tensors["w"].unreadable
