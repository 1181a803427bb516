"""Files of `torch.save`: where each tensor lies, from the head and the tail alone.

Since torch 1.6 such a file is a zip archive of stored (uncompressed) records: `data.pkl`, and one
record of raw bytes a storage, 64-byte aligned. Before, it was five pickles, then the storages.
Sources: `caffe2/serialize/inline_container.cc` (`getPadding`), `torch/serialization.py`
(`_legacy_save`) of torch 2.13.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

from pipeline.checkpoint.dtypes import DTYPES
from pipeline.checkpoint.pickles import (
    MAX_PICKLE_BYTES,
    Storage,
    TensorRecord,
    extent,
    load,
    runs,
    state_dict,
    storage_order,
)
from pipeline.checkpoint.safetensors import MAX_RUNS, Read, Run, StoredTensor
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
    remote = _RangeFile(read, size)
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
    program, place = _archive(_RangeFile(read, size), where)
    record = load(io.BytesIO(program), where)
    if not isinstance(record, TensorRecord):
        raise FormatError(f"{where}: expected one tensor, found {quoted(record)}")
    return _placed("", record, place, where, 0)


class _RangeFile(io.RawIOBase):
    """A file to seek in, of which blocks are read as they are asked for, and kept."""

    def __init__(self, read: Read, size: int) -> None:
        self._read, self._size, self._position = read, size, 0
        self._blocks: dict[int, bytes] = {}

    def at(self, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop); blocks that are missing are read in one go."""
        stop = min(stop, self._size)
        if stop <= start:
            return b""
        first, last = start // _BLOCK_BYTES, (stop - 1) // _BLOCK_BYTES
        missing = [number for number in range(first, last + 1) if number not in self._blocks]
        if missing:
            begin = missing[0] * _BLOCK_BYTES
            data = self._read(begin, min(self._size, (missing[-1] + 1) * _BLOCK_BYTES))
            for number in range(missing[0], missing[-1] + 1):
                offset = number * _BLOCK_BYTES - begin
                self._blocks[number] = data[offset : offset + _BLOCK_BYTES]
        joined = b"".join(self._blocks[number] for number in range(first, last + 1))
        return joined[start - first * _BLOCK_BYTES : stop - first * _BLOCK_BYTES]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size is None or size < 0 else self._position + size
        if stop - self._position > MAX_PICKLE_BYTES:
            raise ValueError(f"asked for {stop - self._position:,} bytes at once")
        data = self.at(self._position, stop)
        self._position += len(data)
        return data


_Place = Callable[[Storage], tuple[int, int]]


def _of_zip(remote: _RangeFile, where: str) -> dict[str, StoredTensor]:
    program, place = _archive(remote, where)
    records = state_dict(load(io.BytesIO(program), where), where)
    return _all_placed(records, place, where)


def _archive(remote: _RangeFile, where: str) -> tuple[bytes, _Place]:
    """Return an archive's pickle, and what tells where a storage's bytes begin and end."""
    try:
        archive = zipfile.ZipFile(remote)
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"{len(pickles)} records called data.pkl")
        prefix = pickles[0].filename.removesuffix("data.pkl")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise ValueError(f"record {entry.filename} is compressed or encrypted")
        begins = _data_starts(entries, archive.start_dir)
        byte_order = _record(remote, begins, prefix + "byteorder")
        if byte_order not in (b"", b"little"):
            raise ValueError(f"byte order {byte_order[:20]!r}")
        program = _record(remote, begins, prefix + "data.pkl")
    except HallmarksError:  # of reading
        raise
    except Exception as error:  # zipfile raises many kinds on hostile archives
        raise FormatError(
            f"{where}: not an archive of torch.save: {quoted(error, 120)}",
            "the file is truncated or damaged: fetch it again, or leave the checkpoint out",
        ) from None

    def place(storage: Storage) -> tuple[int, int]:
        found = begins.get(f"{prefix}data/{storage.key}")
        if found is None:
            raise FormatError(f"{where}: storage {quoted(storage.key)} is absent")
        return found

    return program, place


def _data_starts(entries: list[zipfile.ZipInfo], directory: int) -> dict[str, tuple[int, int]]:
    """Return (start, stop) of every record's bytes, with no read of the local headers.

    Where torch's writer puts them is known; that it was torch's writer shows in the next record
    beginning where this one, with its descriptor, ends.
    """
    found: dict[str, tuple[int, int]] = {}
    nexts = [entry.header_offset for entry in entries[1:]] + [directory]
    for entry, following in zip(entries, nexts, strict=True):
        start = entry.header_offset + _LOCAL_HEADER_BYTES + len(entry.filename.encode()) + 4
        if entry.file_size >= _4GIB or entry.header_offset >= _4GIB:
            start += 4
            start += 16 if entry.file_size >= _4GIB else 0
            start += 8 if entry.header_offset >= _4GIB else 0
        start = -(-start // _ALIGNMENT) * _ALIGNMENT
        stop = start + entry.file_size
        if following - stop not in _DESCRIPTORS:
            raise ValueError(f"record {entry.filename} does not lie where torch.save puts it")
        found[entry.filename] = (start, stop)
    if len(found) != len(entries):
        raise ValueError("two records of one name")
    return found


def _record(remote: _RangeFile, begins: dict[str, tuple[int, int]], name: str) -> bytes:
    if name not in begins:
        return b""
    start, stop = begins[name]
    if stop - start > MAX_PICKLE_BYTES:
        raise ValueError(f"record {name} of {stop - start:,} bytes")
    return remote.at(start, stop)


def _of_legacy(remote: _RangeFile, size: int, where: str) -> dict[str, StoredTensor]:
    """Read on until the pickles end: how long they are is not written anywhere."""
    length = 0
    while True:
        length = min(size, max(4 * _BLOCK_BYTES, 4 * length))
        stream = io.BytesIO(remote.at(0, length))
        try:
            magic, protocol, _, found, keys = (load(stream, where) for _ in range(5))
            break
        except FormatError:
            if length == size or length > MAX_PICKLE_BYTES:
                raise
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(keys, list):
        raise FormatError(f"{where}: expected a file of torch.save, found another pickle")
    records = state_dict(found, where)
    storages = {record.storage.key: record for record in records.values()}
    places: dict[str, tuple[int, int]] = {}
    position = stream.tell()
    for key in keys:
        if key not in storages:
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

    return _all_placed(records, place, where)


def _all_placed(
    records: dict[str, TensorRecord], place: _Place, where: str
) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    left = MAX_RUNS
    for name, record in records.items():
        found[name] = _placed(name, record, place, where, left)
        left -= len(found[name].runs)
    return found


def _placed(
    name: str, record: TensorRecord, place: _Place, where: str, most_runs: int
) -> StoredTensor:
    """Return where a tensor lies, checked against its storage's place."""
    begin, end = place(record.storage)
    itemsize = DTYPES[record.dtype].itemsize
    start = begin + record.offset * itemsize
    stop = start + extent(record) * itemsize
    if stop > end:
        raise FormatError(
            f"{where}: expected tensor {quoted(name)} within its storage of {end - begin:,} bytes,"
            f" found it to end at {stop - begin:,}"
        )
    order = storage_order(record)
    if order is not None:
        order = () if order == tuple(sorted(order)) else order
        return StoredTensor(record.dtype, record.shape, start, stop, order)
    found = runs(record, most_runs)
    if found is None:
        return StoredTensor(record.dtype, record.shape, start, stop, (-1,))
    places = tuple(Run(first, 0, start + offset * itemsize) for first, offset in found)
    return StoredTensor(record.dtype, record.shape, start, stop, (), places)
