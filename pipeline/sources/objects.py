"""Checkpoints on object storage: `s3://`, `gs://`, `az://`, through one reader."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import obstore

from pipeline.checkpoint.shards import holds_weights
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
    """Checkpoints below one prefix: one per sub-prefix, or one per weight file."""

    waits = True
    requests: Mapping[str, int] = {}

    def __init__(self, url: str) -> None:
        self.label = self.address = self._url = url.rstrip("/")
        self.run_name = self._url.partition("://")[2]
        self._listings: dict[str, list[Any]] = {}

    def candidates(self) -> list[Candidate]:
        top = _ask(self._url, obstore.list_with_delimiter, self.label)
        names = [prefix.rstrip("/").rpartition("/")[2] for prefix in top["common_prefixes"]]
        folders = [name for name in names if holds_weights(self._names(name))]
        if folders:
            return [Candidate(name, None) for name in folders]
        files = [entry["path"] for entry in top["objects"] if holds_weights([entry["path"]])]
        return [Candidate(path, None) for path in files]

    def whole(self) -> list[Candidate]:
        name = self._url.rpartition("/")[2]
        return [Candidate(name, None, ".")] if holds_weights(self._names("")) else []

    def files(self, candidate: Candidate) -> list[File]:
        folder = "" if candidate.folder == "." else candidate.name
        entries = [(entry, entry["path"].rpartition("/")[2]) for entry in self._objects(folder)]
        if not entries:  # a bare weight file
            top = self._objects("")
            entries = [
                (entry, f"weights.{entry['path'].rpartition('.')[2]}")
                for entry in top
                if entry["path"] == candidate.name
            ]
        for entry, _ in entries:
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
            for entry, name in entries
        ]

    def read(self, file: File, start: int, stop: int) -> bytes:
        buffer = bytearray(stop - start)
        self.access(file).read(start, memoryview(buffer))
        return bytes(buffer)

    def access(self, file: File, after: int = 0, keep: bool = False) -> ObjectAccess:
        del after, keep  # credentials are every worker's own; the Hub's cache is for the Hub
        path, etag = file.where.removeprefix(f"{self._url}/"), file.identity.rpartition("\n")[2]
        return ObjectAccess(file.where, self._url, path, file.size, etag)

    def _names(self, folder: str) -> list[str]:
        return [entry["path"].rpartition("/")[2] for entry in self._objects(folder)]

    def _objects(self, folder: str) -> list[Any]:
        if folder not in self._listings:
            self._listings[folder] = _ask(
                self._url,
                lambda store: list(obstore.list_with_delimiter(store, folder or None)["objects"]),
                f"{self.label}/{folder}",
            )
        return self._listings[folder]


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
