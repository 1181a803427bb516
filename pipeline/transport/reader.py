"""The reader of one process: how each file is reached at the moment, and reading byte ranges of it.

A reader asks its provider for access to the files that it lacks: those that it has not had, whose URL
nears its end or is no longer accepted, also in the middle of a range, which continues at the byte
where it stood. Here alone reads depend on the kind of access.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from pipeline.errors import AccessExpired, HallmarksError, Interrupted, ReadError
from pipeline.transport import local
from pipeline.transport.access import (
    Access,
    InMemory,
    LocalPath,
    ObjectKey,
    ThroughDriver,
    Url,
    good_for,
)
from pipeline.transport.connections import Connections, Count, Notices, uncounted
from pipeline.transport.http import Download

Key = TypeVar("Key", bound=Hashable)
"""What names a file: a number in the plan, or in the driver whatever the source has for it."""

Range = tuple[int, memoryview]
"""Where a range of a file begins, and the buffer that it fills."""


class UrlProvider(Notices, Protocol[Key]):
    """What a reader must ask for. Safe in threads."""

    def accesses(self, files: Sequence[Key], after: int) -> Mapping[Key, Access | HallmarksError]:
        """Return access to each of these files, of a later generation than `after`, or why not."""
        ...

    def read(self, file: Key, start: int, stop: int) -> bytes:
        """Return bytes of a file that only the driver can read.

        Raises:
            HallmarksError: they could not be read.
        """
        ...


class Reader(Generic[Key]):
    """Reads byte ranges of files. Safe in threads."""

    def __init__(self, provider: UrlProvider[Key], count: Count = uncounted) -> None:
        """`count`: told of bytes pulled and in flight, and of what the connections tell."""
        self._provider, self._count = provider, count
        self._connections = Connections(provider, count)
        self._held: dict[Key, tuple[Access, float]] = {}  # and until when it may be used
        self._requested: dict[Key, Future[Access]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def close(self) -> None:
        """Have all reads stop at their next range."""
        self._closed.set()

    def pause(self, host: str, seconds: float) -> None:
        """Send nothing to a host for so long: another process was told to."""
        self._connections.pause(host, seconds)

    def hold(self, file: Key, access: Access) -> None:
        """Take over access to a file that was handed out for it."""
        self._held[file] = access, time.monotonic() + access.good_for_s

    def accesses(self, files: Sequence[Key], after: int = 0) -> dict[Key, Access]:
        """Return access to each of these files; what is lacking is asked for together.

        Whatever the number of threads, each file is asked for once.

        Args:
            after: access of this generation is not accepted any more.

        Raises:
            HallmarksError: a file cannot be reached.
        """
        requested = self._request(files, after)
        return {file: self._awaited(file, after, requested.get(file)) for file in files}

    def access(self, file: Key, after: int = 0) -> Access:
        """Return access to one file, as `accesses` does."""
        return self._usable(file, after) or self.accesses([file], after)[file]

    def handed_out(self, files: Sequence[Key], after: int) -> dict[Key, Access]:
        """Return access to files for another reader, whose time is counted from now."""
        accesses = self.accesses(files, after)
        return {file: good_for(access, self._left_s(file)) for file, access in accesses.items()}

    def pinned(self, file: Key, after: int = 0) -> Access:
        """Return access for other readers, with the ETag of its host, which is read for it if needed."""
        access = self.access(file, after)
        match access:
            case Url(etag=None, size=size) if size:
                access = self._read(file, access, [(0, memoryview(bytearray(1)))])
            case _:
                pass
        return good_for(access, self._left_s(file))

    def read(self, file: Key, ranges: Sequence[Range]) -> None:
        """Fill each buffer from a byte of the file on.

        Raises:
            ReadError: bytes could not be had; nothing is known of the buffers then.
            Interrupted: the reader was closed.
        """
        if ranges:
            self._read(file, self.access(file), ranges)

    def bytes_of(self, file: Key, start: int, stop: int) -> bytes:
        """Return bytes of a file, as `read` fills them in."""
        buffer = bytearray(stop - start)
        if buffer:
            self.read(file, [(start, memoryview(buffer))])
        return bytes(buffer)

    def _read(self, file: Key, access: Access, ranges: Sequence[Range]) -> Access:
        """Fill buffers, beginning with this access; return the one that worked in the end."""
        for number, (start, buffer) in enumerate(ranges):
            match access:
                case LocalPath():  # opened once for all ranges that are left
                    return self._read_local(file, access, ranges[number:])
                case InMemory():
                    with self._counted(len(buffer)):
                        access.fill(start, buffer)
                case ObjectKey():
                    # the client is not on a bare machine with a GPU (`make gpu-check`)
                    from pipeline.transport import objects

                    with self._counted(len(buffer)):
                        objects.read(access, start, buffer)
                case ThroughDriver():
                    with self._counted(len(buffer)):
                        self._read_through_driver(file, access, start, buffer)
                case Url():
                    access = self._download(file, access, start, buffer)
        return access

    def _read_local(self, file: Key, access: LocalPath, ranges: Sequence[Range]) -> Access:
        try:
            with self._counted(sum(len(buffer) for _, buffer in ranges)):
                local.read(access, ranges)
        except AccessExpired:
            return self._read(file, self.access(file, access.generation), ranges)
        return access

    def _read_through_driver(
        self, file: Key, access: ThroughDriver, start: int, buffer: memoryview
    ) -> None:
        data = self._provider.read(file, start, start + len(buffer))
        if len(data) != len(buffer):
            raise ReadError(f"{access.where}: expected {len(buffer):,} bytes, found {len(data):,}")
        buffer[:] = data

    def _download(self, file: Key, access: Url, start: int, buffer: memoryview) -> Access:
        """Fill a buffer from a URL, and from its successors when it is refused."""
        download = Download(self._connections, access.where, start, buffer)
        while True:
            try:
                with self._counted(len(buffer)):
                    access = download.read(access)
                self._keep_etag(file, access)
                return access
            except AccessExpired:
                renewed = self.access(file, access.generation)
            match renewed:
                case Url():
                    access = renewed
                case _:  # by now the file is reached in another way
                    return self._read(file, renewed, [download.rest])

    @contextmanager
    def _counted(self, num_bytes: int) -> Iterator[None]:
        """Count bytes as in flight, and as pulled if nothing is raised."""
        if self._closed.is_set():
            raise Interrupted("stopped")
        self._count(bytes_in_flight=num_bytes)
        pulled = 0
        try:
            yield
            pulled = num_bytes
        finally:
            self._count(bytes_in_flight=-num_bytes, bytes_pulled=pulled)

    def _keep_etag(self, file: Key, access: Url) -> None:
        """Take note of the ETag that a URL's host stated."""
        with self._lock:
            held, until = self._held[file]
            match held:
                case Url(etag=None, generation=generation) if generation == access.generation:
                    self._held[file] = access, until
                case _:
                    pass

    def _usable(self, file: Key, after: int) -> Access | None:
        access, until = self._held.get(file, (None, 0.0))
        if access is not None and access.generation > after and time.monotonic() < until:
            return access
        return None

    def _left_s(self, file: Key) -> float:
        return self._held[file][1] - time.monotonic()

    def _request(self, files: Iterable[Key], after: int) -> dict[Key, Future[Access]]:
        """Ask for access where it is lacking, unless another thread has; return what will answer."""
        with self._lock:
            lacking = [file for file in files if self._usable(file, after) is None]
            unrequested = [file for file in lacking if file not in self._requested]
            self._requested |= {file: Future() for file in unrequested}
            answers = {file: self._requested[file] for file in lacking}
        if unrequested:
            given: Mapping[Key, Access | BaseException]
            try:
                given = self._provider.accesses(unrequested, after)
            except BaseException as error:  # those who wait for the answer must hear of it, too
                given = dict.fromkeys(unrequested, error)
            self._take(given)
        return answers

    def _take(self, given: Mapping[Key, Access | BaseException]) -> None:
        with self._lock:
            for file, access in given.items():
                answer = self._requested.pop(file)
                if isinstance(access, BaseException):
                    answer.set_exception(access)
                else:
                    self.hold(file, access)
                    answer.set_result(access)

    def _awaited(self, file: Key, after: int, answer: Future[Access] | None) -> Access:
        while (access := self._usable(file, after)) is None:
            if answer is None:
                answer = self._request([file], after).get(file)
                continue  # unless another thread's request was answered meanwhile
            access, answer = answer.result(), None
            if access.generation > after:  # also if it expires at once: each is tried
                return access
        return access
