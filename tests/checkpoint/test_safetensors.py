"""Headers: what the library writes is read, what breaks a rule is refused in one line."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline.checkpoint.safetensors import read_safetensors
from pipeline.checkpoint.stored import StoredTensor
from pipeline.checkpoint.weight_file import MAX_HEADER_BYTES
from pipeline.errors import FormatError
from tests.checkpoint import in_memory


def headed(data: bytes) -> dict[str, StoredTensor]:
    return read_safetensors(in_memory(data, "x.safetensors", "there"))


def file_of(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BROKEN = {
    "empty file": b"",
    "shorter than a length": b"\0\0\0",
    "length beyond the file": struct.pack("<Q", 50) + b"{}",
    "length beyond the limit": struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}",
    "length of 2^64-1": struct.pack("<Q", 2**64 - 1) + b"{}",
    "not JSON": file_of(b"{nonsense"),
    "not UTF-8": file_of(b"\xff\xfe{}"),
    "nested out of reach": file_of(b"[" * 200_000),
    "a list": file_of([1, 2]),
    "a key twice": file_of(b'{"a":1,"a":2}'),
    "entry is no object": file_of({"w": 3}),
    "dtype is unknown": file_of({"w": entry("F31")}, b"\0" * 8),
    "dtype is a list": file_of({"w": entry(["F32"])}, b"\0" * 8),
    "shape is negative": file_of({"w": entry(shape=(-2,))}, b"\0" * 8),
    "shape is boolean": file_of({"w": entry(shape=(True,))}, b"\0" * 8),
    "shape is huge": file_of({"w": entry(shape=(2**62, 2**62))}, b"\0" * 8),
    "shape has a thousand axes": file_of({"w": entry(shape=[1] * 1000)}, b"\0" * 8),
    "offsets descend": file_of({"w": entry(offsets=(8, 0))}, b"\0" * 8),
    "offsets are three": file_of({"w": entry(offsets=(0, 4, 8))}, b"\0" * 8),
    "offsets do not fit the shape": file_of({"w": entry(shape=(3,))}, b"\0" * 8),
    "offsets do not fit the dtype": file_of({"w": entry("F16")}, b"\0" * 8),
    "tensors overlap": file_of({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12),
    "tensors leave a hole": file_of({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20),
    "the file is truncated": file_of({"w": entry()}, b"\0" * 7),
    "the file goes on": file_of({"w": entry()}, b"\0" * 9),
    "a name with line breaks": file_of({"a\nb\x1b[2J": entry("F31")}, b"\0" * 8),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_headers_are_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(FormatError) as raised:
        headed(data)
    message = raised.value.message
    assert message.startswith("there: not a valid safetensors file: expected ")
    assert message.isprintable()
    assert len(message) < 500


def test_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).half(),
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 4),
        "bytes": torch.zeros(3, dtype=torch.uint8),
        "f8": torch.zeros(4).to(torch.float8_e4m3fn),
        **{f"many.{i}": torch.full((2,), float(i), dtype=torch.bfloat16) for i in range(3000)},
    }
    save_file(tensors, tmp_path / "f.safetensors", {"format": "pt"})
    data = (tmp_path / "f.safetensors").read_bytes()
    found = headed(data)
    assert found.keys() == tensors.keys()
    assert struct.unpack("<Q", data[:8])[0] > 100_000  # more than the first read holds
    for name, values in tensors.items():
        place = found[name]
        assert place.shape == tuple(values.shape)
        stored = values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert data[place.start : place.stop] == stored


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_else(data: bytes) -> None:
    for candidate in (data, file_of(data)):
        try:
            headed(candidate)
        except FormatError as error:
            assert error.message.isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(json_values, json_values, json_values)
def test_no_entry_does_anything_else(dtype: object, shape: object, offsets: object) -> None:
    for one in (
        entry(dtype, shape, offsets),
        entry("F32", shape, offsets),
        entry("F32", [2], offsets),
    ):
        try:
            headed(file_of({"w": one}, b"\0" * 8))
        except FormatError as error:
            assert error.message.isprintable()
