"""Checkpoints on object storage: `s3://`, `gs://`, `az://`, through one reader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import obstore

from pipeline.checkpoint.shards import holds_weights
from pipeline.errors import SourceNotFound
from pipeline.sources.base import Candidate, File
from pipeline.transport import objects
from pipeline.transport.access import ObjectKey


class ObjectStorage:
    """Checkpoints below one prefix: one per sub-prefix, or one per weight file."""

    is_remote = True
    requests: Mapping[str, int] = {}

    def __init__(self, url: str) -> None:
        self.label = self.uri = self._url = url.rstrip("/")
        self.run_name = self._url.partition("://")[2]
        self._listings: dict[str, list[Any]] = {}

    def candidates(self) -> list[Candidate]:
        top = objects.ask(self._url, obstore.list_with_delimiter, self.label)
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
        objects.read(self.access(file), start, memoryview(buffer))
        return bytes(buffer)

    def access(self, file: File, after: int = 0, keep: bool = False) -> ObjectKey:
        del after, keep  # credentials are every worker's own; the Hub's cache is for the Hub
        key, etag = file.where.removeprefix(f"{self._url}/"), file.identity.rpartition("\n")[2]
        return ObjectKey(file.where, self._url, key, file.size, etag)

    def _names(self, folder: str) -> list[str]:
        return [entry["path"].rpartition("/")[2] for entry in self._objects(folder)]

    def _objects(self, folder: str) -> list[Any]:
        if folder not in self._listings:
            self._listings[folder] = objects.ask(
                self._url,
                lambda store: list(obstore.list_with_delimiter(store, folder or None)["objects"]),
                f"{self.label}/{folder}",
            )
        return self._listings[folder]
