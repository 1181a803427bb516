"""Files of `torch.save`: where each tensor lies, from the head and the tail alone.

Since torch 1.6 such a file is a zip archive of stored (uncompressed) records: `data.pkl`, and one
record of raw bytes a storage, 64-byte aligned. Before, it was five pickles, then the storages.
Sources: `caffe2/serialize/inline_container.cc` (`getPadding`), `torch/serialization.py`
(`_legacy_save`) of torch 2.13.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.checkpoint.pickles import Split, Storage, TensorRecord, load
from pipeline.checkpoint.state_dict import state_dict
from pipeline.checkpoint.stored import MAX_EXTENTS, Extent, StoredTensor
from pipeline.checkpoint.strides import element_span, extents, storage_order
from pipeline.checkpoint.weight_file import MAX_HEADER_BYTES, WeightFile
from pipeline.checkpoint.zip_directory import Entry, directory
from pipeline.errors import FormatError, HallmarksError, quoted

_FIRST_READ_BYTES = 1 << 18  # of a pickle whose length is not known: 200 bytes a tensor
_ALIGNMENT = 64
_LOCAL_HEADER_BYTES = 30
_DESCRIPTORS = (0, 16, 24)  # bytes of a data descriptor: none, zip, zip64
_4GIB = 0xFFFF_FFFF
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


class StoredPart(NamedTuple):
    """A tensor as one file holds it, and how it is divided among several; None: it is whole."""

    stored: StoredTensor
    split: Split | None


def read_torch_chunk(file: WeightFile) -> StoredTensor:
    """Return the one tensor of a file that `torch.save` wrote of it alone.

    Raises:
        FormatError: as for `read_zip`.
    """
    program, place = _archive(file)
    record = load(io.BytesIO(program), file.where).value
    if not isinstance(record, TensorRecord):
        raise FormatError(f"{file.where}: expected one tensor, found a {type(record).__name__}")
    return _located("", record, place, file.where, 0)


_Place = Callable[[Storage], tuple[int, int]]


def read_zip(file: WeightFile) -> dict[str, StoredTensor]:
    """Return the tensors of an archive that `torch.save` wrote.

    Raises:
        FormatError: not such a file, it holds a part of what ranks divided, needs a class of which
            nothing is known, or places a tensor outside.
    """
    return _whole(zip_parts(file), file.where)


def zip_parts(file: WeightFile) -> dict[str, StoredPart]:
    """Return the tensors of an archive, which may be one rank's parts.

    Raises:
        FormatError: as for `read_zip`.
    """
    program, place = _archive(file)
    records = state_dict(load(io.BytesIO(program), file.where), file.where, file.state)
    return _all_placed(records, place, file)


def saved_value(file: WeightFile) -> Any:
    """Return what an archive of `torch.save` holds, as plain containers and records.

    Raises:
        FormatError: as for `read_zip`.
    """
    program, _ = _archive(file)
    return load(io.BytesIO(program), file.where).value


def _whole(parts: dict[str, StoredPart], where: str) -> dict[str, StoredTensor]:
    for name, part in parts.items():
        if part.split is not None:
            raise FormatError(
                f"{where}: expected whole tensors, found {list(part.stored.shape)} of"
                f" {list(part.split.shape)} of {quoted(name)}: one rank's part",
                "name the folder with the files of all ranks",
            )
    return {name: part.stored for name, part in parts.items()}


def _archive(file: WeightFile) -> tuple[bytes, _Place]:
    """Return an archive's pickle, and what tells where a storage's bytes begin and end."""
    where = file.where
    try:
        entries, begin = directory(file.at, file.size)
        pickles = [entry for entry in entries if entry.name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"{len(pickles)} records called data.pkl")
        prefix = pickles[0].name.removesuffix("data.pkl")
        begins = _data_starts(entries, begin)
        byte_order = _record(file, begins, prefix + "byteorder")
        if byte_order not in (b"", b"little"):
            raise ValueError(f"byte order {byte_order[:20]!r}")
        program = _record(file, begins, prefix + "data.pkl")
    except HallmarksError:  # of reading; some are ValueErrors, too
        raise
    except ValueError as error:
        raise FormatError(
            f"{where}: not an archive of torch.save: {quoted(error)}",
            "the file is truncated or damaged: fetch it again, or leave the checkpoint out",
        ) from None

    def place(storage: Storage) -> tuple[int, int]:
        bounds = begins.get(f"{prefix}data/{storage.key}")
        if bounds is None:
            raise FormatError(f"{where}: storage {quoted(storage.key)} is absent")
        return bounds

    return program, place


def _data_starts(entries: list[Entry], begin: int) -> dict[str, tuple[int, int]]:
    """Return (start, stop) of every record's bytes, with no read of the local headers.

    Where torch's writer puts them is known; that it was torch's writer shows in the next record
    beginning where this one, with its descriptor, ends.

    Args:
        begin: where the archive's directory begins, after the last record.
    """
    places: dict[str, tuple[int, int]] = {}
    nexts = chain((entry.header for entry in entries[1:]), (begin,))
    for entry, following in zip(entries, nexts, strict=True):
        start = entry.header + _LOCAL_HEADER_BYTES + entry.name_bytes + 4
        if entry.size >= _4GIB or entry.header >= _4GIB:
            start += 4
            start += 16 if entry.size >= _4GIB else 0
            start += 8 if entry.header >= _4GIB else 0
        start = -(-start // _ALIGNMENT) * _ALIGNMENT
        stop = start + entry.size
        if following - stop not in _DESCRIPTORS:
            raise ValueError(f"record {quoted(entry.name)} does not lie where torch.save puts it")
        if entry.name in places:
            raise ValueError(f"two records called {quoted(entry.name)}")
        places[entry.name] = (start, stop)
    return places


def _record(file: WeightFile, begins: dict[str, tuple[int, int]], name: str) -> bytes:
    if name not in begins:
        return b""
    start, stop = begins[name]
    if stop - start > MAX_HEADER_BYTES:
        raise ValueError(f"record {name} of {stop - start:,} bytes")
    return file.at(start, stop)


def read_legacy(file: WeightFile) -> dict[str, StoredTensor]:
    """Return the tensors of a file that `torch.save` wrote before torch 1.6.

    It is read on until the pickles end: how long they are is not written anywhere.

    Raises:
        FormatError: as for `read_zip`.
    """
    size, where = file.size, file.where
    length = 0
    most = min(size, MAX_HEADER_BYTES)
    while True:
        length = min(most, max(_FIRST_READ_BYTES, 4 * length))
        stream = io.BytesIO(file.at(0, length))
        try:
            magic, protocol, _, state, keys = (load(stream, where) for _ in range(5))
            break
        except FormatError:
            if length == most or stream.tell() < length:  # more of it would not help
                raise
    numbers = magic.value, protocol.value
    if numbers != (_LEGACY_MAGIC, _LEGACY_PROTOCOL) or not isinstance(keys.value, list):
        raise FormatError(f"{where}: expected a file of torch.save, found another pickle")
    records = state_dict(state, where, file.state)
    storages = state.storages
    places: dict[str, tuple[int, int]] = {}
    position = stream.tell()
    for key in keys.value:
        if not isinstance(key, str) or key not in storages or not storages[key].itemsize:
            raise FormatError(
                f"{where}: storage {quoted(key)} belongs to no tensor of a known number format",
                "save the model's state_dict alone",
            )
        start = position + 8
        stop = start + storages[key].numel * storages[key].itemsize
        if stop > size:
            raise FormatError(f"{where}: storage {quoted(key)} ends at {stop:,} of {size:,} bytes")
        places[key] = (start, stop)
        position = stop
    if keys.value:  # the first count is in reach: it proves that the computation is right
        (count,) = struct.unpack("<q", file.at(stream.tell(), stream.tell() + 8))
        expected = storages[keys.value[0]].numel
        if count != expected:
            raise FormatError(f"{where}: expected a storage of {expected:,}, found {count:,}")

    def place(storage: Storage) -> tuple[int, int]:
        if storage.key not in places:
            raise FormatError(f"{where}: storage {quoted(storage.key)} is absent")
        return places[storage.key]

    return _whole(_all_placed(records, place, file), where)


def _all_placed(
    records: dict[str, TensorRecord], place: _Place, file: WeightFile
) -> dict[str, StoredPart]:
    tensors: dict[str, StoredPart] = {}
    left = min(MAX_EXTENTS, file.size // 2)  # an extent is two elements or more
    for name, record in records.items():
        stored = _located(name, record, place, file.where, left)
        tensors[name] = StoredPart(stored, record.split)
        left -= len(stored.extents)
    return tensors


def _located(
    name: str, record: TensorRecord, place: _Place, where: str, most_extents: int
) -> StoredTensor:
    """Return where a tensor lies, checked against its storage's place."""
    if record.storage is None or record.unreadable:
        return StoredTensor(record.dtype, record.shape, 0, 0, unreadable=record.unreadable)
    begin, end = place(record.storage)
    itemsize = DTYPES[record.dtype].itemsize
    start = begin + record.offset * itemsize
    stop = start + element_span(record) * itemsize
    if stop > end:
        raise FormatError(
            f"{where}: expected tensor {quoted(name)} within its storage of {end - begin:,} bytes,"
            f" found it to end at {stop - begin:,}"
        )
    order = storage_order(record)
    if order is not None:
        order = () if order == tuple(sorted(order)) else order
        return StoredTensor(record.dtype, record.shape, start, stop, order)
    offsets = extents(record, most_extents)
    if offsets is None:
        return StoredTensor(record.dtype, record.shape, start, stop, (-1,))
    in_file = tuple(Extent(first, 0, start + offset * itemsize) for first, offset in offsets)
    return StoredTensor(record.dtype, record.shape, start, stop, (), in_file)
