"""Checkpoints on object storage: `s3://`, `gs://`, `az://`, through one reader.

Credentials, region and endpoint come from the environment, as the storage's own tools read them
(AWS_…, GOOGLE_…, AZURE_…); AWS_SKIP_SIGNATURE=true reads public buckets without any.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import obstore
from obstore.exceptions import (
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from pipeline.checkpoint.shards import holds_weights
from pipeline.errors import SourceChanged, SourceNotFound, TransientReadError, quoted
from pipeline.sources.base import Candidate, File
from pipeline.sources.http import Transport

SCHEMES = ("s3://", "gs://", "az://")

ATTEMPTS = 6
_FIRST_PAUSE_S = 0.5
# The client's own retries ignore Retry-After, send eleven requests to a 429 in two seconds, and
# accept another tag when they resume a body; and it notices a stall after 30 s.
_RETRIES: Any = {"max_retries": 0, "retry_timeout": timedelta(0)}
_CLIENT: Any = {"connect_timeout": "10s", "read_timeout": "5s", "timeout": "5min"}
_Answer = TypeVar("_Answer")


@lru_cache(maxsize=64)
def _store(url: str) -> Any:
    """Return this process's client for a bucket and prefix."""
    # options given here replace those that the client takes from the environment: this one is used
    names = ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP")
    plain = any(os.environ.get(name, "").lower() in ("true", "1") for name in names)
    return from_url(url, retry_config=_RETRIES, client_options=_CLIENT | {"allow_http": plain})


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

        def fill() -> None:
            answer = obstore.get(_store(self.root), self.path, options=options)
            data = answer.bytes()
            if answer.meta["size"] != self.size or len(data) != len(buffer):
                raise SourceChanged(
                    f"{span}: expected {len(buffer):,} bytes of {self.size:,}, found"
                    f" {len(data):,} of {answer.meta['size']:,}"
                )
            buffer[:] = memoryview(data)

        _ask(fill, span)


class ObjectStorage:
    """Checkpoints below one prefix: one per sub-prefix, or one per weight file."""

    waits = True
    lists_all = True
    requests: Mapping[str, int] = {}

    def __init__(self, url: str) -> None:
        self.label = self._url = url.rstrip("/")
        self.run_name = self._url.partition("://")[2]
        self._listings: dict[str, list[Any]] = {}

    def candidates(self) -> list[Candidate]:
        top = _ask(lambda: obstore.list_with_delimiter(_store(self._url)), self.label)
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
        return [
            File(
                candidate,
                name,
                f"{self._url}/{entry['path']}",
                entry["size"],
                f"{entry['path']}\n{entry['e_tag']}",
            )
            for entry, name in entries
        ]

    def read(self, file: File, start: int, stop: int) -> bytes:
        buffer = bytearray(stop - start)
        self.access(file).read(start, memoryview(buffer))
        return bytes(buffer)

    def access(self, file: File, after: int = 0, keep: bool = False) -> ObjectAccess:
        del after, keep  # credentials are every worker's own; the Hub's cache is for the Hub
        path, etag = file.identity.split("\n")
        return ObjectAccess(file.where, self._url, path, file.size, etag)

    def _names(self, folder: str) -> list[str]:
        return [entry["path"].rpartition("/")[2] for entry in self._objects(folder)]

    def _objects(self, folder: str) -> list[Any]:
        if folder not in self._listings:
            self._listings[folder] = _ask(
                lambda: list(
                    obstore.list_with_delimiter(_store(self._url), folder or None)["objects"]
                ),
                f"{self.label}/{folder}",
            )
        return self._listings[folder]


def _ask(question: Callable[[], _Answer], where: str) -> _Answer:
    """Return the client's answer; its errors are translated, never quoted or chained.

    They carry addresses, which may be signed, and the storage's XML.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return _asked(question, where)
        except TransientReadError:
            time.sleep(_FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.0))
    return _asked(question, where)


def _asked(question: Callable[[], _Answer], where: str) -> _Answer:
    try:
        return question()
    except PreconditionError:
        raise SourceChanged(
            f"{where} changed since it was planned", "start again with --fresh"
        ) from None
    except (PermissionDeniedError, UnauthenticatedError):
        raise SourceNotFound(
            f"{where}: access denied", "check the credentials in the environment"
        ) from None
    except FileNotFoundError:
        raise SourceNotFound(f"nothing at {quoted(where)}") from None
    except BaseError as error:
        text = str(error)
        if any(sign in text for sign in ("NoSuchBucket", "404 Not Found", "ContainerNotFound")):
            raise SourceNotFound(f"no such bucket: {quoted(where)}") from None
        raise TransientReadError(
            f"{where}: {type(error).__name__}", "are the endpoint, region and credentials set?"
        ) from None
