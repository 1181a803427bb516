"""Torch distributed checkpoints: `.metadata`, and the chunks of tensors in `.distcp` files.

`.metadata` is a pickle that says which chunk of which tensor is where; a chunk is a whole file of
`torch.save` within a larger one. Source: `torch/distributed/checkpoint/{metadata,filesystem}.py`
of torch 2.13.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.checkpoint.outside import counts, text
from pipeline.checkpoint.pickle_machine import Record
from pipeline.checkpoint.pickles import METADATA_NAMES, NESTED_UNDER, load
from pipeline.checkpoint.stored import MAX_EXTENTS, Extent, StoredTensor
from pipeline.checkpoint.torch_file import read_torch_chunk
from pipeline.checkpoint.weight_file import WeightFile
from pipeline.errors import FormatError, HallmarksError, quoted

METADATA = ".metadata"
_CHUNKS = ".distcp"
_OPTIMIZERS = ("optim", "optimizer", "optimizer_state", "optim_state")


def metadata_and_chunks(paths: Collection[str]) -> tuple[str, ...]:
    """Return the path of a distributed checkpoint's metadata and those of its chunks.

    Of several, it is the one that lies least deep: a checkpoint's own, not one of what it holds.
    """
    metadata = [path for path in paths if path.rpartition("/")[2] == METADATA]
    if not metadata:
        return ()
    first = min(metadata, key=lambda path: (path.count("/"), path))
    folder = first.removesuffix(METADATA)
    names = (path.removeprefix(folder) for path in paths if path.startswith(folder))
    return first, *sorted(folder + n for n in names if "/" not in n and n.endswith(_CHUNKS))


def read_distributed(file: WeightFile) -> dict[str, StoredTensor]:
    """Return the tensors of a distributed checkpoint, of which `file` is the metadata.

    Raises:
        FormatError: malformed, compressed, or a chunk is absent or lies outside its tensor.
    """
    where = file.where
    metadata = file.whole()
    described = load(io.BytesIO(metadata), where, METADATA_NAMES)
    malformed = FormatError(f"{where}: expected the metadata of a distributed checkpoint")
    try:
        tensors = _weights(described)
        places = {
            (text(key["fqn"]), counts(key.get("offset") or ())): info
            for key, info in described["storage_data"].items()
        }
        # a few bytes may name one list of chunks again and again
        if sum(len(entry["chunks"]) for _, entry in tensors.values()) > len(metadata):
            raise malformed
    except (TypeError, KeyError, AttributeError, ValueError):
        raise malformed from None
    files = (file, *file.others)
    numbers = {other.path.rpartition("/")[2]: number for number, other in enumerate(files)}

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
        begin, length = info.get("offset"), info.get("length")
        if type(begin) is not int or type(length) is not int:
            raise FormatError(f"{where}: chunk of {quoted(name)} lies nowhere")
        number = numbers[path]
        if not 0 <= begin <= begin + length <= files[number].size:
            raise FormatError(f"{where}: chunk of {quoted(name)} ends beyond {quoted(path)}")
        chunk = read_torch_chunk(_part(files[number], begin, length))
        if chunk.dtype != dtype or chunk.numel != numel or chunk.order:
            raise FormatError(
                f"{where}: expected {numel:,} {dtype} values for a chunk of {quoted(name)}, found"
                f" {chunk.numel:,} of {chunk.dtype}"
            )
        return number, begin + chunk.start

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


def _part(file: WeightFile, begin: int, length: int) -> WeightFile:
    """Return the file that lies within another one."""
    where = f"{file.where}[{begin}:{begin + length}]"
    return WeightFile("", length, where, lambda a, b: file.read(begin + a, begin + b))


def _weights(described: Any) -> dict[str, tuple[str, Record]]:
    """Return the tensors of the model by their own names, with their keys in the metadata."""
    entries = {
        key: entry
        for key, entry in described["state_dict_metadata"].items()
        if isinstance(entry, Record) and "chunks" in entry
    }
    paths = described.get("planner_data")
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
    extent_lengths: list[tuple[Extent, int]] = []
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
        most = most_extents - len(extent_lengths)
        extent_lengths += _extents(shape, offsets, sizes, file, start, itemsize, where, most)
    extent_lengths.sort()
    reached = 0
    for extent, length in extent_lengths:
        if extent.first != reached:
            raise FormatError(
                f"{where}: expected chunks that cover it once, found a gap or overlap"
            )
        reached += length
    if reached != math.prod(shape):
        raise FormatError(f"{where}: expected {math.prod(shape):,} values, found {reached:,}")
    extents = tuple(extent for extent, _ in extent_lengths)
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
