"""A synthetic suite, served by a process of its own.

What a server costs can then be told from what its client costs, which is why the benchmarks of
reading use it. The suite takes one buffer of memory however large it is: every weight file is a
header and a view of the same random float16 values, begun at another place. So checkpoints have
different contents and true hashes, and their figures mean nothing.

    with served(Suite(32, 2, 3_200_000_000)) as hub:
        subprocess.run(command, env=os.environ | hub.environment)
        print(hub.counts())
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tests.hub import Authority, Fault, Hub, Record

NAME = "org/suite"
_BUFFER_BYTES = 64 << 20
_CLASSES = {"cdn": "ranges", "resolve_head": "resolvers", "resolve_get": "resolvers"}


@dataclass(frozen=True)
class View:
    """A header, and values from the buffer, which begins again where it ends."""

    header: bytes
    num_bytes: int
    buffer: memoryview
    first: int

    @property
    def size(self) -> int:
        return len(self.header) + self.num_bytes

    def read(self, start: int, stop: int) -> bytes | memoryview:
        found = [self.header[start:stop]] if start < len(self.header) else []
        at, end = max(0, start - len(self.header)), stop - len(self.header)
        while at < end:
            place = (self.first + at) % len(self.buffer)
            piece = self.buffer[place : place + end - at]
            found.append(piece)
            at += len(piece)
        return found[0] if len(found) == 1 else b"".join(found)


@dataclass(frozen=True)
class Suite:
    """Checkpoints `step0`, `step1`, …: as many layers as the bytes allow, then the embedding."""

    revisions: int
    shards: int
    total_bytes: int

    def files(self, revision: int) -> dict[str, bytes | View]:
        """Return one revision's files."""
        names = [f"model-{n + 1:05d}-of-{self.shards:05d}.safetensors" for n in range(self.shards)]
        weight_map = {name: names[shard] for shard, name, _ in self._placed}
        files: dict[str, bytes | View] = {
            "config.json": b"{}",
            "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
        }
        for shard, name in enumerate(names):
            shapes = [(tensor, shape) for there, tensor, shape in self._placed if there == shard]
            header, num_bytes = _header(shapes)
            share = (revision * self.shards + shard) / (self.revisions * self.shards)
            first = int(share * len(self._buffer)) // 2 * 2
            files[name] = View(header, num_bytes, self._buffer, first)
        return files

    def write(self, directory: Path) -> None:
        """Write the suite as folders of a directory."""
        for number in range(self.revisions):
            folder = directory / f"step{number}"
            folder.mkdir(parents=True)
            for name, content in self.files(number).items():
                data = content.read(0, content.size) if isinstance(content, View) else content
                (folder / name).write_bytes(data)

    @cached_property
    def _buffer(self) -> memoryview:
        values = np.random.default_rng(0).standard_normal(_BUFFER_BYTES // 2, np.float32)
        return memoryview((0.02 * values).astype(np.float16)).cast("B").toreadonly()

    @cached_property
    def _placed(self) -> list[tuple[int, str, tuple[int, ...]]]:
        """Shard, name and shape of each tensor of a checkpoint."""
        left = self.total_bytes // self.revisions // 2
        width = 1024
        while width > 64 and 2 * _layer_numel(width) > left:
            width //= 2
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(left // _layer_numel(width)):
            prefix = f"model.layers.{layer}."
            shapes |= {f"{prefix}self_attn.{x}_proj.weight": (width, width) for x in "qkvo"}
            shapes[prefix + "mlp.up_proj.weight"] = (4 * width, width)
            shapes[prefix + "mlp.down_proj.weight"] = (width, 4 * width)
            shapes[prefix + "input_layernorm.weight"] = (width,)
            shapes[prefix + "post_attention_layernorm.weight"] = (width,)
            left -= _layer_numel(width)
        shapes["model.embed_tokens.weight"] = (max(1, left // width), width)
        whole, before, placed = sum(map(_numel, shapes.values())), 0, []
        for name, shape in shapes.items():
            placed.append((before * self.shards // whole, name, shape))
            before += _numel(shape)
        return placed


def _layer_numel(width: int) -> int:
    return 12 * width * width + 2 * width


def _numel(shape: Iterable[int]) -> int:
    return int(np.prod(tuple(shape)))


def _header(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[bytes, int]:
    """Return the head of a safetensors file of float16 tensors, and the size of what follows."""
    entries, stop = {}, 0
    for name, shape in shapes:
        start, stop = stop, stop + 2 * _numel(shape)
        entries[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, stop]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, stop


@dataclass(frozen=True)
class Counts:
    """What a server did since it was last asked."""

    requests: dict[str, int]
    """By class: `api`, `resolvers`, `ranges`."""
    statuses: dict[str, int]
    """By class and status, such as `ranges 403`."""
    faults: dict[str, int]
    """Answers that were made to go wrong, by action."""
    weights: int
    """Bytes of weights in all files."""
    sent: int
    """Bytes of weights that were sent, repeated ones included."""
    covered: int
    """Bytes of weights that were sent once or more often."""
    cpu_seconds: float


@dataclass(frozen=True)
class Served:
    """A server from outside."""

    endpoint: str
    ca: str
    _pipe: Any

    @property
    def environment(self) -> dict[str, str]:
        """Variables that point a client here."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "SSL_CERT_FILE": self.ca,
            "NO_PROXY": "localhost,127.0.0.1",
        }

    def set(
        self,
        *,
        bytes_per_s: float | None = None,
        address_life_s: float = 3600,
        faults: Sequence[Fault] = (),
    ) -> None:
        """Say how it is to serve from now on."""
        self._ask("set", bytes_per_s, address_life_s, faults)

    def counts(self) -> Counts:
        """Return what it did since the last call."""
        return self._ask("counts")

    def addresses(self) -> list[tuple[str, int]]:
        """Return the signed address and the size of every weight file."""
        return self._ask("addresses")

    def _ask(self, *question: Any) -> Any:
        self._pipe.send(question)
        return self._pipe.recv()


@contextmanager
def served(suite: Suite, host: str | None = None) -> Iterator[Served]:
    """Serve the suite over TLS, as fast as it goes until told otherwise.

    Args:
        host: an address to listen on instead of loopback, without TLS.
    """
    here, there = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory(prefix="hallmarks-authority-") as folder:
        process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(suite, folder, there, host), daemon=True
        )
        process.start()
        there.close()
        try:
            yield Served(*here.recv(), here)
        finally:
            here.close()  # the server ends with its last question
            process.join()


def _serve(suite: Suite, folder: str, pipe: Any, host: str | None) -> None:
    hub, authority = Hub(), Authority(Path(folder))
    repository = hub.repository(NAME)
    for number in range(suite.revisions):
        repository.commit(suite.files(number), branch=f"step{number}")
    with hub.serve(None if host else authority, host) as endpoint:
        pipe.send((endpoint, str(authority.ca)))
        cpu_before = time.process_time()
        while True:
            try:
                question, *arguments = pipe.recv()
            except EOFError:
                return
            if question == "set":
                hub.bytes_per_s, hub.address_life_s, faults = arguments
                hub.faults.clear()
                for fault in faults:
                    hub.faults.add(fault)
                pipe.send(None)
            elif question == "counts":
                time.sleep(0.1)  # a range is noted after its last byte is sent
                records, hub.records = hub.records, []
                applied, hub.faults.applied = hub.faults.applied, []
                cpu = time.process_time()
                actions = Counter(fault.action for fault, _ in applied)
                pipe.send(_counted(hub, records, dict(actions), cpu - cpu_before))
                cpu_before = time.process_time()  # counting is no service
            else:
                pipe.send(
                    [
                        (hub.signed(NAME, commit.sha, path), file.size)
                        for commit in repository.commits.values()
                        for path, file in commit.files.items()
                        if isinstance(file.content, View)
                    ]
                )


def _counted(hub: Hub, records: list[Record], faults: dict[str, int], cpu_seconds: float) -> Counts:
    classes = [_CLASSES.get(record.kind, "api") for record in records]
    spans: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for record in records:
        if record.kind == "cdn" and record.range:
            spans.setdefault((record.commit, record.path), []).append(_weights(hub, record))
    contents = [
        file.content
        for commit in hub.repositories[NAME].commits.values()
        for file in commit.files.values()
    ]
    return Counts(
        requests=dict(Counter(classes)),
        statuses=dict(
            Counter(f"{kind} {r.status}" for kind, r in zip(classes, records, strict=True))
        ),
        faults=faults,
        weights=sum(content.num_bytes for content in contents if isinstance(content, View)),
        sent=sum(stop - start for each in spans.values() for start, stop in each),
        covered=sum(_covered(each) for each in spans.values()),
        cpu_seconds=cpu_seconds,
    )


def _weights(hub: Hub, record: Record) -> tuple[int, int]:
    """Return which bytes of weights a request was sent: none of a header."""
    content = hub.repositories[NAME].commits[record.commit].files[record.path].content
    assert isinstance(content, View) and record.range
    start, stop = (max(at, len(content.header)) for at in record.range)
    return start, stop


def _covered(spans: list[tuple[int, int]]) -> int:
    """Return the size of the union."""
    total = end = 0
    for start, stop in sorted(spans):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total
