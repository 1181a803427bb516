"""Ranges of a file over HTTP, straight into memory: the right bytes, or an error that says which.

The standard library's client, one connection for each thread and host (docs/architecture.md and
benchmarks/results/network.md say why). What passes by itself is tried again here; an address that
is no longer accepted is exchanged at the desk. Errors of the client are translated, never quoted or
chained: their texts may hold the address, which is signed.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import random
import re
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from urllib.parse import urlsplit

from pipeline.errors import (
    AccessExpired,
    HallmarksError,
    ReadError,
    SourceChanged,
    TransientReadError,
    quoted,
)
from pipeline.sources.limits import LONGEST_PAUSE_S, TRANSIENT, backoff_s, pause_s
from pipeline.version import VERSION

if TYPE_CHECKING:
    from pipeline.sources.base import Access

ATTEMPTS = 6
"""Tries without a single new byte before a read fails: with the pauses below about 30 s in all."""
DIRECT_BYTES = 10_000_000
"""Up to here a file that needs the user's rights is read by the driver for the workers."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

_CONNECT_S = 10.0
_ANSWER_S = 15.0  # to the first header: a store may first put the range together
_STALL_S = 5.0
"""In a body: without a byte, or with fewer than _STALL_BYTES. Lost packets are sent again within
three seconds; a stalled connection is given up, what has come is kept."""
_STALL_BYTES = 16 << 10  # 32 connections at this pace share 100 KB/s

_USER_AGENT = f"hallmarks/{VERSION}"


class Desk(Protocol):
    """Where a reader gets what only the driver has."""

    def renewed(self, access: Any) -> Access:
        """Return another way to the same file: this one is not accepted."""
        ...

    def read(self, where: str, start: int, stop: int) -> bytes:
        """Return bytes of a file that the driver alone may read."""
        ...

    def paused(self, host: str, seconds: float) -> None:
        """Take note that a host wants to be left alone by all."""
        ...


class Count(Protocol):
    """Told what happened since it was told last, by name."""

    def __call__(self, **more: float) -> None: ...


def _uncounted(**_: float) -> None: ...


