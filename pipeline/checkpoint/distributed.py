"""Torch distributed checkpoints: `.metadata`, and the chunks of tensors in `.distcp` files.

`.metadata` is a pickle that says which chunk of which tensor is where; a chunk is a whole file of
`torch.save` within a larger one. Source: `torch/distributed/checkpoint/{metadata,filesystem}.py`
of torch 2.13.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from pipeline.checkpoint.chunks import Chunk, joined, one_by_one
from pipeline.checkpoint.dtypes import DTYPES
from pipeline.checkpoint.outside import counts, text
from pipeline.checkpoint.pickle_machine import Record
from pipeline.checkpoint.pickles import load
from pipeline.checkpoint.state_dict import NESTED_UNDER
from pipeline.checkpoint.stored import MAX_EXTENTS, StoredTensor
from pipeline.checkpoint.torch_file import read_torch_chunk
from pipeline.checkpoint.weight_file import WeightFile
from pipeline.errors import FormatError, HallmarksError, printable, quoted

METADATA = ".metadata"
_CHUNKS = ".distcp"
_OPTIMIZER = re.compile(
    r"(?:chained_\d+\.)?(?:optim|optimizer|optimizer_state|optim_state)(?:[._]\d+)?(?:\.|$)"
)
_ALL_LAYERS = re.compile(r"(?:\w+\.)*(?:decoder|encoder)\.layers\.(?!\d)")


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
    described = load(io.BytesIO(metadata), where).value
    malformed = FormatError(f"{where}: expected the metadata of a distributed checkpoint")
    try:
        tensors = _weights(described, file.state)
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
        if chunk.dtype != dtype or chunk.numel != numel:
            raise FormatError(
                f"{where}: expected {numel:,} {dtype} values for a chunk of {quoted(name)}, found"
                f" {chunk.numel:,} of {chunk.dtype}"
            )
        if chunk.order or len(chunk.extents) > 1:
            raise _Scattered
        return number, begin + chunk.start

    try:
        stored: dict[str, StoredTensor] = {}
        left = MAX_EXTENTS
        if file.state and not tensors:
            raise FormatError(f"{where}: expected tensors under {quoted(file.state)}, found none")
        for name, (key, entry) in tensors.items():
            stored[name] = _tensor(
                entry, partial(chunk_start, key), f"{where}: {quoted(name)}", left
            )
            left -= len(stored[name].extents)
        return _by_layer(stored) if isinstance(described.get("mcore_data"), Mapping) else stored
    except HallmarksError:  # of reading, too; some are ValueErrors
        raise
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        raise malformed from None


def _part(file: WeightFile, begin: int, length: int) -> WeightFile:
    """Return the file that lies within another one."""
    where = f"{file.where}[{begin}:{begin + length}]"
    return WeightFile("", length, where, lambda a, b: file.read(begin + a, begin + b))


def _weights(described: Any, state: str) -> dict[str, tuple[str, Record]]:
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
    if state:
        prefix = f"{state}."
        whole = {key: ".".join(path) for key, path in names.items()}
        under = {n.removeprefix(prefix): k for k, n in whole.items() if n.startswith(prefix)}
        return {name: (key, entries[key]) for name, key in under.items()}
    if nested:
        top = next(key for key in NESTED_UNDER if key in nested)
        kept = {key: path[1:] for key, path in names.items() if path[0] == top}
    else:
        kept = {k: path for k, path in names.items() if not _OPTIMIZER.match(path[0])}
    return {".".join(path): (key, entries[key]) for key, path in kept.items()}


def _path(key: str, path: Any) -> tuple[str, ...]:
    """Return where in nested dictionaries a tensor was, if the planner says so: it spells the key."""
    if type(path) is tuple and all(isinstance(part, str | int) for part in path):
        parts = tuple(part if isinstance(part, str) else str(part) for part in path)
        if sum(map(len, parts)) + len(parts) - 1 == len(key) and ".".join(parts) == key:
            return parts
    return (key,)


class _Scattered(Exception):
    """The elements of a chunk do not lie side by side, in the tensor's order."""


def _tensor(
    entry: Record,
    chunk_start: Callable[[tuple[int, ...], str, int], tuple[int, int]],
    where: str,
    most_extents: int,
) -> StoredTensor:
    shape, dtype = counts(entry["size"]), entry["properties"]["state"][0]  # the rest: in memory
    if not isinstance(dtype, str):
        raise FormatError(f"{where}: expected a number format, found {quoted(dtype)}")
    if dtype not in DTYPES:
        shown = printable(dtype[:80])
        return StoredTensor(
            shown,
            shape,
            0,
            0,
            unreadable=f"not a weight: stored as {shown}",
        )
    chunks: list[Chunk] = []
    for chunk in entry["chunks"]:
        offsets, sizes = counts(chunk["offsets"]), counts(chunk["sizes"])
        inside = len(offsets) == len(sizes) == len(shape) and all(
            o + n <= length for o, n, length in zip(offsets, sizes, shape, strict=True)
        )
        if not inside:
            raise FormatError(f"{where}: expected chunks within {list(shape)}, found another")
        if 0 not in sizes:
            try:
                file, start = chunk_start(offsets, dtype, math.prod(sizes))
            except _Scattered:
                why = "its chunks are stored transposed, or as slices of others"
                return StoredTensor(dtype, shape, 0, 0, unreadable=why, lost=True)
            chunks.append(Chunk(offsets, sizes, file, start))
    return joined(shape, dtype, chunks, where, most_extents)


def _by_layer(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return Megatron-core's tensors layer by layer: where layers are alike it keeps all in one tensor.

    Their first dimension is then the layer. Source: `sharded_state_dict` of its TransformerBlock.
    """
    together = {n: t for n, t in stored.items() if _ALL_LAYERS.match(n) and t.shape and t.numel}
    if len({tensor.shape[0] for tensor in together.values()}) != 1:
        return stored
    by_layer: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        if name in together and not tensor.unreadable:
            prefix = _ALL_LAYERS.match(name)
            begin = prefix[0] if prefix else ""
            for layer, one in enumerate(one_by_one(tensor)):
                by_layer[f"{begin}{layer}.{name.removeprefix(begin)}"] = one
        else:
            by_layer[name] = tensor
    return by_layer
