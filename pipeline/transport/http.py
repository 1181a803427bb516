"""Ranges of a file over HTTP, straight into memory: the right bytes, or an error that says which.

What passes by itself is tried again here; an address that is no longer accepted is exchanged at the
desk. Errors of the client are translated, never quoted or chained: their texts may hold the
address, which is signed.
"""

from __future__ import annotations

import http.client
import math
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.errors import (
    AccessExpired,
    HallmarksError,
    ReadError,
    SourceChanged,
    TransientReadError,
    quoted,
)
from pipeline.transport.connections import Response, Transport, host_of, untrusted
from pipeline.transport.limits import LONGEST_PAUSE_S, TRANSIENT, backoff_s, pause_s, too_long
from pipeline.transport.proxies import HINT, refusal
from pipeline.transport.waiting import ANNOUNCED_S

if TYPE_CHECKING:
    from pipeline.sources.base import Access

ATTEMPTS = 6
"""Tries in a row that bring less than _STALL_BYTES before a read fails: with the pauses below about
30 s in all, where the host answers at once."""
DIRECT_BYTES = 10_000_000
"""Up to here a file that needs the user's rights is read by the driver for the workers."""
WHOLE_BYTES = 16 << 20
"""Up to here a server may send the whole file instead of a range: it may ignore `Range` (RFC 9110,
14.2). Of a larger one every range would cost gigabytes."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})\b")  # http.client has no type for it

_STALL_S = 5.0
"""In a body: for fewer than _STALL_BYTES. Lost packets are sent again within three seconds; a
stalled connection is given up, what has come is kept."""
_STALL_BYTES = 16 << 10  # 32 connections at this pace share 100 KB/s


@dataclass(frozen=True, slots=True)
class UrlAccess:
    """Range reads of one address, which is a secret where it is signed: no `repr` shows it."""

    where: str
    size: int
    url: str = field(repr=False)
    etag: str | None = None
    """As the address's host stated it first; None: not known yet; empty: it states none."""
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
        tries = _Tries(transport, span)
        done = refusals = 0
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
                if answer.done - done >= _STALL_BYTES:
                    tries, refusals = _Tries(transport, span), 0
                tries.failed(host_of(access.url), error)
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

    def read(self, transport: Transport) -> str:
        """Fill the buffer; return the tag that the host states, empty if it states none."""
        access = self._access
        first, last = self._start + self.done, self._start + len(self._buffer) - 1
        headers = {**access.rights, "Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
        if access.etag and not access.etag.startswith("W/"):  # weak ones never match
            headers["If-Match"] = access.etag
        complete = False
        try:
            response = transport.get(access.url, headers)
            self._check(response, first, last)
            self._fill(response) if response.status == 206 else self._pick(response)
            complete = True
            response.close()  # all of it has been read: the connection stays
            return response.headers.get("ETag", "")
        except HallmarksError:
            raise  # some are OSErrors too
        except ssl.SSLCertVerificationError as error:
            raise untrusted(self._span, error) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            if tunnel := _TUNNEL.match(str(error)):
                self._refuse_tunnel(int(tunnel[1]))
            raise _Broken(type(error).__name__) from None
        finally:
            if not complete:
                transport.drop(access.url)

    def _fill(self, response: Response) -> None:
        """Read the body as it comes: what has come is kept, a stall shows within seconds."""
        buffer, body = self._buffer, response.fp
        while self.done < len(buffer):
            response.within(_STALL_S)
            enough = min(self.done + _STALL_BYTES, len(buffer))
            while self.done < enough:
                count = body.readinto1(buffer[self.done :])
                if not count:
                    raise _Broken("the body ended early")
                self.done += count

    def _pick(self, response: Response) -> None:
        """Read the whole file as it comes, and keep what is wanted of it, if it comes whole."""
        size, position, done = self._access.size, 0, self.done
        rest = memoryview(bytearray(_STALL_BYTES))
        while position < size:
            wanted = self._start + done
            keep = position == wanted and done < len(self._buffer)
            if keep:
                into = self._buffer[done : done + _STALL_BYTES]
            else:
                into = rest[: (wanted if position < wanted else size) - position]
            response.within(_STALL_S)
            count = response.readinto(into)
            if not count and not response.chunked:
                raise _Broken("the body ended early")
            if not count:
                raise SourceChanged(
                    f"{self._span}: expected a file of {size:,} bytes, found {position:,}"
                )
            position += count
            done += count if keep else 0
        if response.read(1):
            raise SourceChanged(f"{self._span}: expected a file of {size:,} bytes, found more")
        self.done = done

    def _check(self, response: Response, first: int, last: int) -> None:
        """Refuse an answer that is neither the range nor the whole of the file that was planned."""
        span, access = self._span, self._access
        if response.status == 206:
            self._check_range(response, first, last)
        elif response.status == 200 and access.size <= WHOLE_BYTES:
            if response.length not in (None, access.size):
                raise SourceChanged(
                    f"{span}: expected a file of {access.size:,} bytes, found {response.length:,}"
                )
        else:
            self._refuse(response)
        for name, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
            found = response.headers.get(name, plain)
            if found.strip().lower() != plain:
                raise ReadError(
                    f"{span}: expected the bytes as they are, found {name} {quoted(found, 60)}",
                    f"{host_of(access.url)}, or a proxy before it, compresses what it was asked not"
                    " to",
                )
        etag = response.headers.get("ETag", "")
        if access.etag and etag != access.etag:
            raise SourceChanged(
                f"{span}: expected the tag {quoted(access.etag)}, found {quoted(etag)}: the file"
                " changed"
            )

    def _check_range(self, response: Response, first: int, last: int) -> None:
        span, size = self._span, self._access.size
        shown = response.headers.get("Content-Range", "")
        found = _CONTENT_RANGE.fullmatch(shown)
        numbers = tuple(int(number[:20]) for number in found.groups()) if found else (0, 0, 0)
        if found and numbers[2] != size:
            raise SourceChanged(f"{span}: expected a file of {size:,}, found {numbers[2]:,}")
        if numbers[:2] != (first, last):
            raise ReadError(
                f"{span}: expected bytes {first}-{last}, found Content-Range {quoted(shown, 60)}",
                "the server, or a proxy before it, answers with other ranges than asked for",
            )
        if response.chunked or response.length != last + 1 - first:
            raise ReadError(f"{span}: expected {last + 1 - first:,} bytes, found {response.length}")

    def _refuse(self, response: Response) -> NoReturn:
        """Raise what a status means that is not that of bytes."""
        status, span, access = response.status, self._span, self._access
        if status in TRANSIENT:
            raise _Broken(f"HTTP {status}", pause_s(response.headers))
        if status in (401, 403):
            if access.signed:
                raise AccessExpired(f"{span}: HTTP {status}: the address is not accepted")
            if access.rights:
                raise ReadError(f"{span}: HTTP {status}: the host refuses", "check HF_TOKEN")
            raise ReadError(
                f"{span}: HTTP {status}: the host wants a token, which does not leave the driver",
                "use --executor local",
            )
        if status == 407:
            self._refuse_tunnel(status)
        if status == 412:
            raise SourceChanged(
                f"{span}: HTTP 412: expected the tag {quoted(access.etag)}: the file changed"
            )
        if status == 200:
            raise ReadError(
                f"{span}: {host_of(access.url)} sent the whole file instead of the range, which is"
                f" taken up to {WHOLE_BYTES:,} bytes; this one has {access.size:,}",
                "use a server or mirror that serves byte ranges",
            )
        hint = {404: "check the name", 416: "is the file shorter than its listing says?"}
        raise ReadError(f"{span}: HTTP {status}", hint.get(status, ""))

    def _refuse_tunnel(self, status: int) -> NoReturn:
        """Raise what the proxy's own answer means."""
        if status in TRANSIENT:
            raise _Broken(f"HTTP {status} from the proxy")
        raise ReadError(f"{self._span}: {refusal(self._access.url, status)}", HINT)


class _Broken(Exception):
    """One attempt failed. Never leaves this module.

    Of a client's error only the kind is passed on: its text may quote the address, which is signed.
    """

    def __init__(self, message: str, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class _Tries:
    """Attempts in a row that brought nothing, and the pauses between them."""

    def __init__(self, transport: Transport, span: str) -> None:
        self._transport, self._span = transport, span
        self._failures, self._since = 0, time.monotonic()

    def failed(self, host: str, error: _Broken) -> None:
        """Wait before the next attempt: as long as the host asks for, and then all readers do.

        Raises:
            TransientReadError: there were enough, or the host asks for too long a pause.
        """
        self._failures += 1
        if self._failures >= ATTEMPTS:
            message = f"{self._span}: {error}, {ATTEMPTS} times"
            raise TransientReadError(message) from None
        transport, asked_s = self._transport, error.pause_s
        transport.count(retries=1)
        if asked_s is not None and asked_s > LONGEST_PAUSE_S:
            raise TransientReadError(f"{self._span}: {error}: {too_long(asked_s)}") from None
        pause = backoff_s(self._failures) if asked_s is None else asked_s
        if time.monotonic() + pause - self._since >= ANNOUNCED_S:
            transport.desk.waiting(host, f"{host}: {error}; trying again in {pause:.0f} s")
        if asked_s is None:
            time.sleep(pause)
        else:
            transport.count(rate_limited_seconds=asked_s)
            transport.pause(host, asked_s)
            transport.desk.paused(host, asked_s)
