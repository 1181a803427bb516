"""Files of torch.save, against torch.load; and pickles that want more than tensors."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint.formats import read_header
from pipeline.checkpoint.pickles import load
from pipeline.checkpoint.stored import MAX_EXTENTS
from pipeline.checkpoint.weight_file import WeightFile
from pipeline.errors import FormatError
from pipeline.statistics.piece import TORCH_DTYPES
from tests.checkpoint import in_memory

KINDS = ["zip", "legacy"]
FLOATS = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2,
]  # fmt: skip


def saved(found: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    torch.save(found, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


def read(data: bytes) -> dict:
    return read_header(in_memory(data, "x.bin"))


def values(data: bytes, place: Any) -> torch.Tensor:
    """Return a tensor's elements, in the order in which they are stored."""
    raw = np.frombuffer(data[place.start : place.stop], np.uint8).copy()
    return torch.from_numpy(raw).view(TORCH_DTYPES[place.dtype])


def layers(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(7, 5, generator=generator).to(dtype)
    return {
        "embed": both,
        "head": both,  # tied
        "part": both[2:4],
        "scalar": torch.randn((), generator=generator).to(dtype),
        "parameter": torch.nn.Parameter(
            torch.randn(3, 4, generator=generator).to(dtype), requires_grad=False
        ),
        "empty": torch.empty(0, 3, dtype=dtype),
    }


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_lie_where_they_are_said_to(kind: str, dtype: torch.dtype) -> None:
    if kind == "legacy" and dtype.itemsize == 1:
        pytest.skip("the old format has no 8-bit storages")
    expected = layers(dtype)
    data = saved(expected, kind)
    found = read(data)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].order == ()
        if not tensor.numel():
            continue
        stored = values(data, found[name])
        assert torch.equal(stored.float(), tensor.detach().reshape(-1).float())
    assert found["embed"].start == found["head"].start


@pytest.mark.parametrize("kind", KINDS)
def test_integers_and_odd_strides_are_seen_as_such(kind: str) -> None:
    weights = torch.arange(24.0).view(2, 3, 4)
    found = read(
        saved(
            {
                "mask": torch.ones(2, dtype=torch.uint8),
                "transposed": weights.permute(2, 0, 1),
                "gaps": weights[:, :, :2],
                "repeated": torch.ones(1).expand(5),
            },
            kind,
        )
    )
    assert found["mask"].dtype == "U8"
    assert found["transposed"].order == (1, 2, 0)
    assert found["gaps"].order == ()
    begin = found["gaps"].start
    assert [(e.first, e.start - begin) for e in found["gaps"].extents] == [
        (2 * row, 16 * row) for row in range(6)
    ]
    assert found["repeated"].order == (-1,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "module"])
def test_nested_state_dicts(kind: str, key: str) -> None:
    state = torch.nn.Linear(3, 2).state_dict()  # an OrderedDict with _metadata
    found = read(saved({key: state, "step": 7, "lr": 0.1, "name": "run", "done": None}, kind))
    assert found.keys() == {"weight", "bias"}


def test_what_transformers_era_files_look_like() -> None:
    """Records need not be called archive/…; the folder is the file's name."""
    data = saved(layers(torch.float16), "zip")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"archive"}
    assert "embed" in read(data)


def test_little_of_a_file_is_read(tmp_path: Path) -> None:
    """A plan over files of 40 MB reads less than 1 % of them."""
    path = tmp_path / "x.bin"
    torch.save({f"layers.{i}.weight": torch.zeros(100_000) for i in range(100)}, path)
    data, asked = path.read_bytes(), []

    def part(start: int, stop: int) -> bytes:
        asked.append(stop - start)
        return data[start:stop]

    found = read_header(WeightFile("x.bin", len(data), "x.bin", part))
    assert len(found) == 100
    assert sum(asked) < 0.01 * len(data)
    assert len(asked) <= 3


