"""Ranges of a file over HTTP, straight into memory.

The standard library's client, one connection for each thread and host: a range of 14 KB cost 0.16-0.21 ms
of CPU time against 0.47-0.57 ms with urllib3's pools (Python 3.11, loopback, 3-32 threads), which is
what an estimate from many small ranges waits for; and it reads into the buffer without a copy.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pipeline.errors import (
    AccessExpired,
    HallmarksError,
    ReadError,
    SourceChanged,
    TransientReadError,
)

ATTEMPTS = 6
"""Tries without a single new byte before a read fails: with the pauses below about 30 s in all."""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_PIECE_BYTES = 1 << 17  # read at once, all of which is read again if the connection breaks in it
_CONNECT_S = 10.0
_STALL_S = 20.0  # without a byte: far above any pause of a healthy transfer


class Transport:
    """The connections of one process: every thread has its own, one to each host."""

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._trust = ssl.create_default_context()

    def get(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """Return the answer to a request, of which status and headers have been read.

        It is to be read to its end, or the connection dropped, before this thread's next request.

        Raises:
            OSError, http.client.HTTPException, ValueError: there was none. They may quote `url`.
        """
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

    def drop(self, url: str) -> None:
        """Close this thread's connection to a host: something unread is in it."""
        with contextlib.suppress(ValueError):  # a malformed address has none
            self._connection(url).close()

    def _connection(self, url: str) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        connections = self._of_thread.__dict__
        key = f"{parts.scheme}://{parts.netloc}"
        if key not in connections:
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
        parts = urlsplit(url)
        if connection.sock is None:
            connection.connect()
            assert connection.sock is not None
            connection.sock.settimeout(_STALL_S)
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        connection.request("GET", target, headers=dict(headers))
        return connection.getresponse()


@dataclass(frozen=True, slots=True)
class UrlAccess:
    """Range reads of one address. The address is a secret (it is signed): no `repr` shows it."""

    where: str
    size: int
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    # Enough to hide a round trip of 50 ms at 1 MiB a read and 300 MB/s.
    reads_at_once = 16

    def read_into(self, transport: Transport, start: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `start` on; a body that breaks off is resumed where it broke.

        Raises:
            AccessExpired: the address is no longer accepted.
            TransientReadError: every attempt failed.
            SourceChanged: the answer is for another file than the one planned.
            ReadError: the server refused for good, or does not serve ranges.
        """
        done = failures = 0
        while done < len(buffer):
            before = done
            try:
                done = self._read_once(transport, start, buffer, done)
            except _Broken as error:
                done = max(done, error.done)
                failures = 0 if done > before else failures + 1
                if failures >= ATTEMPTS:
                    raise TransientReadError(
                        f"{self._span(start, buffer)}: {error}, {ATTEMPTS} times"
                    ) from None
                time.sleep(_pause(failures, error.retry_after))

    def _read_once(self, transport: Transport, start: int, buffer: memoryview, done: int) -> int:
        first, last = start + done, start + len(buffer) - 1
        headers = {**self.headers, "Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
        try:
            response = transport.get(self.url, headers)
            self._check(response, first, last, done)
            while done < len(buffer):
                count = response.readinto(buffer[done : done + _PIECE_BYTES])
                if count == 0:
                    raise _Broken("the body ended early", done)
                done += count
            if not response.isclosed():  # more than was asked for
                transport.drop(self.url)
            return done
        except HallmarksError:
            raise  # some are OSErrors too
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Broken(type(error).__name__, done) from None
        finally:
            if done < len(buffer):
                transport.drop(self.url)

    def _check(self, response: http.client.HTTPResponse, first: int, last: int, done: int) -> None:
        status, span = response.status, f"{self.where}[{first}:{last + 1}]"
        if status == 206:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            expected = (first, last, self.size)
            if found is None or tuple(int(number) for number in found.groups()) != expected:
                raise SourceChanged(
                    f"{span}: expected bytes {first}-{last} of {self.size:,}, found"
                    f" Content-Range {response.headers.get('Content-Range', 'absent')[:60]!r}"
                )
            return
        if status in _TRANSIENT:
            raise _Broken(f"HTTP {status}", done, response.headers.get("Retry-After"))
        if status in (401, 403):
            raise AccessExpired(f"{span}: HTTP {status}: the address is no longer accepted")
        if status == 200:
            raise ReadError(
                f"{span}: the server sent the whole file instead of the range",
                "use a server or mirror that serves byte ranges",
            )
        raise ReadError(f"{span}: HTTP {status}")

    def _span(self, start: int, buffer: memoryview) -> str:
        return f"{self.where}[{start}:{start + len(buffer)}]"


class _Broken(Exception):
    """One attempt failed; `done` bytes of the buffer are good. Never leaves this module.

    Of a client's error only the kind is passed on: its text may quote the address, which is signed.
    """

    def __init__(self, message: str, done: int, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.done = done
        self.retry_after = retry_after


def _pause(failures: int, retry_after: str | None) -> float:
    if retry_after is not None and retry_after.strip().isdigit():
        return min(float(retry_after), _LONGEST_PAUSE_S)
    return min(_FIRST_PAUSE_S * 2**failures, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