class Transport:
    """The connections of one process: every thread has its own, one to each host."""

    def __init__(self, desk: Desk, count: Count = _uncounted) -> None:
        """`count`: told of `retries`, and of `rate_limited_seconds` that hosts asked for."""
        self.desk, self.count = desk, count
        self._of_thread = threading.local()
        self._trust = ssl.create_default_context()
        self._free_at: dict[str, float] = defaultdict(float)

    def get(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """Return the answer to a request, of which status and headers have been read.

        It is to be read to its end, or the connection dropped, before this thread's next request.
        Waits while the host wants to be left alone.

        Raises:
            OSError, http.client.HTTPException, ValueError: there was none. They may quote `url`.
        """
        while (seconds := self._free_at[host_of(url)] - time.monotonic()) > 0:
            time.sleep(seconds + random.uniform(0, 0.5))  # not all in the same moment
        connection = self._connection(url)
        kept = connection.sock is not None
        try:
            return self._answer(connection, url, headers)
        except ConnectionError:
            if not kept:
                raise
            # a server may close a connection that it kept, at any time: that is no failure yet
            connection.close()
            return self._answer(connection, url, headers)

    def pause(self, host: str, seconds: float) -> None:
        """Leave a host alone for so long, in all threads."""
        self._free_at[host] = max(self._free_at[host], time.monotonic() + seconds)

    def drop(self, url: str) -> None:
        """Close this thread's connection to a host: something unread is in it."""
        with contextlib.suppress(ValueError):  # a malformed address has none
            self._connection(url).close()

    def _connection(self, url: str) -> http.client.HTTPConnection:
        connections = self._of_thread.__dict__
        key = host_of(url)
        if key not in connections:
            parts = urlsplit(url)
            if parts.scheme == "https":
                connections[key] = http.client.HTTPSConnection(
                    parts.hostname or "", parts.port, timeout=_CONNECT_S, context=self._trust
                )
            else:
                connections[key] = http.client.HTTPConnection(
                    parts.hostname or "", parts.port, timeout=_CONNECT_S
                )
        return connections[key]

    @staticmethod
    def _answer(
        connection: http.client.HTTPConnection, url: str, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        if connection.sock is None:
            connection.connect()
        assert connection.sock is not None
        connection.sock.settimeout(_ANSWER_S)
        parts = urlsplit(url)
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        connection.request("GET", target, headers={"User-Agent": _USER_AGENT, **headers})
        response = connection.getresponse()
        if connection.sock is not None:  # it is not kept where the server closes after this
            connection.sock.settimeout(_STALL_S)
        return response


def host_of(url: str) -> str:
    """Return an address's scheme, host and port."""
    return "/".join(url.split("/", 3)[:3])


@dataclass(frozen=True, slots=True)
class UrlAccess:
    """Range reads of one address, which is a secret where it is signed: no `repr` shows it."""

    where: str
    size: int
    url: str = field(repr=False)
    etag: str | None = None
    """As the address's host stated it first; None: not known yet, or it states none."""
    issue: int = 1
    """Number of the address among those that the driver has had for the file."""
    good_for_s: float = math.inf
    """How long it may be used, from when it was handed out."""
    signed: bool = True
    """Another address can be had. Else the host serves the file itself."""
    rights: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers that carry the user's token. They never leave the driver."""

    # Enough to hide a round trip of 50 ms at 1 MiB a read and 300 MB/s.
    reads_at_once = 16

    def __reduce__(self) -> tuple[Any, ...]:
        if self.rights:
            raise HallmarksError(f"{self.where}: access with a token does not leave the driver")
        fields = (
            self.where, self.size, self.url, self.etag, self.issue, self.good_for_s, self.signed,
        )  # fmt: skip
        return UrlAccess, fields

    def for_workers(self) -> Access:
        """Return what a worker may have of this: an address without the user's rights."""
        if not self.rights:
            return self
        if self.size <= DIRECT_BYTES:
            return ThroughDriver(self.where, self.issue, self.good_for_s)
        return replace(self, rights={})

    def read_into(self, transport: Transport, start: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `start` on; a body that breaks off is resumed where it broke.

        Raises:
            AccessExpired: no address is accepted.
            TransientReadError: every attempt failed.
            SourceChanged: the answer is for another file than the one planned.
            ReadError: the server refused for good, or does not serve ranges.
        """
        self.read_pinned(transport, start, buffer)

    def read_pinned(self, transport: Transport, start: int, buffer: memoryview) -> Access:
        """Read as `read_into` does; return the access that worked, with the host's tag in it."""
        access: Access = self
        span = f"{self.where}[{start}:{start + len(buffer)}]"
        done = failures = refusals = 0
        while done < len(buffer):
            if not isinstance(access, UrlAccess):  # by now the file is reached in another way
                access.read_into(transport, start + done, buffer[done:])
                break
            answer = _Answer(access, start, buffer, done)
            try:
                access = replace(access, etag=answer.read(transport))
            except AccessExpired:
                refusals += 1
                if not access.signed or refusals >= ATTEMPTS:
                    raise
                access = transport.desk.renewed(access)
            except _Broken as error:
                if answer.done > done:
                    failures = refusals = 0
                failures += 1
                if failures >= ATTEMPTS:
                    message = f"{span}: {error}, {ATTEMPTS} times"
                    raise TransientReadError(message) from None
                _rest(transport, host_of(access.url), error.pause_s, failures, span)
            done = answer.done
        return access


@dataclass(frozen=True, slots=True)
class ThroughDriver:
    """Range reads that the driver makes: of small files that need the user's rights."""

    where: str
    issue: int
    good_for_s: float

    reads_at_once = 16

    def read_into(self, transport: Transport, start: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `start` on."""
        data = transport.desk.read(self.where, start, start + len(buffer))
        if len(data) != len(buffer):
            raise ReadError(f"{self.where}: expected {len(buffer):,} bytes, found {len(data):,}")
        buffer[:] = data


class _Answer:
    """One request for what is left of a range, and its answer."""

    def __init__(self, access: UrlAccess, start: int, buffer: memoryview, done: int) -> None:
        """`done`: bytes of the buffer that are good, before and after."""
        self._access, self._start, self._buffer, self.done = access, start, buffer, done
        self._span = f"{access.where}[{start + done}:{start + len(buffer)}]"

    def read(self, transport: Transport) -> str | None:
        """Fill the buffer; return the tag that the host states."""
        access, size = self._access, len(self._buffer)
        first, last = self._start + self.done, self._start + size - 1
        headers = {**access.rights, "Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
        if access.etag is not None and not access.etag.startswith("W/"):  # weak ones never match
            headers["If-Match"] = access.etag
        complete = False
        try:
            response = transport.get(access.url, headers)
            self._check(response, first, last)
            self._fill(response)
            complete = True
            response.close()  # all of it has been read: the connection stays
            return response.headers.get("ETag")
        except HallmarksError:
            raise  # some are OSErrors too
        except ssl.SSLCertVerificationError:
            raise ReadError(
                f"{self._span}: the host's certificate is not trusted",
                "name the authority's certificate in SSL_CERT_FILE",
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Broken(type(error).__name__) from None
        finally:
            if not complete:
                transport.drop(access.url)

    def _fill(self, response: http.client.HTTPResponse) -> None:
        """Read the body as it comes: what has come is kept, a stall shows within seconds."""
        buffer, body = self._buffer, response.fp
        mark, mark_at = self.done, time.monotonic()
        while self.done < len(buffer):
            count = body.readinto1(buffer[self.done :])
            if not count:
                raise _Broken("the body ended early")
            self.done += count
            if self.done - mark >= _STALL_BYTES:
                mark, mark_at = self.done, time.monotonic()
            elif time.monotonic() - mark_at > _STALL_S:
                raise _Broken(f"{self.done - mark:,} bytes in {_STALL_S:g} s")

    def _check(self, response: http.client.HTTPResponse, first: int, last: int) -> None:
        """Refuse an answer that is not the range of the file that was planned."""
        status, span, access = response.status, self._span, self._access
        if status != 206:
            self._refuse(response)
        shown = response.headers.get("Content-Range", "")
        found = _CONTENT_RANGE.fullmatch(shown)
        numbers = tuple(int(number[:20]) for number in found.groups()) if found else (0, 0, 0)
        if found and numbers[2] != access.size:
            raise SourceChanged(f"{span}: expected a file of {access.size:,}, found {numbers[2]:,}")
        if numbers[:2] != (first, last):
            raise ReadError(
                f"{span}: expected bytes {first}-{last}, found Content-Range {quoted(shown, 60)}",
                "the server, or a proxy before it, answers with other ranges than asked for",
            )
        if response.chunked or response.length != last + 1 - first:
            raise ReadError(f"{span}: expected {last + 1 - first:,} bytes, found {response.length}")
        etag = response.headers.get("ETag")
        if access.etag is not None and etag != access.etag:
            raise SourceChanged(
                f"{span}: expected the tag {quoted(access.etag)}, found {quoted(etag)}: the file"
                " changed"
            )

    def _refuse(self, response: http.client.HTTPResponse) -> NoReturn:
        """Raise what a status other than 206 means."""
        status, span, signed = response.status, self._span, self._access.signed
        if status in TRANSIENT:
            raise _Broken(f"HTTP {status}", pause_s(response.headers))
        if status in (401, 403):
            if signed:
                raise AccessExpired(f"{span}: HTTP {status}: the address is not accepted")
            if self._access.rights:
                raise ReadError(f"{span}: HTTP {status}: the host refuses", "check HF_TOKEN")
            raise ReadError(
                f"{span}: HTTP {status}: the host wants a token, which does not leave the driver",
                "use --executor local",
            )
        if status == 412:
            raise SourceChanged(
                f"{span}: HTTP 412: expected the tag {quoted(self._access.etag)}: the file changed"
            )
        if status == 200:
            raise ReadError(
                f"{span}: the server sent the whole file instead of the range",
                "use a server or mirror that serves byte ranges",
            )
        hint = {404: "check the name", 416: "is the file shorter than its listing says?"}
        raise ReadError(f"{span}: HTTP {status}", hint.get(status, ""))


class _Broken(Exception):
    """One attempt failed. Never leaves this module.

    Of a client's error only the kind is passed on: its text may quote the address, which is signed.
    """

    def __init__(self, message: str, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.pause_s = pause_s


def _rest(transport: Transport, host: str, asked_s: float | None, failures: int, span: str) -> None:
    """Wait before the next attempt: as long as the host asks for, and then all readers do."""
    transport.count(retries=1)
    if asked_s is None:
        time.sleep(backoff_s(failures))
        return
    if asked_s > LONGEST_PAUSE_S:
        raise TransientReadError(f"{span}: the host asks to be left alone for {asked_s:.0f} s")
    transport.count(rate_limited_seconds=asked_s)
    transport.pause(host, asked_s)
    transport.desk.paused(host, asked_s)
