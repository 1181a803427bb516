"""Object storage for tests: moto's server, and before it a proxy that can fail as networks do."""

from __future__ import annotations

import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.transport import object_client

SECRETS = ("canarySecretKey", "canarySessionToken")


@contextmanager
def served() -> Iterator[str]:
    """Yield the endpoint of an empty storage."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def named(name: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a bucket that is there already or not, have this process use it; return its address."""
    for variable, value in environment(endpoint).items():
        monkeypatch.setenv(variable, value)
    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    urllib.request.urlopen(request).close()
    object_client.client.cache_clear()
    return f"s3://{name}"


def environment(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRETS[0],
        "AWS_SESSION_TOKEN": SECRETS[1],
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
    }


class Proxy:
    """Passes requests on, and keeps what they were: `GET path`."""

    def __init__(self, endpoint: str) -> None:
        self.requests: list[str] = []
        self.fault: Callable[[str], str | None] = lambda request: None
        """What happens to a request: `500`, `403`, or `drop` once it has been passed on."""
        proxy, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else a body waits 40 ms for the headers' receipt

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = f"{self.command} {urllib.parse.unquote(self.path)}"
                with lock:
                    proxy.requests.append(request)
                    fault = proxy.fault(request)
                if fault in ("403", "500"):
                    self._answer(int(fault), [], " ".join(SECRETS).encode())
                    return
                connection = HTTPConnection(endpoint.removeprefix("http://"))
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                data = answer.read()
                connection.close()
                if fault == "drop":
                    self.close_connection = True
                    return
                self._answer(answer.status, answer.getheaders(), data)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

            def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def serve(self) -> Iterator[Proxy]:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        yield self
        self._server.shutdown()
        self._server.server_close()
