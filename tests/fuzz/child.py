"""Reads changed inputs for a while, within limits: `python -m tests.fuzz.child --help`.

An input is a reader's name and a number; with the seed they make it again. What is wrong ends the
process with the traceback and the input's name; an input that takes too long likewise, wherever the
process is: the interpreter's watchdog does not wait for it to come back.
"""

from __future__ import annotations

import faulthandler
import http.server
import json
import math
import os
import random
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import click

LONGEST_S = 60.0
"""For one input; the slowest take 0.1 s on an idle machine."""
MEMORY = 192 << 20
"""More than the process has when all readers have read something: each input is below 2 MB."""

Reader = Callable[[random.Random], None]


def readers(corpus: Path) -> dict[str, Reader]:
    """Return what reads one changed input, by name."""
    from tests.fuzz import mutate

    def contents(name: str) -> bytes:
        return (corpus / name).read_bytes()

    def of_file(name: str, change: Callable[[random.Random, bytes], bytes]) -> Reader:
        return lambda rng: _read_weights(change(rng, contents(name)), name)

    def of_pickle(rng: random.Random) -> None:
        program, storages = _records(contents("pickle.bin"))
        _read_weights(mutate.archive(mutate.changed_pickle(rng, program), storages), "x.bin")

    def of_metadata(rng: random.Random) -> None:
        _read_distributed(corpus / "dcp", mutate.changed_pickle(rng, contents("dcp/.metadata")))

    def of_tile(rng: random.Random) -> None:
        _read_tile(mutate.changed_safetensors(rng, contents("tile.safetensors")))

    found: dict[str, Reader] = {
        "safetensors": of_file("x.safetensors", mutate.changed_safetensors),
        "zip": of_file("zip.bin", mutate.changed_bytes),
        "legacy": of_file("legacy.bin", mutate.changed_pickle),
        "pickle": of_pickle,
        "metadata": of_metadata,
        "tile": of_tile,
        "index": lambda rng: _read_index(
            mutate.changed_json(rng, contents("suite/step1/model.safetensors.index.json"))
        ),
        "name": lambda rng: _read_name(
            mutate.changed_bytes(rng, b"model.layers.0.mlp.ln_1.weight")
        ),
    }
    for name in ("config.json", "a.safetensors", "model.safetensors.index.json"):
        change = mutate.changed_safetensors if name.startswith("a") else mutate.changed_json
        found[f"suite {name}"] = _planned(corpus / "suite", f"step1/{name}", change)
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        found[name] = _manifest(corpus / name)
    for answer in sorted((corpus / "hub").rglob("answer.json")):
        path = str(answer.parent.relative_to(corpus / "hub"))
        found[f"hub {path}"] = _listing(corpus / "hub", path)
    return found


def _read_weights(data: bytes, name: str) -> None:
    from pipeline.checkpoint.formats import read_header
    from tests.checkpoint import in_memory

    for place in read_header(in_memory(data, name)).values():
        _check_place(place, [len(data)])


def _check_place(place: Any, sizes: list[int]) -> None:
    """Check that what is read as a tensor lies in the file, whole."""
    from pipeline.checkpoint.dtypes import DTYPES

    assert place.numel == math.prod(place.shape) < 2**63
    if place.unreadable:
        assert place.unreadable.isprintable() and place.dtype.isprintable()
        return
    size = DTYPES[place.dtype].bits / 8
    if place.extents:
        stops = [*(extent.first for extent in place.extents[1:]), place.numel]
        for extent, stop in zip(place.extents, stops, strict=True):
            assert extent.first < stop
            end = extent.start + (stop - extent.first) * size
            assert 0 <= extent.start <= end <= sizes[extent.file]
    elif place.order != (-1,):
        assert 0 <= place.start <= place.stop <= sizes[0]
        assert place.stop - place.start == place.numel * size


