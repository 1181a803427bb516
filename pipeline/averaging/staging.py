"""The directory that a combination is written to: there as a whole or not at all.

Everything is written to DIR.partial, and renamed when it has been read back. In `.average` in it lie
what was asked for, the digests of the pieces that are written, in order, and a lock. What a process
leaves that was killed is taken up by the next one that is asked for the same.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.errors import HallmarksError, RequestError, quoted
from pipeline.files import write_synced
from pipeline.signals import uninterrupted

RECORD = "average.json"
"""What is written beside the weights: what they are made of."""
_NOTES, _REQUEST, _DIGESTS, _UNLIKE, _LOCK = ".average", "request.json", "digests", "unlike", "lock"
_DIGEST_BYTES = 8


def piece_digest(data: Any) -> int:
    """Return the digest of a piece's bytes."""
    return xxhash.xxh3_64_intdigest(data)


def finished(target: Path, digest: str) -> bool:
    """Return whether a directory holds what is asked for already.

    Raises:
        RequestError: it holds something else.
    """
    record = _record(target)
    if record is None:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise RequestError(
                f"{quoted(str(target))} is there, and not made by average", "choose another --out"
            )
        return False
    return record.get("digest") == digest and all(
        _size(target / name) == size for name, size in record["files"].items()
    )


def refuse_other(target: Path, digest: str) -> None:
    """Refuse to replace another combination, finished or not.

    Raises:
        RequestError: there is one.
    """
    for folder, record in ((target, _record(target)), (_partial(target), _asked(_partial(target)))):
        if record is not None and record.get("digest") != digest:
            raise RequestError(
                f"{quoted(str(folder))} is of another request",
                "choose another --out, or replace it with --replace",
            )


class Staging:
    """The unfinished directory, held by one process."""

    def __init__(self, target: Path, asked: Mapping[str, Any]) -> None:
        """Prepare; nothing is written before `open`.

        Args:
            asked: what the directory is to hold, with a `digest`.
        """
        self.target, self.folder, self._asked = target, _partial(target), asked
        self._notes = self.folder / _NOTES

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the directory; what another request has left in it is discarded.

        Raises:
            RequestError: another process writes it, or it is no directory of average.
        """
        notes, made = self._notes, not self.folder.exists()
        if not made and not notes.is_dir() and any(self.folder.iterdir()):
            raise RequestError(
                f"{quoted(str(self.folder))} is there, and not made by average", "move it away"
            )
        notes.mkdir(parents=True, exist_ok=True)
        with (notes / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RequestError(
                    f"another process writes {quoted(str(self.folder))}", "wait for it"
                ) from None
            if (_asked(self.folder) or {}).get("digest") != self._asked["digest"]:
                self._empty()
                write_synced(notes / _REQUEST, json.dumps(self._asked).encode())
            with (notes / _DIGESTS).open("ab") as self._digests:
                yield

    def done(self) -> int:
        """Return how many pieces are written; what follows them is written again."""
        done = self._digests.tell() // _DIGEST_BYTES
        self.forget(done)
        return done

    def forget(self, first: int) -> None:
        """Have the pieces from this one on written again."""
        os.truncate(self._notes / _DIGESTS, first * _DIGEST_BYTES)
        self._digests.seek(0, os.SEEK_END)

    def add(self, digests: Sequence[int]) -> None:
        """Take note that the next pieces are written."""
        self._digests.write(np.array(digests, "<u8").tobytes())
        self._digests.flush()

    def digests(self) -> Iterator[int]:
        """Yield the digests of the pieces, in order."""
        with (self._notes / _DIGESTS).open("rb") as file:
            while data := file.read(_DIGEST_BYTES << 13):
                yield from np.frombuffer(data, "<u8").tolist()

    def differing(self, name: str) -> None:
        """Take note of a copied tensor whose bytes differ between the checkpoints."""
        if name not in self.all_differing():
            with (self._notes / _UNLIKE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(name) + "\n")

    def all_differing(self) -> list[str]:
        """Return those."""
        if not (self._notes / _UNLIKE).exists():
            return []
        lines = (self._notes / _UNLIKE).read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def path(self, name: str) -> Path:
        """Return where a file is written, whose folder is made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self) -> None:
        """Give the directory its name; of one that is replaced nothing stays but what is not of average.

        Raises:
            RequestError: the one that is replaced holds something else besides.
        """
        record = _record(self.target)
        old = self.target.with_name(self.target.name + ".replaced")
        with uninterrupted():
            if record is not None:
                written = {RECORD, *record["files"]}
                files = (p for p in self.target.rglob("*") if p.is_file())
                others = [p for p in files if str(p.relative_to(self.target)) not in written]
                if others:
                    raise RequestError(
                        f"{quoted(str(others[0]))} was not written by average", "move it away"
                    )
                self.target.rename(old)
            self.folder.rename(self.target)
        shutil.rmtree(self.target / _NOTES, ignore_errors=True)
        if record is not None:
            shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        """Leave nothing of what was not finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _empty(self) -> None:
        for path in self.folder.iterdir():
            if path.name != _NOTES:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in (_REQUEST, _DIGESTS, _UNLIKE):
            (self._notes / name).unlink(missing_ok=True)


def cannot_write(target: Path, error: OSError) -> HallmarksError:
    """Return the error of a directory that cannot be written."""
    return HallmarksError(
        f"{quoted(str(target))} cannot be written: {error.strerror}",
        "what was written is kept; rerun the same command to resume",
    )


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def _record(target: Path) -> dict[str, Any] | None:
    record = _json(target / RECORD)
    return record if record and isinstance(record.get("files"), dict) else None


def _asked(partial: Path) -> dict[str, Any] | None:
    return _json(partial / _NOTES / _REQUEST)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
