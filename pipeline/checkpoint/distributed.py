"""Torch distributed checkpoints: `.metadata`, and the chunks of tensors in `.distcp` files.

`.metadata` is a pickle that says which chunk of which tensor is where; a chunk is a whole file of
`torch.save` within a larger one. Source: `torch/distributed/checkpoint/{metadata,filesystem}.py`
of torch 2.13.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.checkpoint.outside import counts, text
from pipeline.checkpoint.pickle_machine import Record
from pipeline.checkpoint.pickles import METADATA_NAMES, NESTED_UNDER, load
from pipeline.checkpoint.stored import MAX_EXTENTS, Extent, StoredTensor
from pipeline.checkpoint.torch_file import read_torch_chunk
from pipeline.errors import FormatError, HallmarksError, quoted

METADATA = ".metadata"
SUFFIX = ".distcp"
FOLDERS = ("model_and_optim", "pytorch_model_fsdp_0")
"""Where OLMo-core and accelerate put one below a checkpoint's folder."""

_OPTIMIZERS = ("optim", "optimizer", "optimizer_state", "optim_state")


def read_distributed(
    metadata: bytes,
    files: Sequence[tuple[str, int]],
    read: Callable[[int, int, int], bytes],
    where: str,
) -> dict[str, StoredTensor]:
    """Return the tensors of a distributed checkpoint; their extents name files by number.

    Args:
        metadata: contents of `.metadata`.
        files: path and size of each file of the checkpoint; extents give their index.
        read: gives the bytes [start, stop) of the file of that index.
        where: the checkpoint's name for error messages.

    Raises:
        FormatError: malformed, compressed, or a chunk is absent or lies outside its tensor.
    """
    found = load(io.BytesIO(metadata), f"{where}/{METADATA}", METADATA_NAMES)
    malformed = FormatError(
        f"{where}/{METADATA}: expected the metadata of a distributed checkpoint"
    )
    try:
        tensors = _weights(found)
        places = {
            (text(key["fqn"]), counts(key.get("offset") or ())): info
            for key, info in found["storage_data"].items()
        }
        # a few bytes may name one list of chunks again and again
        if sum(len(entry["chunks"]) for _, entry in tensors.values()) > len(metadata):
            raise malformed
    except (TypeError, KeyError, AttributeError, ValueError):
        raise malformed from None
    numbers = {path.rpartition("/")[2]: number for number, (path, _) in enumerate(files)}

    def chunk_start(name: str, offsets: tuple[int, ...], dtype: str, numel: int) -> tuple[int, int]:
        """Return the file that a chunk lies in, and where its first byte is."""
        info = places.get((name, offsets))
        path = info.get("relative_path") if isinstance(info, Record) else None
        if not isinstance(info, Record) or not isinstance(path, str) or path not in numbers:
            raise FormatError(f"{where}: chunk {list(offsets)} of {quoted(name)} is absent")
        if info.get("transform_descriptors"):
            raise FormatError(
                f"{where}: {quoted(name)} is stored compressed", "save it without extensions"
            )
        number, begin, length = numbers[path], info.get("offset"), info.get("length")
        if type(begin) is not int or type(length) is not int:
            raise FormatError(f"{where}: chunk of {quoted(name)} lies nowhere")
        if not 0 <= begin <= begin + length <= files[number][1]:
            raise FormatError(f"{where}: chunk of {quoted(name)} ends beyond {quoted(path)}")
        place = read_torch_chunk(
            lambda start, stop: read(number, begin + start, begin + stop),
            length,
            f"{where}/{path}[{begin}:{begin + length}]",
        )
        if place.dtype != dtype or place.numel != numel or place.order:
            raise FormatError(
                f"{where}: expected {numel:,} {dtype} values for a chunk of {quoted(name)}, found"
                f" {place.numel:,} of {place.dtype}"
            )
        return number, begin + place.start

    try:
        stored: dict[str, StoredTensor] = {}
        left = MAX_EXTENTS
        for name, (key, entry) in tensors.items():
            stored[name] = _tensor(
                entry, partial(chunk_start, key), f"{where}: {quoted(name)}", left
            )
            left -= len(stored[name].extents)
        return stored
    except HallmarksError:  # of reading, too; some are ValueErrors
        raise
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        raise malformed from None


