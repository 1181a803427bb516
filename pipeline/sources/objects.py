"""Checkpoints on object storage: `s3://`, `gs://`, `az://`, through one reader."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import obstore

from pipeline.checkpoint.layouts import (
    Folder,
    Layout,
    checkpoint_files,
    discover,
    is_whole,
    name_alone,
)
from pipeline.checkpoint.reading import BY_TABLES, Reading
from pipeline.errors import SourceNotFound
from pipeline.sources.base import ROOT, Candidate, File
from pipeline.sources.beside import Beside, beside
from pipeline.sources.logs import log_paths
from pipeline.transport import objects
from pipeline.transport.access import ObjectKey


class ObjectStorage:
    """Checkpoints below one prefix, or one that is a single object."""

    is_remote = True
    requests: Mapping[str, int] = {}

    def __init__(self, url: str, file: str = "", reading: Reading = BY_TABLES) -> None:
        """Name the object below `url` that is meant as `file`, if it is not all that is there.

        `reading`: what the user says of names and files.
        """
        self._reading = reading
        self._layout: Layout[Any] = Layout()
        self._url = url.rstrip("/")
        self._object = file
        self.label = self.uri = f"{self._url}/{file}" if file else self._url
        self.run_name = self.label.partition("://")[2]
        self._listings: dict[str, Folder[Any]] = {}

    def candidates(self) -> list[Candidate]:
        self._layout = discover(self._list, self._reading)
        return [
            Candidate(path or ROOT, None, path, is_file, stated=self._reading.stated(path))
            for path, is_file in self._layout.checkpoints
        ]

    def beside(self) -> list[Beside]:
        return beside(self._layout, self._reading)

    def logs(self) -> list[File]:
        if self._object:
            return []
        paths = log_paths(self._list)
        return [file for path in paths for file in self.files(Candidate(path, None, path, True))]

    def whole(self) -> list[Candidate]:
        name = self.label.rpartition("/")[2]
        if self._object:
            exists = self._head(self._object) is not None
            return [Candidate(name, None, self._object, True)] if exists else []
        return [Candidate(name, None)] if is_whole(self._list, self._reading) else []

    def files(self, candidate: Candidate) -> list[File]:
        if candidate.is_file:
            folder, _, name = candidate.path.rpartition("/")
            entry = self._head(name) if self._object else self._list(folder).files.get(name)
            files = {} if entry is None else {name_alone(name): entry}
        else:
            files = checkpoint_files(self._list, candidate.path, self._reading)
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
                entry["last_modified"].timestamp(),
            )
            for name, entry in files.items()
        ]

    def read(self, file: File, start: int, stop: int) -> bytes:
        buffer = bytearray(stop - start)
        objects.read(self.access(file), start, memoryview(buffer))
        return bytes(buffer)

    def access(self, file: File, after: int = 0, keep: bool = False) -> ObjectKey:
        del after, keep  # credentials are every worker's own; the Hub's cache is for the Hub
        key, etag = file.where.removeprefix(f"{self._url}/"), file.identity.rpartition("\n")[2]
        return ObjectKey(file.where, self._url, key, file.size, etag)

    def _list(self, path: str) -> Folder[Any]:
        """Return what lies below a prefix, by one question that is asked once."""
        if path not in self._listings:
            answer = objects.ask(
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

        return objects.ask(self._url, question, f"{self._url}/{name}")