def pickled(*items: Any) -> bytes:
    """Return a file of torch.save whose pickle is another one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved({"w": torch.ones(3)}, "zip"))) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    writer = torch._C.PyTorchFileWriter(buffer)
    for name, record in records.items():
        short = name.partition("/")[2]
        if short in ("version", ".data/serialization_id"):
            continue
        record = items[0] if short == "data.pkl" else record
        writer.write_record(short, record, len(record))
    writer.write_end_of_file()
    return buffer.getvalue()


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    ("program", "named"),
    [
        (pickle.dumps(Calls(os.system, "touch hacked")), "posix.system"),
        (pickle.dumps(Calls(eval, "open('hacked', 'w')")), "builtins.eval"),
        (pickle.dumps({"w": [Calls(getattr, Calls(eval, "1"), "x")]}), "builtins.eval"),
    ],
)
def test_pickles_that_name_programs(
    program: bytes, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for data in (pickled(program), program):
        with pytest.raises(FormatError, match="names .*" + named.replace(".", "[.]")):
            read(data if data[:2] == b"PK" else b"\x80\x02" + data.removeprefix(data[:2]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("program", "named"),
    [
        (pickle.dumps({"w": Calls(getattr, 1, "x")}), "builtins.getattr"),
        (pickle.dumps(np.float64(1)), "numpy"),
        (pickle.dumps(Path("x")), "pathlib"),
        (b"\x80\x02cpipeline.checkpoint.pickles\n_NAMES\n.", "pipeline.checkpoint.pickles._NAMES"),
        (b"\x80\x02ctorch\nFloatStorage.__class__\n.", "__class__"),
    ],
)
def test_pickles_that_name_anything_else(program: bytes, named: str) -> None:
    """What they name is remembered by its name alone."""
    with pytest.raises(FormatError, match="names .*" + named.replace(".", "[.]")):
        read(pickled(program))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02}r\xff\xff\xff\xff.", "memo"),  # LONG_BINPUT 4 294 967 295
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x0f.", "pickle"),  # BYTEARRAY8, 2**60
        (b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".", "times its length"),
        (b"\x80\x02K\x01Q.", "persistent id"),
        (
            b"\x80\x02ctorch\nFloatStorage\n}X\x05\x00\x00\x00dtypeX\x03\x00\x00\x00F64sb.",
            "no tensors",
        ),
        (b"\x80\x02ctorch\nSize\nN}X\x08\x00\x00\x00functionNs\x86b.", "no tensors"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "pickle"),
        (b"\x80\x02}.", "no tensors"),
        (b"\x80\x02", "pickle"),
    ],
)
def test_pickles_that_are_malformed(program: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read(pickled(program))
    assert read(saved({"w": torch.ones(3)}, "zip"))["w"].dtype == "F32"  # nothing has stuck


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numel": 10**9}, "within its storage"),
        ({"offset": 2}, "within its storage"),
        ({"offset": -1}, "not counts"),
        ({"offset": 2**62}, "within its storage"),
        ({"strides": (2,)}, "within its storage"),
        ({"shape": (10**6,)}, "within its storage"),
        ({"key": "../version"}, "is absent"),
        ({"key": "9"}, "is absent"),
    ],
)
def test_records_that_point_outside(change: dict, message: str) -> None:
    place = {"numel": 3, "offset": 0, "shape": (3,), "strides": (1,), "key": "0"} | change
    place["shape"] = (place["numel"],) if "numel" in change else place["shape"]

    class Stored:
        pass

    class Dumper(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if isinstance(obj, Stored):
                return "storage", torch.FloatStorage, place["key"], "cpu", place["numel"]
            return None

    class Tensor:
        def __reduce__(self) -> tuple:
            arguments = (Stored(), place["offset"], place["shape"], place["strides"])
            return torch._utils._rebuild_tensor_v2, (*arguments, False, OrderedDict())

    buffer = io.BytesIO()
    Dumper(buffer, protocol=2).dump({"w": Tensor()})
    with pytest.raises(FormatError, match=message):
        read(pickled(buffer.getvalue()))


def test_extents_are_bounded_by_what_a_file_holds() -> None:
    """Rows that repeat: a few bytes would make a hundred million extents."""
    wide = torch.ones(4).as_strided((400_000, 2), (0, 1))
    found = read(saved({f"w{i}": wide for i in range(50)}, "zip"))
    assert {place.order for place in found.values()} == {(-1,)}
    columns = torch.zeros(600_000, 4)[:, :2]
    found = read(saved({"w0": columns, "w1": columns}, "zip"))
    assert len(found["w0"].extents) == 600_000 and found["w1"].order == (-1,)
    assert sum(len(place.extents) for place in found.values()) <= MAX_EXTENTS


ZIP, LEGACY = (saved(layers(torch.float32), kind) for kind in KINDS)


@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_damaged_files_fail_as_such(data: st.DataObject, kind: str) -> None:
    """Cut, or with bytes changed: our error, or tensors within the file."""
    damaged = bytearray(ZIP if kind == "zip" else LEGACY)
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    for candidate in (bytes(damaged), cut):
        try:
            found = read(candidate)
        except FormatError:
            continue
        assert all(0 <= place.start <= place.stop <= len(candidate) for place in found.values())


@given(st.binary(max_size=200))
def test_noise_is_no_pickle(noise: bytes) -> None:
    with contextlib.suppress(FormatError):
        load(io.BytesIO(noise), "x")


def test_tensors_may_come_in_any_order() -> None:
    generator = random.Random(0)
    names = [f"w{i}" for i in range(50)]
    generator.shuffle(names)
    for kind in KINDS:
        data = saved({name: torch.full((10,), float(name[1:])) for name in names}, kind)
        for name, place in read(data).items():
            assert values(data, place).tolist() == [float(name[1:])] * 10
