"""An HTTP proxy on loopback: passes whole addresses on, tunnels TLS, and asks for a password if told."""

from __future__ import annotations

import http.client
import select
import socket
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_OWN = ("proxy-authorization", "proxy-connection", "connection", "keep-alive")


class Proxy:
    """What passed through, and what is demanded."""

    def __init__(self, password: str = "") -> None:
        """`password`: `user:password` that clients must send."""
        self.password = password
        self.passed: list[str] = []
        """Of each request: the method, and the address or, of a tunnel, host and port."""
        self.refused = 0
        self.status = 0
        """Answered to everything, if set."""

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Run the proxy; yield its host and port."""
        server = _Server(("127.0.0.1", 0), _Handler)
        server.proxy = self
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()

    def hosts(self) -> set[str]:
        """Return host and port of whatever was asked for."""
        targets = [entry.partition(" ")[2] for entry in self.passed]
        return {urlsplit(target).netloc or target for target in targets}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    proxy: Proxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def _admitted(self) -> bool:
        proxy = self.server.proxy
        expected = "Basic " + b64encode(proxy.password.encode()).decode()
        wrong = proxy.password and self.headers.get("Proxy-Authorization") != expected
        status = proxy.status or (407 if wrong else 0)
        if status:
            proxy.refused += 1
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return False
        proxy.passed.append(f"{self.command} {self.path}")
        return True

    def do_CONNECT(self) -> None:
        if not self._admitted():
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), 10) as there:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: there, there: self.connection}
            while True:
                for ready in select.select(list(ends), [], [])[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        self.close_connection = True
                        return
                    ends[ready].sendall(data)

    def do_GET(self) -> None:
        if not self._admitted():
            return
        url = urlsplit(self.path)
        there = http.client.HTTPConnection(url.hostname or "", url.port, timeout=30)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in _OWN}
        try:
            there.request(self.command, f"{url.path}?{url.query}".rstrip("?"), headers=kept)
            answer = there.getresponse()
            body = answer.read()
        finally:
            there.close()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _OWN:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET
