"""How a file is reached: plain values, which a `Reader` reads by.

All of them can be pickled and sent to workers, except those that carry the user's credentials, and what
lies in memory. No `repr` shows a secret.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

from pipeline.errors import HallmarksError

DIRECT_BYTES = 10_000_000
"""Up to this size, the driver reads a file that needs the user's credentials on behalf of workers."""


class FileState(NamedTuple):
    """What the file system reports, without reading, that changes with a file's contents.

    Whoever resets the modification time, as a copy or an archive does, cannot reset the change time.
    Without the path it identifies little: small files that are written at once share one time, since
    clocks of file systems tick every 4 ms. Inodes are left out: file systems over object storage
    number them anew at each mount and on each node, and no job could be resumed there.
    """

    size: int
    modified_ns: int
    changed_ns: int

    @staticmethod
    def of(status: os.stat_result) -> FileState:
        return FileState(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class LocalPath:
    """A local file, which must be as it was when planned."""

    where: str
    """For people: what is read. So in all kinds of access."""
    path: str
    state: FileState
    cached: bool = False
    """The path exists on the driver's machine alone; elsewhere the file has a URL."""

    is_remote: ClassVar[bool] = False
    generation: ClassVar[int] = 1
    good_for_s: ClassVar[float] = math.inf


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """One version of an object in a bucket. Every process has credentials of its own."""

    where: str
    root: str
    """URL of the bucket and prefix."""
    key: str
    """Relative to `root`."""
    size: int
    etag: str

    is_remote: ClassVar[bool] = True
    generation: ClassVar[int] = 1
    good_for_s: ClassVar[float] = math.inf


@dataclass(frozen=True, slots=True)
class Url:
    """A URL. Where it is signed, it is itself a secret."""

    where: str
    size: int
    url: str = field(repr=False)
    etag: str | None = None
    """As the URL's host stated it first; None: not known yet; empty: it states none."""
    generation: int = 1
    """How often the file's URL was renewed: whoever is refused one asks for a later one."""
    good_for_s: float = math.inf
    """How long it may be used, from when it was handed out."""
    signed: bool = True
    """Another URL can be had. Otherwise the host serves the file itself."""
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers that carry the user's token. They never leave the driver."""

    is_remote: ClassVar[bool] = True

    def __reduce__(self) -> tuple[Any, ...]:
        if self.credentials:
            raise HallmarksError(f"{self.where}: access with a token does not leave the driver")
        fields = (
            self.where, self.size, self.url, self.etag, self.generation, self.good_for_s, self.signed,
        )  # fmt: skip
        return Url, fields


@dataclass(frozen=True, slots=True)
class ThroughDriver:
    """A small file that needs the user's credentials: the driver reads it."""

    where: str
    generation: int
    good_for_s: float

    is_remote: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class InMemory:
    """What this process holds, or makes when it is asked for. It does not leave the process."""

    where: str
    fill: Callable[[int, memoryview], None] = field(repr=False)
    """Fills a buffer from a byte on. Safe in threads."""

    is_remote: ClassVar[bool] = False
    generation: ClassVar[int] = 1
    good_for_s: ClassVar[float] = math.inf


Access = LocalPath | ObjectKey | Url | ThroughDriver | InMemory


def for_workers(access: Access) -> Access:
    """Return what may leave the driver: access without the user's credentials."""
    match access:
        case Url(credentials=credentials) if credentials:
            if access.size <= DIRECT_BYTES:
                return ThroughDriver(access.where, access.generation, access.good_for_s)
            return replace(access, credentials={})
        case _:
            return access


def good_for(access: Access, seconds: float) -> Access:
    """Return access that may be used for so long from now, if its time is limited at all."""
    match access:
        case Url() | ThroughDriver():
            return replace(access, good_for_s=seconds)
        case LocalPath() | ObjectKey() | InMemory():
            return access
