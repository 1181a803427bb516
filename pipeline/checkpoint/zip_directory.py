"""The directory of a zip archive, as torch writes one: stored records, zip64 throughout.

`zipfile` makes an object of 600 bytes and more of every entry of 46.
Source of the form: PKWARE's APPNOTE, 4.3.12 to 4.3.16.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.checkpoint.weight_file import MAX_HEADER_BYTES, Read
from pipeline.errors import quoted

_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_EXTRA = struct.Struct("<HH")
_IN_EXTRA = 0xFFFF_FFFF  # a number that stands in the extra field, as it takes 64 bits
_ZIP64 = 1
_ENCRYPTED = 1


class Entry(NamedTuple):
    """One record of an archive."""

    name: str
    name_bytes: int
    """Length of the name as stored."""
    header: int
    """Where its local header begins."""
    size: int


def directory(read: Read, size: int) -> tuple[list[Entry], int]:
    """Return an archive's records in the order in which they lie, and where its directory begins.

    Args:
        read: gives the bytes [start, stop) of the archive.
        size: its size in bytes.

    Raises:
        ValueError: not an archive, or one with records that are compressed or encrypted.
    """
    start, length, count = _place(read, size)
    data = read(start, start + length)
    entries = sorted(_entries(data), key=lambda entry: entry.header)
    if len(entries) != count:
        raise ValueError(f"a directory of {count:,} records, found {len(entries):,}")
    return entries, start


def _place(read: Read, size: int) -> tuple[int, int, int]:
    """Return where the directory begins, its length, and how many records it has."""
    end = size - _END.size
    tail = read(max(0, end), size)
    if tail[:4] != b"PK\x05\x06":
        raise ValueError("no directory of a zip archive at its end")
    _, _, _, _, count, length, start, _ = _END.unpack(tail)
    locator = read(max(0, end - _LOCATOR.size), end)
    if locator[:4] == b"PK\x06\x07" and len(locator) == _LOCATOR.size:
        _, _, place, _ = _LOCATOR.unpack(locator)
        record = read(place, place + _END_64.size) if place < end else b""
        if record[:4] != b"PK\x06\x06" or len(record) != _END_64.size:
            raise ValueError("no zip64 end where its locator says")
        *_, count, length, start = _END_64.unpack(record)
        end = place
    if start + length != end:
        raise ValueError(f"a directory of {length:,} bytes at {start:,}, before an end at {end:,}")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a directory of {length:,} bytes")
    return start, length, count


def _entries(data: bytes) -> Iterator[Entry]:
    at = 0
    while at < len(data):
        if len(data) - at < _ENTRY.size or data[at : at + 4] != b"PK\x01\x02":
            raise ValueError(f"no record at byte {at:,} of the directory")
        (
            _, _, _, flags, method, _, _, _, packed, size, name_bytes, extra_bytes, comment_bytes,
            _, _, _, header,
        ) = _ENTRY.unpack_from(data, at)  # fmt: skip
        at += _ENTRY.size
        stop = at + name_bytes + extra_bytes + comment_bytes
        if stop > len(data):
            raise ValueError("a record that ends beyond the directory")
        name = data[at : at + name_bytes].decode()
        extra = data[at + name_bytes : at + name_bytes + extra_bytes]
        size, packed, header = _with_zip64(extra, (size, packed, header))
        if method or packed != size or flags & _ENCRYPTED:
            raise ValueError(f"record {quoted(name)} is compressed or encrypted")
        yield Entry(name, name_bytes, header, size)
        at = stop


def _with_zip64(extra: bytes, numbers: tuple[int, int, int]) -> Iterator[int]:
    """Yield the numbers, those that take 64 bits from the extra field."""
    long = iter(_zip64_numbers(extra) if _IN_EXTRA in numbers else ())
    for number in numbers:
        if number != _IN_EXTRA:
            yield number
        elif (number64 := next(long, None)) is not None:
            yield number64
        else:
            raise ValueError("a record whose size or place is not stated")


def _zip64_numbers(extra: bytes) -> tuple[int, ...]:
    at = 0
    while at + _EXTRA.size <= len(extra):
        kind, length = _EXTRA.unpack_from(extra, at)
        at += _EXTRA.size
        if kind == _ZIP64:
            numbers = extra[at : at + min(length, 24)]
            return struct.unpack(f"<{len(numbers) // 8}Q", numbers[: len(numbers) // 8 * 8])
        at += length
    return ()
