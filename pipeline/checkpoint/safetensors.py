"""The header of a safetensors file: an 8-byte length, then JSON, then the values.

The format's rules are checked here one by one, because the header decides which bytes of the
file are taken for which tensor: a header that lies must fail, not be read.
Source: the format's README (huggingface/safetensors).
"""

from __future__ import annotations

import math
import struct
from typing import Any

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.checkpoint.json_text import JsonText
from pipeline.checkpoint.outside import counts
from pipeline.checkpoint.stored import StoredTensor
from pipeline.checkpoint.weight_file import MAX_HEADER_BYTES, WeightFile
from pipeline.errors import FormatError, quoted

LENGTH_BYTES = 8
# Hub statistics quoted by huggingface_hub: 97 % of headers are shorter than 100 kB, so that
# one read is enough for nearly all files.
FIRST_READ_BYTES = 100_000
METADATA_KEY = "__metadata__"


def read_safetensors(file: WeightFile) -> dict[str, StoredTensor]:
    """Return the tensors of a file, reading its head only.

    Raises:
        FormatError: the header breaks a rule of the format.
    """
    size, where = file.size, file.where
    if size < LENGTH_BYTES:
        raise _broken(where, f"a header length of {LENGTH_BYTES} bytes", f"{size} bytes in all")
    head = file.read(0, min(size, FIRST_READ_BYTES))
    (length,) = struct.unpack("<Q", head[:LENGTH_BYTES])
    stop = LENGTH_BYTES + length
    if length > MAX_HEADER_BYTES:
        raise _broken(where, f"a header of at most {MAX_HEADER_BYTES:,} bytes", f"{length:,}")
    if stop > size:
        raise _broken(where, f"a header within the file's {size:,} bytes", f"{length:,} bytes")
    if stop > len(head):
        head += file.read(len(head), stop)
    return parse_header(head[LENGTH_BYTES:stop], size, where)


def parse_header(header: bytes, size: int, where: str) -> dict[str, StoredTensor]:
    """Return the tensors that a header's JSON names, checked against the file's size.

    Raises:
        FormatError: not JSON, a wrong type, an unknown dtype, or offsets that overlap, leave
            holes, or do not fit the shape, the dtype or the file.
    """
    data_start = LENGTH_BYTES + len(header)
    tensors = _entries(header, data_start, where)
    expected = data_start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != expected:
            what = "overlaps the one before it" if tensor.start < expected else "leaves a hole"
            raise _broken(
                where,
                f"tensor {quoted(name)} to start at {expected:,}",
                f"{tensor.start:,} ({what})",
            )
        expected = tensor.stop
    if expected != size:
        raise _broken(where, f"tensors that end with the file at {size:,}", f"{expected:,}")
    return tensors


def _entries(header: bytes, data_start: int, where: str) -> dict[str, StoredTensor]:
    """Return what the header says of each tensor; of two entries of one name neither can be right."""
    tensors: dict[str, StoredTensor] = {}
    try:
        text = JsonText(header)
        if text.next != "{":
            raise _broken(where, "a JSON object as header", quoted(text.next))
        for name in text.members():
            if name == METADATA_KEY:
                text.skip()
            elif name in tensors:
                raise ValueError(f"a key appears twice: {quoted(name)}")
            else:
                tensors[name] = _entry(name, text.value(), data_start, where)
        text.end()
    except FormatError:
        raise
    except ValueError as error:  # UnicodeDecodeError is one, too
        raise _broken(where, "a JSON header", quoted(error)) from None
    return tensors


def _entry(name: str, entry: Any, data_start: int, where: str) -> StoredTensor:
    label = f"tensor {quoted(name)}"
    if not isinstance(entry, dict):
        raise _broken(where, f"{label} described by an object", f"a {type(entry).__name__}")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _broken(where, f"a known dtype for {label}", quoted(dtype))
    shape = _counts(shape, f"a shape for {label}", where)
    offsets = _counts(offsets, f"two ascending data_offsets for {label}", where)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(where, f"two ascending data_offsets for {label}", quoted(offsets))
    bits = math.prod(shape) * DTYPES[dtype].bits
    if bits != 8 * (offsets[1] - offsets[0]):
        raise _broken(
            where,
            f"{quoted(bits // 8)} bytes for {label} of {dtype} {quoted(shape)}",
            f"{offsets[1] - offsets[0]:,}",
        )
    start, stop = offsets
    return StoredTensor(DTYPES[dtype].name, shape, data_start + start, data_start + stop)


def _counts(value: Any, expected: str, where: str) -> tuple[int, ...]:
    try:
        return counts(value)
    except ValueError:
        raise _broken(where, expected, quoted(value)) from None


def _broken(where: str, expected: str, actual: str) -> FormatError:
    return FormatError(
        f"{where}: not a valid safetensors file: expected {expected}, found {actual}",
        "the file is truncated or damaged: fetch it again, or leave the checkpoint out",
    )
