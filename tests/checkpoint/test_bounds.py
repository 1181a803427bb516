"""What a hostile file of a few bytes, or of a few MiB, costs: memory, time, and one line."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.checkpoint.formats import read_header
from tests.checkpoint import in_memory
from tests.fuzz.mutate import archive

MIB = 1 << 20
SECONDS = 60.0
"""Each takes 1 to 4 s on an idle machine, most of it Python's start."""

_CHILD = """
import re, sys
from pathlib import Path
from pipeline.checkpoint.roles import role
from pipeline.checkpoint.formats import read_header
from pipeline.checkpoint.shards import weight_files
from pipeline.errors import HallmarksError
from tests.checkpoint import in_memory
path = Path(sys.argv[1])
data = path.read_bytes()

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = peak()
try:
    match path.suffix:
        case ".name":
            print(role(data.decode()).component)
        case ".json":
            print(len(weight_files({path.name, "a"}, lambda _: data, "x").paths))
        case _:
            print(len(read_header(in_memory(data, path.name))))
except HallmarksError as error:
    print(error.message)
print(peak() - before)
"""


def cost(path: Path) -> tuple[str, int]:
    """Return what reading a file says, and the bytes it takes at most, beside the file's own."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path)], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    said, taken = done.stdout.splitlines()
    return said, int(taken)


def nested(depth: int, more: bytes) -> bytes:
    """Return instructions that nest a value in itself, twice each time, and remember it last."""
    each = [b"](h%ch%ceq%c0" % (n, n, n + 1) for n in range(depth)]
    if more == b"tuple":
        each = [b"h%ch%c\x86q%c0" % (n, n, n + 1) for n in range(depth)]
    return (b"]" if more == b"list" else b")") + b"q\x000" + b"".join(each) + b"h%c" % depth


def storage_key(size: int) -> bytes:
    location = b"X\x03\x00\x00\x00cpu"
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    return archive(b"\x80\x02" + storage + nested(60, b"list") + location + b"K\x01tQ.", {})


def dictionary_key(size: int) -> bytes:
    return archive(b"\x80\x02}" + nested(60, b"tuple") + b"Ns.", {})


def path_of_one_text(size: int) -> bytes:
    """60 parts, each of which is one text of a million characters; as a key of a storage."""
    text = b"X" + struct.pack("<I", 1_000_000) + b"a" * 1_000_000 + b"q\x000"
    return archive(b"\x80\x02" + text + b"(" + b"h\x00" * 60 + b"t.", {})


def directory_of_many(size: int) -> bytes:
    """Records without a byte in them."""
    count = size // 54
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *[0] * 9, 8, *[0] * 6)
    entries = b"".join(entry + b"%08d" % n for n in range(count))
    start, stop = 4, 4 + len(entries)
    fields = (44, 45, 45, 0, 0, count, count, stop - start, start)
    end = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", *fields)
    end += struct.pack("<4sIQI", b"PK\x06\x07", 0, stop, 1)
    end += struct.pack("<4s4H2IH", b"PK\x05\x06", *[0xFFFF] * 4, *[0xFFFF_FFFF] * 2, 0)
    return b"PK\x03\x04" + entries + end


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def tensors(size: int) -> bytes:
    one = '"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return header(("{" + ",".join(one % n for n in range(size // 56)) + "}").encode())


def weight_map(size: int) -> bytes:
    return ('{"weight_map":{' + ",".join(f'"{n:x}":"a"' for n in range(size // 12)) + "}}").encode()


INDEX = "model.safetensors.index.json"
# name: (file, contents of about so many bytes, how many, times its length that may be taken)
HOSTILE: dict[str, tuple[str, Callable[[int], bytes], int, int]] = {
    "nested lists as a storage key": ("x.bin", storage_key, 0, 0),
    "nested tuples as a key": ("x.bin", dictionary_key, 0, 0),
    "one long text, many times": ("x.bin", path_of_one_text, 0, 4),
    "dictionaries": (
        "x.bin", lambda n: archive(b"\x80\x02(" + b"}" * n + b"l.", {}), 10 * MIB, 26),
    "lists, remembered": (
        "x.bin", lambda n: archive(b"\x80\x04(" + b"]\x94" * (n // 2) + b"l.", {}), 10 * MIB, 26),
    "marks": ("x.bin", lambda n: archive(b"\x80\x04" + b"(" * n + b"l.", {}), 10 * MIB, 26),
    "a zip directory": ("x.bin", directory_of_many, 19 * MIB, 6),
    "a header of lists": (
        "x.safetensors", lambda n: header(b'{"a":[' + b"[]," * (n // 3) + b"0]}"), 21 * MIB, 4),
    "a header of tensors": ("x.safetensors", tensors, 21 * MIB, 14),
    "an index with lists": (
        INDEX,
        lambda n: b'{"metadata":[' + b"[]," * (n // 3) + b'0],"weight_map":{"a":"a"}}',
        21 * MIB, 4),
    "an index of many tensors": (INDEX, weight_map, 21 * MIB, 4),
    "ln_ and digits": ("x.name", lambda n: b"ln_" * 3000 + b"1" * 3000, 0, 0),
    "ln_ and no end": ("x.name", lambda n: b"ln_" * 100_000, 0, 4),
    "parts of names": ("x.name", lambda n: b"layers.experts.1norm1.word_embed" * 10_000, 0, 40),
}  # fmt: skip


@pytest.mark.parametrize("share", [0.1, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", HOSTILE)
def test_reading_takes_a_small_multiple_of_a_file(name: str, share: float, tmp_path: Path) -> None:
    file, contents, size, times = HOSTILE[name]
    if share == 1.0 and not size:
        pytest.skip("there is one size of it")
    (tmp_path / file).write_bytes(contents(int(size * share)))
    said, taken = cost(tmp_path / file)
    print(f"{taken / MIB:.1f} MiB for {(tmp_path / file).stat().st_size / MIB:.2f}: {said[:80]}")
    assert len(said) < 500
    assert taken <= 8 * MIB + times * (tmp_path / file).stat().st_size


def test_real_pickles_are_well_within() -> None:
    """Those that build most for their length: many small objects beside few tensors."""
    network = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(300)])
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    rows = [{"loss": 0.1 * n, "step": n, "lr": [n, str(n)]} for n in range(20_000)]
    state = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "log": rows}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    found = read_header(in_memory(data, "x.bin"))
    assert found.keys() == network.state_dict().keys()


def test_long_metadata_beside_the_tensors(tmp_path: Path) -> None:
    """Trainers keep whole configurations in a header: texts are of any length there."""
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(2)}, path, {"config": json.dumps(list(range(100_000)))})
    data = path.read_bytes()
    assert set(read_header(in_memory(data, path.name))) == {"w"}
