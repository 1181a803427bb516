"""The header of a safetensors file: an 8-byte length, then JSON, then the values.

The format's rules are checked here one by one, because the header decides which bytes of the
file are taken for which tensor: a header that lies must fail, not be read.
Source: the format's README (huggingface/safetensors).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
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

_LARGEST_KEPT = 4 << 20
_MOST_KEPT = 64
"""Shards of a checkpoint: those of the next one mostly have the same headers, to the byte. 24 checkpoints of 12,000
tensors were planned in 4.3 s of CPU without, in 2.1 with."""
_kept: OrderedDict[tuple[bytes, int], dict[str, StoredTensor]] = OrderedDict()
_parsing = threading.Lock()
"""Parsing takes the interpreter's lock all the time anyway."""


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

    Of a header that was just parsed nothing is parsed again.

    Raises:
        FormatError: not JSON, a wrong type, an unknown dtype, or offsets that overlap, leave
            holes, or do not fit the shape, the dtype or the file.
    """
    key = hashlib.sha256(header).digest(), size
    with _parsing:
        tensors = _kept.get(key)
        if tensors is None:
            tensors = _parsed(header, size, where)
            if len(header) <= _LARGEST_KEPT:
                _kept[key] = tensors
        if key in _kept:
            _kept.move_to_end(key)
        if len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
    return dict(tensors)


def _parsed(header: bytes, size: int, where: str) -> dict[str, StoredTensor]:
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
    if not isinstance(entry, dict):
        raise _broken(where, f"{_label(name)} described by an object", f"a {type(entry).__name__}")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _broken(where, f"a known dtype for {_label(name)}", quoted(dtype))
    try:
        shape = counts(shape)
    except ValueError:
        raise _broken(where, f"a shape for {_label(name)}", quoted(shape)) from None
    try:
        start, stop = counts(offsets)
        if start > stop:
            raise ValueError
    except ValueError:
        ascending = f"two ascending data_offsets for {_label(name)}"
        raise _broken(where, ascending, quoted(offsets)) from None
    bits = math.prod(shape) * DTYPES[dtype].bits
    if bits != 8 * (stop - start):
        raise _broken(
            where,
            f"{quoted(bits // 8)} bytes for {_label(name)} of {dtype} {quoted(shape)}",
            f"{stop - start:,}",
        )
    return StoredTensor(DTYPES[dtype].name, shape, data_start + start, data_start + stop)


def _label(name: str) -> str:
    return f"tensor {quoted(name)}"


def _broken(where: str, expected: str, actual: str) -> FormatError:
    return FormatError(
        f"{where}: not a valid safetensors file: expected {expected}, found {actual}",
        "the file is truncated or damaged: fetch it again, or leave the checkpoint out",
    )


def head_of(
    tensors: Iterable[tuple[str, str, Sequence[int], int]], metadata: Mapping[str, str]
) -> tuple[bytes, list[int]]:
    """Return what precedes the values of a file, and where among the values each tensor begins.

    Args:
        tensors: name, number format, shape and bytes of each, in the order of their values.
        metadata: texts that the header holds besides.
    """
    header: dict[str, Any] = {METADATA_KEY: dict(metadata)} if metadata else {}
    starts: list[int] = []
    stop = 0
    for name, dtype, shape, num_bytes in tensors:
        start, stop = stop, stop + num_bytes
        starts.append(start)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)  # so that the values are aligned
    return struct.pack("<Q", len(text)) + text, starts
