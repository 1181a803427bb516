"""Records: what is kept of each checkpoint of a run that is followed, which is read once.

They lie under `_follow/run=<run>/<series>/` as `<number>-<version>.safetensors`, in the form of result
files: the sums of all parts of one checkpoint, and a text that says what it is. Each is created if absent,
and never changed; of several records of one checkpoint the one with the greatest number counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StoreUnusable
from pipeline.statistics.parts import Sums
from pipeline.statistics.statistic import ArraySpec
from pipeline.store.folder import Folder
from pipeline.store.tiles import ABOUT, decode, encode

_NAME = re.compile(r"(\d{6})-([0-9a-f]{16})\.safetensors")
_MOST_HEADER = 256 << 20
"""What a header may claim to have: 100,000 parts take 40 MB."""
_REQUESTS = 16
"""At once: on object storage each takes 10 to 100 ms."""
_TYPES = {"F64": "f8", "I64": "i8", "U64": "u8", "U32": "u4", "BOOL": "?"}


@dataclass(frozen=True, slots=True)
class _Array:
    """Where an array lies in a file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Its first byte."""

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:])) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as its header tells of it."""

    name: str
    text: str
    device: str
    arrays: dict[str, _Array]

    @property
    def number(self) -> int:
        """Records that came later have greater ones."""
        return int(self.name[:6])

    @property
    def version(self) -> str:
        """What tells the files that were read from those that came in their place."""
        return self.name[7:23]


class RecordFolder:
    """The records of one series: of one run, made in one way."""

    def __init__(self, folder: Folder, run: str, series: str) -> None:
        """`series`: digest of all that decides what a record is of a checkpoint."""
        self._folder = folder
        self._of_run = f"_follow/run={run}"
        self._prefix = f"{self._of_run}/{series}"
        self._sound: set[str] = set()
        """Records whose checksum has been compared."""

    def stored(self) -> tuple[list[Stored], list[str]]:
        """Return all records, in the order in which they came, and the names of what cannot be read."""
        paths = self._folder.list(self._prefix)
        names = [name for path in paths if _NAME.fullmatch(name := path.rpartition("/")[2])]
        with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="records") as pool:
            headers = list(pool.map(self._header, names))
        sound = [header for header in headers if header is not None]
        return sound, [n for n, header in zip(names, headers, strict=True) if header is None]

    def create(self, number: int, version: str, sums: Sums, text: str) -> Stored:
        """Write a record.

        Raises:
            StoreUnusable: it cannot be written, or another has that name.
        """
        name = f"{number:06d}-{version}.safetensors"
        data = encode(sums, text)
        if not self._folder.create(self._path(name), data):
            raise StoreUnusable(
                f"{self._path(name)} has other contents", "who else writes this run?"
            )
        self._sound.add(name)
        header = _parsed(name, data[8 : 8 + _length(data)])
        if header is None:
            raise AssertionError("a record that has just been encoded")
        return header

    def check(self, record: Stored, specs: Sequence[ArraySpec]) -> None:
        """Compare a record with its checksum, once.

        Raises:
            FormatError: it is damaged or gone, or holds other arrays.
        """
        if record.name not in self._sound:
            decode(self._folder.read(self._path(record.name)) or b"", specs)
            self._sound.add(record.name)

    def rows(self, record: Stored, rows: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Return some rows of the arrays of a record, in the order asked for.

        Raises:
            StoreUnusable: the record is gone.
        """
        order = np.argsort(rows, kind="stable")
        stretches = list(_stretches(np.asarray(rows)[order].tolist()))
        arrays: dict[str, NDArray[Any]] = {}
        for name, array in record.arrays.items():
            size = array.row_bytes
            read = b"".join(
                self._folder.read_range(
                    self._path(record.name), array.start + first * size, array.start + stop * size
                )
                for first, stop in stretches
            )
            values = np.frombuffer(read, array.dtype).reshape(-1, *array.shape[1:])
            arrays[name] = np.empty_like(values)
            arrays[name][order] = values
        return arrays

    def remove(self, names: Iterable[str]) -> None:
        """Remove records."""
        self._folder.delete([self._path(name) for name in names])

    def remove_others(self) -> None:
        """Remove the records of other series of this run."""
        paths = self._folder.list(self._of_run)
        self._folder.delete([path for path in paths if not path.startswith(self._prefix + "/")])

    def told(self) -> list[Any]:
        """Return what `tell` was given last."""
        try:
            told = json.loads(self._folder.read(f"{self._prefix}/told") or b"[]")
        except (ValueError, RecursionError):
            return []
        return told if isinstance(told, list) else []

    def tell(self, told: Sequence[Any]) -> None:
        """Keep of which findings somebody was told."""
        self._folder.replace(f"{self._prefix}/told", json.dumps(told).encode())

    def _header(self, name: str) -> Stored | None:
        try:
            length = _length(self._folder.read_range(self._path(name), 0, 8))
            if length > _MOST_HEADER:
                return None
            return _parsed(name, self._folder.read_range(self._path(name), 8, 8 + length))
        except StoreUnusable:
            if self._folder.remote:
                raise
            return None  # cut

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}"


def has_records(folder: Folder, run: str) -> bool:
    """Return True if anything is kept of a run that was followed."""
    return bool(folder.list(f"_follow/run={run}"))


def discard_records(folder: Folder, run: str) -> None:
    """Remove all that is kept of a run because it was followed."""
    folder.delete(folder.list(f"_follow/run={run}"))


def _length(data: bytes) -> int:
    return int.from_bytes(data[:8], "little")


def _parsed(name: str, header: bytes) -> Stored | None:
    """Return what a header tells; None: it is none of a record."""
    try:
        entries = json.loads(header)
        about = json.loads(entries.pop("__metadata__")[ABOUT])
        base = 8 + len(header)
        arrays = {
            each: _Array(
                _TYPES[entry["dtype"]],
                tuple(int(size) for size in entry["shape"]),
                base + int(entry["data_offsets"][0]),
            )
            for each, entry in entries.items()
        }
        del arrays["keys"]
        return Stored(name, str(about["text"]), str(about["device"]), arrays)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _stretches(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield ascending rows as ranges."""
    begins = chain([0], (n for n in range(1, len(rows)) if rows[n] != rows[n - 1] + 1))
    starts = [*begins] if rows else []
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        yield rows[start], rows[stop - 1] + 1
