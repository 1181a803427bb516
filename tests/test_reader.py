"""The reader of a process: ranges of a file, whatever happens to it, and what is counted of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import Interrupted, SourceChanged, TransientReadError
from pipeline.execute.work.urls import UrlBroker
from pipeline.planning.make import make_plan
from pipeline.planning.request import Request
from pipeline.transport import local
from pipeline.transport.access import LocalPath
from pipeline.transport.reader import Range, Reader
from tests.suites import write_suite


@pytest.fixture
def broker(tmp_path: Path) -> UrlBroker:
    """Of a directory with three checkpoints."""
    suite = write_suite(tmp_path / "suite", {"w": np.random.default_rng(0).random((3, 1000))})
    return UrlBroker(*make_plan(Request(str(suite))))


@pytest.fixture
def path(broker: UrlBroker, tmp_path: Path) -> Path:
    del broker
    return tmp_path / "suite" / "step0" / "model.safetensors"


def test_ranges_of_a_file_come_in_any_order_and_number(broker: UrlBroker, path: Path) -> None:
    content, buffers = path.read_bytes(), [bytearray(size) for size in (10, 0, 3000, 1)]
    starts = (50, 7, 100, len(content) - 1)
    Reader(broker).read(0, [(s, memoryview(b)) for s, b in zip(starts, buffers, strict=True)])
    for start, buffer in zip(starts, buffers, strict=True):
        assert buffer == content[start : start + len(buffer)]


class During(list[Range]):
    """Ranges, before the last of which something happens to their file."""

    def __init__(self, ranges: list[Range], happens: str, path: Path) -> None:
        super().__init__(ranges)
        self._happens, self._path = happens, path

    def __iter__(self) -> Iterator[Range]:
        *first, last = super().__iter__()
        yield from first
        content = self._path.read_bytes()
        if self._happens == "overwritten":
            with self._path.open("r+b") as file:
                file.write(content[:100] + b"x" * 100)
        elif self._happens == "shortened":
            os.truncate(self._path, 1000)
        else:
            self._path.with_name("new").write_bytes(content)
            self._path.with_name("new").replace(self._path)
        yield last


@pytest.mark.parametrize("happens", ["overwritten", "shortened", "replaced"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    broker: UrlBroker, path: Path, happens: str
) -> None:
    """Also if what was read by then is what was planned: nobody knows of the next block."""
    access = Reader(broker).access(0)
    assert isinstance(access, LocalPath)
    ranges = [(start, memoryview(bytearray(500))) for start in (0, 1000, 2000)]
    with pytest.raises(SourceChanged, match="changed since it was planned"):
        local.read(access, During(ranges, happens, path))


def test_what_is_in_flight_and_pulled_is_counted(broker: UrlBroker, path: Path) -> None:
    counted: Counter[str] = Counter()
    reader = Reader(broker, lambda **more: counted.update(more))
    ranges = [(start, memoryview(bytearray(100))) for start in (0, 200)]
    reader.read(0, ranges)
    assert counted == {"bytes_pulled": 200, "bytes_in_flight": 0}
    path.unlink()
    with pytest.raises(
        TransientReadError, match=r"step0/model\.safetensors\[0:100\]: No such file"
    ):
        reader.read(0, ranges)
    assert counted == {"bytes_pulled": 200, "bytes_in_flight": 0}


def test_a_closed_reader_reads_no_more(broker: UrlBroker) -> None:
    reader = Reader(broker)
    reader.close()
    with pytest.raises(Interrupted):
        reader.read(0, [(0, memoryview(bytearray(1)))])


def test_what_could_not_be_had_is_asked_for_again(broker: UrlBroker) -> None:
    """Also after an error that nobody expected: no thread waits for an answer that never comes."""
    accesses = broker.accesses
    broker.accesses = lambda *_: 1 / 0
    reader = Reader(broker)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            reader.accesses([0, 1])
    broker.accesses = accesses
    assert len(reader.accesses([0, 1])) == 2