def _weights(found: Any) -> dict[str, tuple[str, Record]]:
    """Return the tensors of the model by their own names, with their keys in the metadata."""
    entries = {
        key: entry
        for key, entry in found["state_dict_metadata"].items()
        if isinstance(entry, Record) and "chunks" in entry
    }
    paths = found.get("planner_data")
    paths = paths if isinstance(paths, Mapping) else {}
    names = {text(key): _path(key, paths.get(key)) for key in entries}
    nested = {path[0] for path in names.values() if path[0] in NESTED_UNDER and len(path) > 1}
    if nested:
        top = next(key for key in NESTED_UNDER if key in nested)
        kept = {key: path[1:] for key, path in names.items() if path[0] == top}
    else:
        kept = {k: path for k, path in names.items() if path[0].split(".")[0] not in _OPTIMIZERS}
    return {".".join(path): (key, entries[key]) for key, path in kept.items()}


def _path(key: str, path: Any) -> tuple[str, ...]:
    """Return where in nested dictionaries a tensor was, if the planner says so: it spells the key."""
    if type(path) is tuple and all(isinstance(part, str | int) for part in path):
        parts = tuple(part if isinstance(part, str) else str(part) for part in path)
        if sum(map(len, parts)) + len(parts) - 1 == len(key) and ".".join(parts) == key:
            return parts
    return (key,)


def _tensor(
    entry: Record,
    chunk_start: Callable[[tuple[int, ...], str, int], tuple[int, int]],
    where: str,
    most_extents: int,
) -> StoredTensor:
    shape, dtype = counts(entry["size"]), entry["properties"]["state"][0]  # the rest: in memory
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"{where}: expected a number format, found {quoted(dtype)}")
    itemsize = DTYPES[dtype].itemsize
    placed: list[tuple[Extent, int]] = []
    for chunk in entry["chunks"]:
        offsets, sizes = counts(chunk["offsets"]), counts(chunk["sizes"])
        inside = len(offsets) == len(sizes) == len(shape) and all(
            o + n <= length for o, n, length in zip(offsets, sizes, shape, strict=True)
        )
        if not inside:
            raise FormatError(f"{where}: expected chunks within {list(shape)}, found another")
        if 0 in sizes:
            continue
        file, start = chunk_start(offsets, dtype, math.prod(sizes))
        most = most_extents - len(placed)
        placed += _extents(shape, offsets, sizes, file, start, itemsize, where, most)
    placed.sort()
    reached = 0
    for extent, length in placed:
        if extent.first != reached:
            raise FormatError(
                f"{where}: expected chunks that cover it once, found a gap or overlap"
            )
        reached += length
    if reached != math.prod(shape):
        raise FormatError(f"{where}: expected {math.prod(shape):,} values, found {reached:,}")
    extents = tuple(extent for extent, _ in placed)
    start = extents[0].start if extents else 0
    return StoredTensor(dtype, shape, start, start + reached * itemsize, (), extents)


def _extents(
    shape: tuple[int, ...],
    offsets: tuple[int, ...],
    sizes: tuple[int, ...],
    file: int,
    start: int,
    itemsize: int,
    where: str,
    most: int,
) -> list[tuple[Extent, int]]:
    """Return the extents of a chunk, and how many elements each has.

    A chunk of rows is one extent; a chunk of columns has one in each row.
    """
    split = max((d for d, n in enumerate(sizes) if n != shape[d]), default=0)
    length = math.prod(sizes[split:])
    count = math.prod(sizes[:split])
    if count > most:
        raise FormatError(f"{where}: expected at most {MAX_EXTENTS:,} extents, found more")
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    base = sum(o * s for o, s in zip(offsets, strides, strict=True))
    extents = []
    for number in range(count):
        first, left = base, number
        for d in reversed(range(split)):
            first += left % sizes[d] * strides[d]
            left //= sizes[d]
        extents.append((Extent(first, file, start + number * length * itemsize), length))
    return extents
