"""Changes at random, by a seed: of bytes, of JSON, of pickles, of zip archives."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

_NUMBERS = (0, 1, 2, 127, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
_LONG = 1 << 16


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return other bytes: some overwritten, cut, repeated, moved."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not found:
            break
        at = rng.randrange(len(found))
        length = min(rng.choice((1, 2, 4, 8, 40, 400)), len(found) - at)
        match rng.randrange(7):
            case 0:
                found[at] = rng.randrange(256)
            case 1:
                found[at] ^= 1 << rng.randrange(8)
            case 2:
                size = rng.choice("BHIQ")
                number = rng.choice(_NUMBERS) % (1 << 8 * struct.calcsize(size))
                found[at : at + struct.calcsize(size)] = struct.pack(f"<{size}", number)
            case 3:
                del found[at : at + length]
            case 4:
                found[at:at] = found[at : at + length] * rng.choice((1, 2, 100))
            case 5:
                other = rng.randrange(len(found))
                found[at : at + length] = found[other : other + length]
            case 6 if rng.random() < 0.3:
                del found[at:]
            case _:
                found[at:at] = rng.randbytes(length)
    return bytes(found)


_ODD: tuple[Callable[[random.Random], Any], ...] = (
    lambda rng: None,
    lambda rng: rng.random() < 0.5,
    lambda rng: rng.choice(_NUMBERS),
    lambda rng: -rng.choice(_NUMBERS),
    lambda rng: 10 ** rng.choice((20, 400)),
    lambda rng: rng.choice((0.5, 1e300, float("nan"), float("inf"), -0.0)),
    lambda rng: rng.choice(("", "x", "0", "é\n\x1b[2J", "\ud800", "../../x", "a" * _LONG, "\0")),
    lambda rng: [],
    lambda rng: {},
    lambda rng: [1] * rng.choice((1, 100, 10_000)),
    lambda rng: {str(n): n for n in range(rng.choice((1, 1000)))},
)


def changed_json(rng: random.Random, text: bytes) -> bytes:
    """Return JSON with other values here and there, or what is no JSON any more."""
    if rng.random() < 0.2:
        return changed_bytes(rng, text)
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        value = _with_odd(rng, value)
    found = json.dumps(value)
    if rng.random() < 0.05:
        depth = rng.choice((10, 1000, 100_000))
        nested = rng.choice(("[", '{"a":'))
        at = rng.choice([n for n, c in enumerate(found) if c in "[{:,"] or [0]) + 1
        found = found[:at] + nested * depth + found[at:]
    return found.encode("utf-8", "surrogatepass")


def _with_odd(rng: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            kept = {k: v for k, v in value.items() if k != key}
            return kept if rng.random() < 0.5 else {**kept, rng.choice(("", "x", "é")): value[key]}
        return {**value, key: _with_odd(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        return [*value[:at], _with_odd(rng, value[at]), *value[at + 1 :]]
    if isinstance(value, int) and rng.random() < 0.3:
        return value + rng.choice((-1, 1, 8))
    return rng.choice(_ODD)(rng)


def changed_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Return a file with another header, whose length is right."""
    if rng.random() < 0.3:
        return changed_bytes(rng, data)
    (length,) = struct.unpack("<Q", data[:8])
    header = changed_json(rng, data[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


_OPCODES = (
    b"()]}0N\x88\x89tasueq\x00h\x00h\x01h\x02lRbQ\x85\x86\x87\x8c\x01a\x94K\x01J\xff\xff\xff\x7f"
)


def changed_pickle(rng: random.Random, data: bytes) -> bytes:
    """Return a pickle with instructions of another kind, or repeated, among its own."""
    if rng.random() < 0.4:
        return changed_bytes(rng, data)
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(2, max(3, len(found)))
        first = rng.randrange(len(_OPCODES))
        some = _OPCODES[first : first + rng.choice((1, 2, 3, 6))]
        found[at:at] = some * rng.choice((1, 1, 1, 30, 10_000))
    return bytes(found)


def archive(program: bytes, storages: dict[str, bytes]) -> bytes:
    """Return a zip archive with its records where torch's writer puts them."""
    out, directory = bytearray(), bytearray()
    records = {"a/data.pkl": program, "a/byteorder": b"little"}
    records |= {f"a/data/{key}": values for key, values in storages.items()}
    for name, data in records.items():
        begin, stored = len(out), name.encode()
        start = -(-(begin + 30 + len(stored) + 4) // 64) * 64
        padding = start - begin - 30 - len(stored)
        sizes = (0, len(data), len(data), len(stored))
        out += struct.pack("<4s5H3I2H", b"PK\x03\x04", 0, 0, 0, 0, 0, *sizes, padding)
        out += stored + b"FB" + struct.pack("<H", padding - 4) + b"Z" * (padding - 4) + data
        where = (0, 0, 0, 0, 0, begin)
        directory += struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *[0] * 6, *sizes, *where) + stored
    count, start = len(records), len(out)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), start, 0)
    return bytes(out + directory + end)
