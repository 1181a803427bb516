"""Checkpoints on object storage: `s3://`, `gs://`, `az://`, through one reader."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import obstore

from pipeline.checkpoint.layouts import Folder, checkpoint_files, discover, is_checkpoint
from pipeline.errors import (
    HallmarksError,
    SourceChanged,
    SourceNotFound,
    TransientReadError,
    quoted,
)
from pipeline.sources.base import Candidate, File
from pipeline.transport.connections import Transport
from pipeline.transport.object_client import Trouble, ask

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class ObjectAccess:
    """Range reads of one object, which must be the version that was planned."""

    where: str
    root: str
    path: str
    size: int
    etag: str

    reads_at_once = 16
    issue = 1
    good_for_s = math.inf

    def read_into(self, transport: Transport, start: int, buffer: memoryview) -> None:
        del transport  # the client has its own connections
        self.read(start, buffer)

    def read(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `start` on.

        Raises:
            SourceChanged: the object is another one by now.
            TransientReadError: it could not be read.
        """
        if not len(buffer):
            return
        span = f"{self.where}[{start}:{start + len(buffer)}]"
        options: Any = {"range": (start, start + len(buffer)), "if_match": self.etag}

        def fill(store: Any) -> None:
            answer = obstore.get(store, self.path, options=options)
            data = answer.bytes()
            if answer.meta["size"] != self.size or len(data) != len(buffer):
                raise SourceChanged(
                    f"{span}: expected {len(buffer):,} bytes of {self.size:,}, found"
                    f" {len(data):,} of {answer.meta['size']:,}"
                )
            buffer[:] = memoryview(data)

        _ask(self.root, fill, span)


class ObjectStorage:
    """Checkpoints below one prefix, or one that is a single object."""

    waits = True
    requests: Mapping[str, int] = {}

    def __init__(self, url: str, file: str = "") -> None:
        """`file`: the object below `url` that is meant, if not all that is there."""
        self._url = url.rstrip("/")
        self._object = file
        self.label = self.address = f"{self._url}/{file}" if file else self._url
        self.run_name = self.label.partition("://")[2]
        self._listings: dict[str, Folder[Any]] = {}

    def candidates(self) -> list[Candidate]:
        checkpoints = discover(self._list).checkpoints
        return [Candidate(path, None, path, is_file) for path, is_file in checkpoints]

    def whole(self) -> list[Candidate]:
        name = self.label.rpartition("/")[2]
        if self._object:
            found = self._head(self._object) is not None
            return [Candidate(name, None, self._object, True)] if found else []
        return [Candidate(name, None)] if is_checkpoint(self._list, "") else []

    def files(self, candidate: Candidate) -> list[File]:
        if candidate.is_file:
            folder, _, name = candidate.path.rpartition("/")
            entry = self._head(name) if self._object else self._list(folder).files.get(name)
            files = {} if entry is None else {f"weights.{name.rpartition('.')[2]}": entry}
        else:
            files = checkpoint_files(self._list, candidate.path)
        for entry in files.values():
            if not entry["e_tag"]:
                raise SourceNotFound(
                    f"{self._url}/{entry['path']}: the storage states no ETag, without which a change"
                    " would not be noticed"
                )
        return [
            File(
                candidate,
                name,
                f"{self._url}/{entry['path']}",
                entry["size"],
                f"{self._url}/{entry['path']}\n{entry['e_tag']}",
            )
            for name, entry in files.items()
        ]

    def read(self, file: File, start: int, stop: int) -> bytes:
        buffer = bytearray(stop - start)
        self.access(file).read(start, memoryview(buffer))
        return bytes(buffer)

    def access(self, file: File, after: int = 0, keep: bool = False) -> ObjectAccess:
        del after, keep  # credentials are every worker's own; the Hub's cache is for the Hub
        path, etag = file.where.removeprefix(f"{self._url}/"), file.identity.rpartition("\n")[2]
        return ObjectAccess(file.where, self._url, path, file.size, etag)

    def _list(self, path: str) -> Folder[Any]:
        """Return what lies below a prefix, by one question that is asked once."""
        if path not in self._listings:
            answer = _ask(
                self._url,
                lambda store: obstore.list_with_delimiter(store, path or None),
                f"{self.label}/{path}" if path else self.label,
            )
            folders = (prefix.rstrip("/") for prefix in answer["common_prefixes"])
            self._listings[path] = Folder(
                tuple(prefix.rpartition("/")[2] for prefix in folders),
                {entry["path"].rpartition("/")[2]: entry for entry in answer["objects"]},
            )
        return self._listings[path]

    def _head(self, name: str) -> Any:
        """Return what the storage knows of one object; None: it is not there."""

        def question(store: Any) -> Any:
            with contextlib.suppress(FileNotFoundError):
                return obstore.head(store, name)

        return _ask(self._url, question, f"{self._url}/{name}")


def _ask(root: str, question: Callable[[Any], _Answer], where: str) -> _Answer:
    def translated(trouble: Trouble, name: str) -> HallmarksError:
        match trouble:
            case Trouble.CHANGED:
                return SourceChanged(
                    f"{where} changed since it was planned", "start again with --fresh"
                )
            case Trouble.DENIED:
                return SourceNotFound(
                    f"{where}: access denied", "check the credentials in the environment"
                )
            case Trouble.ABSENT:
                return SourceNotFound(f"nothing at {quoted(where)}")
            case Trouble.NO_BUCKET:
                return SourceNotFound(f"no such bucket: {quoted(where)}")
            case Trouble.ADDRESS:
                return SourceNotFound(
                    f"{quoted(where)} cannot be addressed: {name}",
                    "are the account, endpoint and credentials set?",
                )
            case Trouble.PASSING:
                return TransientReadError(
                    f"{where}: {name}", "are the endpoint, region and credentials set?"
                )

    return ask(root, question, translated)