def _records(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        found = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    storages = {n.partition("/")[2]: d for n, d in found.items() if n.startswith("data/")}
    return found["data.pkl"], storages


def _read_distributed(folder: Path, metadata: bytes) -> None:
    from pipeline.checkpoint.distributed import read_distributed
    from tests.checkpoint import in_memory

    chunks = [in_memory(path.read_bytes(), path.name) for path in sorted(folder.glob("*.distcp"))]
    found = read_distributed(in_memory(metadata, ".metadata", "x", *chunks))
    sizes = [len(metadata), *(chunk.size for chunk in chunks)]
    for place in found.values():
        _check_place(place, sizes)


def _read_tile(data: bytes) -> None:
    from pipeline.statistics.statistic import specs
    from pipeline.statistics.table import ALWAYS
    from pipeline.store.tiles import decode

    sums = decode(data, specs(ALWAYS, 5))  # as many checkpoints as the corpus has
    assert sums.arrays["gram.increments"].shape == (len(sums.keys), 15)


def _read_index(data: bytes) -> None:
    from pipeline.checkpoint.shards import weight_files

    named = weight_files(
        {"a.safetensors", "model.safetensors.index.json"}, lambda _: data, "x"
    ).paths
    assert named == ("a.safetensors",)


def _read_name(data: bytes) -> None:
    from pipeline.checkpoint.names import position
    from pipeline.checkpoint.parts import by_head, parts
    from pipeline.checkpoint.roles import role, roles

    name = data.decode("utf-8", "replace")
    position(name)
    found = roles({name: (4, 4), "layers.0.x.weight": (4,)})[name]
    by_head(parts(name, found.component, (4, 4), {}), 16, {})
    assert role(name).kind in ("weight", "bias")


def _planned(suite: Path, changed: str, change: Callable[[random.Random, bytes], bytes]) -> Reader:
    """Plan a directory in which one file is another."""
    original, copy = (suite / changed).read_bytes(), Path(tempfile.mkdtemp()) / "suite"
    shutil.copytree(suite, copy)

    def plan(rng: random.Random) -> None:
        from pipeline.planning.make import make_plan
        from pipeline.planning.request import Request

        (copy / changed).write_bytes(change(rng, original))
        make_plan(Request(str(copy), by_head=True))

    return plan


def _manifest(table: Path) -> Reader:
    changed = Path(tempfile.mkdtemp()) / table.name

    def plan(rng: random.Random) -> None:
        from pipeline.planning.make import make_plan
        from pipeline.planning.request import Request
        from tests.fuzz import mutate

        text = table.read_bytes()
        if table.suffix == ".jsonl" and rng.random() < 0.7:
            rows = [mutate.changed_json(rng, row) for row in text.split(b"\n")]
            changed.write_bytes(b"\n".join(rows))
        else:
            changed.write_bytes(mutate.changed_bytes(rng, text))
        make_plan(Request(str(changed)))

    return plan


def _listing(answers: Path, changed: str) -> Reader:
    """Ask a Hub for its listings, one of which is another."""
    bodies = {
        "/" + str(path.parent.relative_to(answers)): path.read_bytes()
        for path in answers.rglob("answer.json")
    }
    original = bodies[f"/{changed}"]

    def ask(rng: random.Random) -> None:
        from huggingface_hub import constants

        from pipeline.sources.hub import HubRepository
        from tests.fuzz import mutate

        if not constants.ENDPOINT.startswith("http://127."):
            raise AssertionError("the client was imported before its endpoint was set")
        _Answers.bodies = {**bodies, f"/{changed}": mutate.changed_json(rng, original)}
        for layout in ("revisions", "folders", "commits"):
            source = HubRepository("org/fuzzed", None, layout)
            for candidate in source.candidates()[:1]:
                assert all(file.size >= 0 for file in source.files(candidate))

    return ask


class _Answers(http.server.BaseHTTPRequestHandler):
    """A Hub of canned answers: every commit's tree is the same one."""

    bodies: ClassVar[dict[str, bytes]] = {}
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        tree = next((body for name, body in self.bodies.items() if "/tree/" in name), b"[]")
        body = tree if "/tree/" in path else self.bodies.get(path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")


def _serve() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()


def _attempt(reader: Reader, rng: random.Random) -> bool:
    """Return whether an input is read; else it was refused, as it should be."""
    from pipeline.errors import HallmarksError

    try:
        reader(rng)
    except HallmarksError as error:
        assert "\n" not in error.message and len(error.message) < 2000, error.message
        assert error.message.isprintable(), error.message
        return False
    return True


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _inputs(names: list[str], seconds: float) -> Iterator[tuple[str, int]]:
    """Give every reader as much time, and one input at least: a busy machine takes it all for a few."""
    taken, numbers = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    while sum(taken.values()) < seconds or not all(numbers.values()):
        name = min(taken, key=lambda name: taken[name])
        started = time.monotonic()
        yield name, numbers[name]
        taken[name] += time.monotonic() - started
        numbers[name] += 1


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.argument("seed", type=int)
@click.argument("seconds", type=float)
@click.argument("only", required=False)
def main(corpus: Path, seed: int, seconds: float, only: str | None) -> None:
    """Read changed inputs of CORPUS for SECONDS, by SEED; ONLY names one, as READER:NUMBER."""
    _serve()
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    found = readers(corpus)
    for reader in found.values():  # so that everything is imported and has its threads
        _attempt(reader, random.Random(0))
    _limit_memory()
    name, _, number = (only or "").rpartition(":")
    inputs = [(name, int(number))] if only else _inputs(list(found), seconds)
    counts = {name: [0, 0] for name in found}
    current = os.open(corpus / "current", os.O_WRONLY | os.O_CREAT)
    for name, number in inputs:
        faulthandler.dump_traceback_later(LONGEST_S, exit=True)
        os.pwrite(current, f"{name}:{number}".ljust(200).encode(), 0)
        counts[name][_attempt(found[name], random.Random(f"{seed} {name} {number}"))] += 1
        faulthandler.cancel_dump_traceback_later()
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
