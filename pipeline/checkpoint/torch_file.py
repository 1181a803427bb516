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

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.checkpoint.pickles import (
    MAX_PICKLE_BYTES,
    Storage,
    TensorRecord,
    element_span,
    extents,
    load,
    state_dict,
    storage_order,
)
from pipeline.checkpoint.safetensors import Read
from pipeline.checkpoint.stored import MAX_EXTENTS, Extent, StoredTensor
from pipeline.checkpoint.zip_directory import Entry, directory
from pipeline.errors import FormatError, HallmarksError, quoted

_BLOCK_BYTES = 1 << 16  # one read: a tail of 64 KiB holds the directory of some 600 storages
_ALIGNMENT = 64
_LOCAL_HEADER_BYTES = 30
_DESCRIPTORS = (0, 16, 24)  # bytes of a data descriptor: none, zip, zip64
_4GIB = 0xFFFF_FFFF
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def read_torch_file(read: Read, size: int, where: str) -> dict[str, StoredTensor]:
    """Return the tensors of a file that `torch.save` wrote.

    Args:
        read: gives the bytes [start, stop) of the file.
        size: the file's size in bytes.
        where: the file's name for error messages.

    Raises:
        FormatError: not such a file, or it names anything but tensors, or places one outside.
    """
    remote = _Blocks(read, size)
    head = remote.at(0, min(size, 4))
    if head[:2] == b"PK":
        return _of_zip(remote, where)
    if head[:1] == b"\x80":
        return _of_legacy(remote, size, where)
    raise FormatError(
        f"{where}: expected a file of torch.save, found one that begins with {quoted(head)}",
        "the file is damaged, or of another format",
    )


def read_torch_chunk(read: Read, size: int, where: str) -> StoredTensor:
    """Return the one tensor of a file that `torch.save` wrote of it alone.

    Raises:
        FormatError: as for `read_torch_file`.
    """
    program, place = _archive(_Blocks(read, size), where)
    record = load(io.BytesIO(program), where)
    if not isinstance(record, TensorRecord):
        raise FormatError(f"{where}: expected one tensor, found a {type(record).__name__}")
    return _placed("", record, place, where, 0)


