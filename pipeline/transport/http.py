"""One range of a file over HTTP, straight into memory: the right bytes, or an error that says which.

Failures that may pass are retried here; a URL that is no longer accepted is the caller's to renew.
Errors of the client are translated, never quoted or chained: their texts may hold the URL, which is
signed.
"""

from __future__ import annotations

import http.client
import re
import ssl
import time
from dataclasses import replace
from typing import NoReturn

from pipeline.errors import (
    AccessExpired,
    HallmarksError,
    ReadError,
    SourceChanged,
    TransientReadError,
    quoted,
)
from pipeline.transport.access import Url
from pipeline.transport.connections import Connections, Response, host_of, untrusted
from pipeline.transport.limits import LONGEST_PAUSE_S, TRANSIENT, backoff_s, pause_s, too_long
from pipeline.transport.proxies import HINT, refusal
from pipeline.transport.waiting import ANNOUNCED_S

ATTEMPTS = 6
"""Attempts in a row that bring less than _STALL_BYTES before a read fails: with the pauses below about
30 s in all, where the host answers at once. As many URLs in a row may be refused."""
WHOLE_BYTES = 16 << 20
"""Up to here a server may send the whole file instead of a range: it may ignore `Range` (RFC 9110,
14.2). Of a larger one every range would cost gigabytes."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})\b")  # http.client has no type for it

_STALL_S = 5.0
"""In a body: for fewer than _STALL_BYTES. Lost packets are sent again within three seconds; a
stalled connection is given up, what has come is kept."""
_STALL_BYTES = 16 << 10  # 32 connections at this pace share 100 KB/s


class Download:
    """One range on its way into a buffer: a body that breaks off is resumed where it broke."""

    def __init__(
        self, connections: Connections, where: str, start: int, buffer: memoryview
    ) -> None:
        self._connections, self._start, self._buffer = connections, start, buffer
        self._range = f"{where}[{start}:{start + len(buffer)}]"
        self._done = self._refusals = 0
        self._tries = _Tries(connections, self._range)

    @property
    def rest(self) -> tuple[int, memoryview]:
        """What is left to be read: from which byte on, and into what."""
        return self._start + self._done, self._buffer[self._done :]

    def read(self, access: Url) -> Url:
        """Read what is left; return the access with the ETag that its host states.

        Raises:
            AccessExpired: the URL is not accepted. The rest may be read by another one.
            TransientReadError: every attempt failed, or one URL after the other was refused.
            SourceChanged: the answer is for another file than the one planned.
            ReadError: the server refused for good, or does not serve ranges.
        """
        while self._done < len(self._buffer):
            answer = _Answer(access, self._start, self._buffer, self._done)
            try:
                access = replace(access, etag=answer.read(self._connections))
            except AccessExpired as error:
                self._refusals += 1
                if self._refusals >= ATTEMPTS:
                    raise TransientReadError(error.message) from None
                raise
            except _Broken as error:
                if answer.done - self._done >= _STALL_BYTES:
                    self._tries, self._refusals = _Tries(self._connections, self._range), 0
                self._tries.failed(host_of(access.url), error)
            self._done = answer.done
        return access


class _Answer:
    """One request for what is left of a range, and its answer."""

    def __init__(self, access: Url, start: int, buffer: memoryview, done: int) -> None:
        """`done`: bytes of the buffer that are good, before and after."""
        self._access, self._start, self._buffer, self.done = access, start, buffer, done
        self._range = f"{access.where}[{start + done}:{start + len(buffer)}]"

    def read(self, connections: Connections) -> str:
        """Fill the buffer; return the ETag that the host states, empty if it states none."""
        access = self._access
        first, last = self._start + self.done, self._start + len(self._buffer) - 1
        headers = {"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
        headers |= access.credentials
        if access.etag and not access.etag.startswith("W/"):  # weak ETags never match
            headers["If-Match"] = access.etag
        complete = False
        try:
            response = connections.get(access.url, headers)
            self._check(response, first, last)
            self._fill(response) if response.status == 206 else self._pick(response)
            complete = True
            response.close()  # all of it has been read: the connection stays
            return response.headers.get("ETag", "")
        except HallmarksError:
            raise  # some are OSErrors too
        except ssl.SSLCertVerificationError as error:
            raise untrusted(self._range, error) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            if tunnel := _TUNNEL.match(str(error)):
                self._refuse_tunnel(int(tunnel[1]))
            raise _Broken(type(error).__name__) from None
        finally:
            if not complete:
                connections.drop(access.url)

    def _fill(self, response: Response) -> None:
        """Read the body as it arrives: what has arrived is kept, a stall is noticed within seconds."""
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
        """Read the whole file as it arrives, and keep the wanted part, if it is complete."""
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
                    f"{self._range}: expected a file of {size:,} bytes, found {position:,}"
                )
            position += count
            done += count if keep else 0
        if response.read(1):
            raise SourceChanged(f"{self._range}: expected a file of {size:,} bytes, found more")
        self.done = done

    def _check(self, response: Response, first: int, last: int) -> None:
        """Refuse an answer that is neither the range nor the whole of the file that was planned."""
        where, access = self._range, self._access
        if response.status == 206:
            self._check_range(response, first, last)
        elif response.status == 200 and access.size <= WHOLE_BYTES:
            if response.length not in (None, access.size):
                raise SourceChanged(
                    f"{where}: expected a file of {access.size:,} bytes, found {response.length:,}"
                )
        else:
            self._refuse(response)
        for name, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
            encoding = response.headers.get(name, plain)
            if encoding.strip().lower() != plain:
                raise ReadError(
                    f"{where}: expected the bytes as they are, found {name} {quoted(encoding, 60)}",
                    f"{host_of(access.url)}, or a proxy before it, compresses what it was asked not"
                    " to",
                )
        etag = response.headers.get("ETag", "")
        if access.etag and etag != access.etag:
            raise SourceChanged(
                f"{where}: expected the ETag {quoted(access.etag)}, found {quoted(etag)}: the file"
                " changed"
            )

    def _check_range(self, response: Response, first: int, last: int) -> None:
        where, size = self._range, self._access.size
        shown = response.headers.get("Content-Range", "")
        match = _CONTENT_RANGE.fullmatch(shown)
        numbers = tuple(int(number[:20]) for number in match.groups()) if match else (0, 0, 0)
        if match and numbers[2] != size:
            raise SourceChanged(f"{where}: expected a file of {size:,}, found {numbers[2]:,}")
        if numbers[:2] != (first, last):
            raise ReadError(
                f"{where}: expected bytes {first}-{last}, found Content-Range {quoted(shown, 60)}",
                "the server, or a proxy before it, answers with other ranges than asked for",
            )
        if response.chunked or response.length != last + 1 - first:
            raise ReadError(
                f"{where}: expected {last + 1 - first:,} bytes, found {response.length}"
            )

    def _refuse(self, response: Response) -> NoReturn:
        """Raise what a status means that is not that of bytes."""
        status, where, access = response.status, self._range, self._access
        if status in TRANSIENT:
            raise _Broken(f"HTTP {status}", pause_s(response.headers))
        if status in (401, 403):
            if access.signed:
                raise AccessExpired(f"{where}: HTTP {status}: the URL is not accepted")
            if access.credentials:
                raise ReadError(f"{where}: HTTP {status}: the host refuses", "check HF_TOKEN")
            raise ReadError(
                f"{where}: HTTP {status}: the host wants a token, which does not leave the driver",
                "use --executor local",
            )
        if status == 407:
            self._refuse_tunnel(status)
        if status == 412:
            raise SourceChanged(
                f"{where}: HTTP 412: expected the ETag {quoted(access.etag)}: the file changed"
            )
        if status == 200:
            raise ReadError(
                f"{where}: {host_of(access.url)} sent the whole file instead of the range, which is"
                f" taken up to {WHOLE_BYTES:,} bytes; this one has {access.size:,}",
                "use a server or mirror that serves byte ranges",
            )
        hint = {404: "check the name", 416: "is the file shorter than its listing says?"}
        raise ReadError(f"{where}: HTTP {status}", hint.get(status, ""))

    def _refuse_tunnel(self, status: int) -> NoReturn:
        """Raise what the proxy's own answer means."""
        if status in TRANSIENT:
            raise _Broken(f"HTTP {status} from the proxy")
        raise ReadError(f"{self._range}: {refusal(self._access.url, status)}", HINT)


