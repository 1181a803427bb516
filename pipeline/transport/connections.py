"""The connections of one process, over which ranges come: whatever a server sends, reads end.

The standard library's client, one connection for each thread and host (docs/architecture.md and
benchmarks/results/network.md say why), through the proxy that the environment names.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import random
import socket
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol
from urllib.parse import urlsplit

from pipeline.errors import ReadError, quoted
from pipeline.transport.proxies import PORTS, Proxy, proxy_of
from pipeline.version import VERSION

_CONNECT_S = 10.0
_ANSWER_S = 15.0
"""To the last header, from the request on: a store may first put the range together."""

_USER_AGENT = f"hallmarks/{VERSION}"


class Notices(Protocol):
    """Who else is told what happens on the connections. Safe in threads."""

    def paused(self, host: str, seconds: float) -> None:
        """Take note that a host requested a pause, which concerns every process."""
        ...

    def waiting(self, host: str, why: str) -> None:
        """Tell the user why reading takes long."""
        ...


class Count(Protocol):
    """Told what happened since it was told last, by name."""

    def __call__(self, **more: float) -> None: ...


def uncounted(**_: float) -> None:
    """Count nothing."""


class Response(http.client.HTTPResponse):
    """An answer that is read within a stated time, however its bytes trickle in."""

    def __init__(
        self,
        sock: socket.socket,
        debuglevel: int = 0,
        method: str | None = None,
        url: str | None = None,
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self._timed = _Timed(self.fp.detach(), sock)
        self.fp = io.BufferedReader(self._timed)
        self.within(_ANSWER_S)

    def within(self, seconds: float) -> None:
        """Let all that is read from now on, up to the next call, take so long.

        A read that does not end in time raises TimeoutError.
        """
        self._timed.until = time.monotonic() + seconds


class _Timed(io.RawIOBase):
    """What a socket receives, until a point in time. Its own timeout is for each packet only."""

    def __init__(self, raw: Any, sock: socket.socket) -> None:
        self._raw, self._sock = raw, sock
        self.until = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self.until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._sock.settimeout(left_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class Connections:
    """The connections of one process: every thread has its own, one to each host."""

    def __init__(self, notices: Notices, count: Count = uncounted) -> None:
        """`count`: told of `retries`, and of `rate_limited_seconds` that hosts requested."""
        self.notices, self.count = notices, count
        self._of_thread = threading.local()
        self._free_at: dict[str, float] = defaultdict(float)

    def get(self, url: str, headers: Mapping[str, str]) -> Response:
        """Return the answer to a request, of which status and headers have been read.

        It is to be read to its end, or the connection dropped, before this thread's next request.
        Waits while the host's pause lasts.

        Raises:
            RequestError: the environment names something else than an HTTP proxy.
            OSError, http.client.HTTPException, ValueError: there was no answer. They may quote
                `url`.
        """
        while (seconds := self._free_at[host_of(url)] - time.monotonic()) > 0:
            time.sleep(seconds + random.uniform(0, 0.5))  # not all in the same moment
        connection = self._connection(url)
        kept = connection.client.sock is not None
        try:
            return connection.get(url, headers)
        except ConnectionError:
            if not kept:
                raise
            # a server may close a connection that it kept, at any time: that is no failure yet
            connection.client.close()
            return connection.get(url, headers)

    @cached_property
    def _trust(self) -> ssl.SSLContext:
        """The certificates of this machine: 25 ms to read, which an analysis of a directory spares."""
        return ssl.create_default_context()

    def pause(self, host: str, seconds: float) -> None:
        """Send nothing to a host for so long, in all threads."""
        self._free_at[host] = max(self._free_at[host], time.monotonic() + seconds)

    def drop(self, url: str) -> None:
        """Close this thread's connection to a host: something unread is in it."""
        with contextlib.suppress(ValueError):  # a malformed URL has none
            self._connection(url).client.close()

    def _connection(self, url: str) -> _Connection:
        connections = self._of_thread.__dict__
        key = host_of(url)
        if key not in connections:
            connections[key] = _Connection(url, self._trust)
        return connections[key]


class _Connection:
    """A connection to a URL's host, direct or through a proxy."""

    def __init__(self, url: str, trust: ssl.SSLContext) -> None:
        parts, proxy = urlsplit(url), proxy_of(url)
        host, port = parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0)
        to = (proxy.host, proxy.port) if proxy else (host, port)
        self._proxy: Proxy | None = None
        """That is sent whole URLs. One that passes TLS on is invisible to requests."""
        if parts.scheme == "https":
            client = http.client.HTTPSConnection(*to, timeout=_CONNECT_S, context=trust)
            if proxy:
                client.set_tunnel(host, port, {"Host": f"{host}:{port}", **proxy.credentials})
        else:
            client = http.client.HTTPConnection(*to, timeout=_CONNECT_S)
            self._proxy = proxy
        client.response_class = Response
        self.client = client

    def get(self, url: str, headers: Mapping[str, str]) -> Response:
        if self.client.sock is None:
            self.client.connect()
        assert self.client.sock is not None
        self.client.sock.settimeout(_ANSWER_S)
        parts = urlsplit(url)
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        credentials: Mapping[str, str] = {}
        if self._proxy:
            target, credentials = host_of(url) + target, self._proxy.credentials
        sent = {"User-Agent": _USER_AGENT, **headers, **credentials}
        self.client.request("GET", target, headers=sent)
        response = self.client.getresponse()
        assert isinstance(response, Response)
        return response


def host_of(url: str) -> str:
    """Return a URL's scheme, host and port, none of which is a secret."""
    parts = urlsplit(url)
    port = parts.port if parts.port not in (None, PORTS.get(parts.scheme)) else None
    name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    return f"{parts.scheme}://{name}" + (f":{port}" if port else "")


def without_password(url: str) -> str:
    """Return a URL without its user name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def untrusted(where: str, error: ssl.SSLCertVerificationError) -> ReadError:
    """Return the error for a certificate that is not accepted."""
    why = getattr(error, "verify_message", "") or "not trusted"
    return ReadError(
        f"{where}: the host's certificate is not trusted: {quoted(why)}",
        "name the authority's certificate in SSL_CERT_FILE; if it is too old or too new, check"
        f" this machine's clock: {time.strftime('%Y-%m-%d %H:%M')}",
    )