class _Blocks:
    """A file of which blocks are read as they are asked for, and kept."""

    def __init__(self, read: Read, size: int) -> None:
        self._read, self.size = read, size
        self._blocks: dict[int, bytes] = {}

    def at(self, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop); blocks that are missing are read in one go.

        Raises:
            ValueError: they are more than any pickle or directory may have.
        """
        stop = min(stop, self.size)
        if stop <= start:
            return b""
        if stop - start > MAX_PICKLE_BYTES:
            raise ValueError(f"asked for {stop - start:,} bytes at once")
        first, last = start // _BLOCK_BYTES, (stop - 1) // _BLOCK_BYTES
        missing = [number for number in range(first, last + 1) if number not in self._blocks]
        if missing:
            begin = missing[0] * _BLOCK_BYTES
            data = self._read(begin, min(self.size, (missing[-1] + 1) * _BLOCK_BYTES))
            for number in range(missing[0], missing[-1] + 1):
                offset = number * _BLOCK_BYTES - begin
                self._blocks[number] = data[offset : offset + _BLOCK_BYTES]
        joined = b"".join(self._blocks[number] for number in range(first, last + 1))
        return joined[start - first * _BLOCK_BYTES : stop - first * _BLOCK_BYTES]


_Place = Callable[[Storage], tuple[int, int]]


def _of_zip(remote: _Blocks, where: str) -> dict[str, StoredTensor]:
    program, place = _archive(remote, where)
    records = state_dict(load(io.BytesIO(program), where), where)
    return _all_placed(records, place, remote.size, where)


def _archive(remote: _Blocks, where: str) -> tuple[bytes, _Place]:
    """Return an archive's pickle, and what tells where a storage's bytes begin and end."""
    try:
        entries, begin = directory(remote.at, remote.size)
        pickles = [entry for entry in entries if entry.name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"{len(pickles)} records called data.pkl")
        prefix = pickles[0].name.removesuffix("data.pkl")
        begins = _data_starts(entries, begin)
        byte_order = _record(remote, begins, prefix + "byteorder")
        if byte_order not in (b"", b"little"):
            raise ValueError(f"byte order {byte_order[:20]!r}")
        program = _record(remote, begins, prefix + "data.pkl")
    except HallmarksError:  # of reading; some are ValueErrors, too
        raise
    except ValueError as error:
        raise FormatError(
            f"{where}: not an archive of torch.save: {quoted(error)}",
            "the file is truncated or damaged: fetch it again, or leave the checkpoint out",
        ) from None

    def place(storage: Storage) -> tuple[int, int]:
        found = begins.get(f"{prefix}data/{storage.key}")
        if found is None:
            raise FormatError(f"{where}: storage {quoted(storage.key)} is absent")
        return found

    return program, place


def _data_starts(entries: list[Entry], begin: int) -> dict[str, tuple[int, int]]:
    """Return (start, stop) of every record's bytes, with no read of the local headers.

    Where torch's writer puts them is known; that it was torch's writer shows in the next record
    beginning where this one, with its descriptor, ends.

    Args:
        begin: where the archive's directory begins, after the last record.
    """
    found: dict[str, tuple[int, int]] = {}
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
        if entry.name in found:
            raise ValueError(f"two records called {quoted(entry.name)}")
        found[entry.name] = (start, stop)
    return found


def _record(remote: _Blocks, begins: dict[str, tuple[int, int]], name: str) -> bytes:
    if name not in begins:
        return b""
    start, stop = begins[name]
    if stop - start > MAX_PICKLE_BYTES:
        raise ValueError(f"record {name} of {stop - start:,} bytes")
    return remote.at(start, stop)


def _of_legacy(remote: _Blocks, size: int, where: str) -> dict[str, StoredTensor]:
    """Read on until the pickles end: how long they are is not written anywhere."""
    length = 0
    most = min(size, MAX_PICKLE_BYTES)
    while True:
        length = min(most, max(4 * _BLOCK_BYTES, 4 * length))
        stream = io.BytesIO(remote.at(0, length))
        try:
            magic, protocol, _, found, keys = (load(stream, where) for _ in range(5))
            break
        except FormatError:
            if length == most or stream.tell() < length:  # more of it would not help
                raise
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(keys, list):
        raise FormatError(f"{where}: expected a file of torch.save, found another pickle")
    records = state_dict(found, where)
    storages = {record.storage.key: record for record in records.values()}
    places: dict[str, tuple[int, int]] = {}
    position = stream.tell()
    for key in keys:
        if not isinstance(key, str) or key not in storages:
            raise FormatError(
                f"{where}: storage {quoted(key)} belongs to no tensor of the state dict",
                "save the model's state_dict alone",
            )
        storage = storages[key].storage
        start = position + 8
        stop = start + storage.numel * DTYPES[storage.dtype or "U8"].itemsize
        if stop > size:
            raise FormatError(f"{where}: storage {quoted(key)} ends at {stop:,} of {size:,} bytes")
        places[key] = (start, stop)
        position = stop
    if keys:  # the first count is in reach: it proves that the computation is right
        (count,) = struct.unpack("<q", remote.at(stream.tell(), stream.tell() + 8))
        expected = storages[keys[0]].storage.numel
        if count != expected:
            raise FormatError(f"{where}: expected a storage of {expected:,}, found {count:,}")

    def place(storage: Storage) -> tuple[int, int]:
        if storage.key not in places:
            raise FormatError(f"{where}: storage {quoted(storage.key)} is absent")
        return places[storage.key]

    return _all_placed(records, place, remote.size, where)


def _all_placed(
    records: dict[str, TensorRecord], place: _Place, size: int, where: str
) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    left = min(MAX_EXTENTS, size // 2)  # an extent is two elements or more
    for name, record in records.items():
        found[name] = _placed(name, record, place, where, left)
        left -= len(found[name].extents)
    return found


def _placed(
    name: str, record: TensorRecord, place: _Place, where: str, most_extents: int
) -> StoredTensor:
    """Return where a tensor lies, checked against its storage's place."""
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
    placed = tuple(Extent(first, 0, start + offset * itemsize) for first, offset in offsets)
    return StoredTensor(record.dtype, record.shape, start, stop, (), placed)