class _Broken(Exception):
    """One attempt failed. Never leaves this module.

    Of a client's error only the kind is passed on: its text may quote the URL, which is signed.
    """

    def __init__(self, message: str, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class _Tries:
    """Attempts in a row that brought nothing, and the back-off between them."""

    def __init__(self, connections: Connections, where: str) -> None:
        self._connections, self._range = connections, where
        self._failures, self._since = 0, time.monotonic()

    def failed(self, host: str, error: _Broken) -> None:
        """Wait before the next attempt: as long as the host requests, and then every process does.

        Raises:
            TransientReadError: there were enough, or the host requests too long a pause.
        """
        self._failures += 1
        if self._failures >= ATTEMPTS:
            message = f"{self._range}: {error}, {ATTEMPTS} times"
            raise TransientReadError(message) from None
        connections, asked_s = self._connections, error.pause_s
        connections.count(retries=1)
        if asked_s is not None and asked_s > LONGEST_PAUSE_S:
            raise TransientReadError(f"{self._range}: {error}: {too_long(asked_s)}") from None
        pause = backoff_s(self._failures) if asked_s is None else asked_s
        if time.monotonic() + pause - self._since >= ANNOUNCED_S:
            connections.notices.waiting(host, f"{host}: {error}; retrying in {pause:.0f} s")
        if asked_s is None:
            time.sleep(pause)
        else:
            connections.count(rate_limited_seconds=asked_s)
            connections.pause(host, asked_s)
            connections.notices.paused(host, asked_s)
