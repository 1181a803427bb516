"""The two servers: the Hub's API with its redirects, and the host that serves the bytes."""

from __future__ import annotations

import contextlib
import hmac
import json
import re
import secrets
import socket
import ssl
import struct
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from tests.hub.faults import Fault, Faults
from tests.hub.repository import Commit, Repository, StoredFile
from tests.hub.tls import Authority

API, RESOLVERS = "api", "resolvers"
_BUCKETS = {"resolve_head": RESOLVERS, "resolve_get": RESOLVERS}
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_API = re.compile(
    r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>refs|revision|tree|commits|paths-info)"
    r"(?:/(?P<rev>[^/]+))?(?:/(?P<path>.+))?)?"
)
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
_PIECE = 1 << 16


@dataclass(frozen=True)
class Record:
    """One request and what was answered."""

    kind: str
    repo: str
    commit: str
    path: str
    range: tuple[int, int] | None
    """Half-open range of bytes that was really sent."""
    status: int
    authorized: bool
    """Whether the request carried an Authorization header."""
    agent: str = ""


class Hub:
    """Repositories, what is to go wrong, and what was asked."""

    def __init__(self, page_size: int = 1000) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults = Faults()
        self.token = "hf_" + secrets.token_hex(8)
        self.page_size = page_size
        self.address_life_s = 3600.0
        self.marker = ""
        """Text that every signed address carries, for those who look where it turns up."""
        self.windows: dict[str, tuple[int, float]] = {}
        """Requests and seconds of a window, by bucket (`api`, `resolvers`); absent: no limit."""
        self._spent: dict[str, tuple[float, int]] = {}  # end of the window, requests in it
        self.records: list[Record] = []
        self.ahead_s = 0.0
        """How far the servers' clocks are ahead of this machine's."""
        self.absolute_expiry = False
        """Addresses say when they end (`Expires`), not how long they live (`X-Amz-Expires`)."""
        self.refuses_strangers = False
        """Tokens that are not known are refused, whatever is asked for, as the Hub does."""
        self.password = ""
        """`user:password` that both the API and files ask for, as a mirror may."""
        self.link = ""
        """What every listing names as its next page, if anything."""
        self.bytes_per_s: float | None = None
        """What all bodies together may be sent at, as over one link; None: as fast as it goes."""
        self._link_free = 0.0
        self.cdn_url = ""
        self._key = secrets.token_bytes(16)
        self._lock = threading.Lock()

    def repository(self, name: str, *, private: bool = False, gated: bool = False) -> Repository:
        return self.repositories.setdefault(name, Repository(name, private, gated))

    @contextmanager
    def serve(self, tls: Authority | None = None, host: str | None = None) -> Iterator[str]:
        """Run both servers, over TLS if there is an authority for it; yield the endpoint.

        Args:
            host: the address to listen on, if this machine alone is not to be served.
        """
        context = tls.context() if tls else None
        hub = _Server((host or "localhost", 0), _HubHandler, self, context)
        cdn = _Server((host or "127.0.0.1", 0), _CdnHandler, self, context)
        self.cdn_url = f"{cdn.scheme}://{host or '127.0.0.1'}:{cdn.server_port}"
        for server in (hub, cdn):
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"{hub.scheme}://{host or 'localhost'}:{hub.server_port}"
        finally:
            for server in (hub, cdn):
                server.shutdown()
                server.server_close()

    def count(self, kind: str) -> int:
        return Counter(record.kind for record in self.records)[kind]

    def ranges(self, path: str, commit: str | None = None) -> list[tuple[int, int]]:
        """Return the ranges of a file that the second host has sent, sorted."""
        return sorted(
            record.range
            for record in self.records
            if record.kind == "cdn"
            and record.path == path
            and record.range
            and commit in (None, record.commit)
        )

    def reset(self) -> None:
        self.records.clear()
        self.faults.clear()

    def note(self, record: Record) -> None:
        with self._lock:
            self.records.append(record)

    def wait_for_link(self, num_bytes: int) -> None:
        """Sleep until the link has taken so many bytes more."""
        if self.bytes_per_s is None:
            return
        with self._lock:
            start = max(self._link_free, time.monotonic())
            self._link_free = start + num_bytes / self.bytes_per_s
            end = self._link_free
        time.sleep(max(0.0, end - time.monotonic()))

    def spend(self, kind: str) -> dict[str, str] | None:
        """Return rate-limit headers of one more request, or None if there is no limit."""
        bucket = _BUCKETS.get(kind, API)
        with self._lock:
            if bucket not in self.windows:
                return None
            quota, seconds = self.windows[bucket]
            now = time.monotonic()
            end, used = self._spent.get(bucket, (0.0, 0))
            if now >= end:
                end, used = now + seconds, 0
            self._spent[bucket] = end, used + 1
        return {
            "RateLimit": f'"{bucket}";r={max(0, quota - used - 1)};t={int(end - now)}',
            "RateLimit-Policy": f'"fixed window";"{bucket}";q={quota};w={int(seconds)}',
            "over": "yes" if used >= quota else "",
        }

    def signed(self, repo: str, commit: str, path: str) -> str:
        expires = str(time.time() + self.ahead_s + self.address_life_s)
        life = (
            ("Expires", expires) if self.absolute_expiry else ("X-Amz-Expires", self.address_life_s)
        )
        query = {life[0]: life[1], "until": expires}
        target = f"/{repo}/{commit}/{quote(path)}"
        query["Signature"] = self.signature(target, expires)
        if self.marker:
            query["Marker"] = self.marker
        return f"{self.cdn_url}{target}?{urlencode(query)}"

    def signature(self, target: str, expires: str) -> str:
        return hmac.new(self._key, f"{target} {expires}".encode(), "sha256").hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    address_family = socket.AF_INET

    def __init__(
        self, address: tuple[str, int], handler: type, hub: Hub, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(address, handler)
        self.hub = hub
        self.scheme = "https" if tls else "http"
        self._tls = tls

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands here, in the connection's own thread: the others do not wait for it."""
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        secured = self._tls.wrap_socket(request, server_side=True)
        try:
            super().finish_request(secured, client_address)
        finally:
            self.shutdown_request(secured)  # `request` is empty since it was wrapped

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    limits: Mapping[str, str] = {}
    """Headers that say what is left of the account's window."""
    fault: Fault | None = None
    """What is to go wrong with an answer of the API."""

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(timestamp or time.time() + self.hub.ahead_s)

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def delay(self, fault: Fault | None) -> bool:
        """Do not answer in time, if the fault says so; return whether it did."""
        if fault is None or fault.action not in ("silent", "slow_headers"):
            return False
        with contextlib.suppress(OSError):  # the client hung up
            if fault.action == "silent":
                time.sleep(fault.seconds)
            else:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                for _ in range(10_000):
                    self.wfile.write(b"x")
                    time.sleep(fault.seconds)
        self.close_connection = True
        return True

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**self.limits, **headers}.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.write(body)

    def write(self, body: bytes) -> None:
        """Send a body, a byte now and then if the fault says so."""
        if self.fault is None or self.fault.action != "trickle":
            self.wfile.write(body)
            return
        with contextlib.suppress(OSError):  # the client hung up
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(self.fault.seconds)

    def noted(self, kind: str, status: int, repo: str = "", commit: str = "", path: str = "",
              span: tuple[int, int] | None = None) -> None:  # fmt: skip
        authorized = "Authorization" in self.headers
        agent = self.headers.get("User-Agent", "")
        self.hub.note(Record(kind, repo, commit, path, span, status, authorized, agent))

    def send_file(self, kind: str, repo: str, commit: Commit, file: StoredFile, etag: str,
                  fault: Fault | None, **headers: str) -> None:  # fmt: skip
        """Send a file or the range of it that was asked for, as the fault will have it."""
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        action = fault.action if fault else None
        if action == "chunked":
            self._send_chunks(kind, repo, commit, file)
            return
        start, stop, status = 0, file.size, 200
        if asked and action != "ignore_range" and not (fault and fault.whole):
            start = int(asked[1])
            stop = min(file.size, int(asked[2]) + 1 if asked[2] else file.size)
            status = 206
            if start >= file.size or start >= stop:
                self.noted(kind, 416, repo, commit.sha, file.path)
                self.answer(416, Content_Range=f"bytes */{file.size}")
                return
        total = file.size + (1 if action == "wrong_total" else 0)
        shift = 1 if action == "wrong_content_range" else 0
        if status == 206:
            headers["Content_Range"] = f"bytes {start + shift}-{stop - 1 + shift}/{total}"
        headers["ETag"] = '"another"' if action == "wrong_etag" else f'"{etag}"'
        headers |= {"Accept_Ranges": "bytes", "Content_Length": str(stop - start)}
        if action == "encoded":
            headers["Content_Encoding"] = "gzip"
        self.answer(status, **headers)
        if self.command == "HEAD":
            return
        if fault is None:  # before the client has the last byte and looks at the records
            self.noted(kind, status, repo, commit.sha, file.path, (start, stop))
        sent = self._send_body(file, start, stop, fault)
        if fault:
            self.noted(kind, status, repo, commit.sha, file.path, (start, start + sent))

    def _send_chunks(self, kind: str, repo: str, commit: Commit, file: StoredFile) -> None:
        """Send all of a file and say neither how long nor what it is, as olah does."""
        self.answer(200, Transfer_Encoding="chunked", Content_Length="")
        for at in range(0, file.size, _PIECE):
            data = bytes(file.read(at, min(file.size, at + _PIECE)))
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")
        self.noted(kind, 200, repo, commit.sha, file.path, (0, file.size))

    def _send_body(self, file: StoredFile, start: int, stop: int, fault: Fault | None) -> int:
        """Send a body as the fault will have it; return how many bytes of it were sent."""
        action = fault.action if fault else None
        limit = start + fault.limit(stop - start) if fault else stop
        at = start
        try:
            while at < limit:
                data = file.read(at, min(limit, at + _PIECE))
                if action == "changed_file":
                    data = bytes(byte ^ 0xFF for byte in data)
                self.hub.wait_for_link(len(data))
                self.wfile.write(data)
                at += len(data)
            if fault and action == "stall":
                time.sleep(fault.seconds)
            if fault and action == "trickle":
                for _ in range(100):
                    self.wfile.write(file.read(at, at + 1))
                    at += 1
                    time.sleep(fault.seconds)
        except OSError:
            self.close_connection = True  # the client hung up
        if at < stop or action == "reset":
            self.close_connection = True
            if action == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        return at - start


class _CdnHandler(_Handler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        org, name, sha, path = unquote(url.path).strip("/").split("/", 3)
        repo = f"{org}/{name}"
        fault = self.hub.faults.choose("cdn", path)
        if self.delay(fault):
            self.noted("cdn", 0, repo, sha, path)
            return
        status = 0
        expected = self.hub.signature(url.path, query.get("until", ""))
        if (
            not hmac.compare_digest(expected, query.get("Signature", ""))
            or float(query["until"]) < time.time() + self.hub.ahead_s
        ):
            status = 403
        elif fault and fault.action == "status":
            status = fault.status
        if status:
            self.noted("cdn", status, repo, sha, path)
            self.answer(status, **(fault.headers if fault else {}))
            return
        commit = self.hub.repositories[repo].commits[sha]
        file = commit.files[path]
        if self.headers.get("If-Match", f'"{file.sha256}"') != f'"{file.sha256}"':
            self.noted("cdn", 412, repo, sha, path)
            self.answer(412)
            return
        self.send_file("cdn", repo, commit, file, file.sha256, fault)


class _HubHandler(_Handler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if found := _RESOLVE.fullmatch(url.path):
            kind = "resolve_head" if self.command == "HEAD" else "resolve_get"
        elif found := _API.fullmatch(url.path):
            kind = (found["what"] or "revision").replace("-", "_")
        else:
            self.noted("unknown", 404, path=url.path)
            self.answer(404)
            return
        fields = {name: unquote(value or "") for name, value in found.groupdict().items()}
        limits = self.hub.spend(kind)
        self.fault = fault = self.hub.faults.choose(kind, fields["path"])
        over = limits.pop("over") if limits else ""
        self.limits = {name.replace("-", "_"): value for name, value in (limits or {}).items()}
        if over or (fault and fault.action == "status"):
            status = fault.status if fault else 429
            self.noted(kind, status, fields["repo"], path=fields["path"])
            self.answer(status, **(fault.headers if fault else {}))
            return
        if self.delay(fault):
            self.noted(kind, 0, fields["repo"], path=fields["path"])
            return
        self._serve(kind, fields, query, fault)

    def _serve(
        self, kind: str, fields: dict[str, str], query: dict[str, str], fault: Fault | None
    ) -> None:
        repo = self.hub.repositories.get(fields["repo"])
        rights = self.headers.get("Authorization", "")
        known = rights == f"Bearer {self.hub.token}"
        expected = "Basic " + b64encode(self.hub.password.encode()).decode()
        if self.hub.password and rights != expected:
            self._refused(kind, 401, "", fields)
        elif self.hub.refuses_strangers and rights and not known:
            self._refused(kind, 401, "", fields, 'User Access Token "laptop" is expired')
        elif repo is None or (repo.private and not known):
            self._refused(kind, 401, "RepoNotFound", fields)
        elif repo.gated and not known:
            self._refused(kind, 403, "GatedRepo", fields)
        elif kind == "refs":
            self._json(kind, fields, _refs(repo))
        elif (commit := repo.resolve(fields.get("rev") or "main")) is None:
            self._refused(kind, 404, "RevisionNotFound", fields)
        elif kind.startswith("resolve"):
            file = commit.files.get(fields["path"])
            if file is None:
                self._refused(kind, 404, "EntryNotFound", fields)
            else:
                self._resolve(kind, repo, commit, file, fault)
        else:
            self._listing(kind, fields, query, repo, commit)

    def _resolve(
        self, kind: str, repo: Repository, commit: Commit, file: StoredFile, fault: Fault | None
    ) -> None:
        pinned = {"X_Repo_Commit": commit.sha}
        if repo.direct or not file.is_lfs:
            if self.command == "HEAD":
                self.noted(kind, 200, repo.name, commit.sha, file.path)
            self.send_file(kind, repo.name, commit, file, file.blob_id, fault, **pinned)
            return
        self.noted(kind, 302, repo.name, commit.sha, file.path)
        self.answer(
            302,
            Location=self.hub.signed(repo.name, commit.sha, file.path),
            X_Linked_Size=str(file.size),
            X_Linked_Etag=f'"{file.sha256}"',
            **pinned,
        )

    def _listing(
        self, kind: str, fields: dict[str, str], query: dict[str, str], repo: Repository,
        commit: Commit,
    ) -> None:  # fmt: skip
        if kind == "revision":
            siblings = [{"rfilename": path} for path in sorted(commit.files)]
            self._json(kind, fields, {"id": repo.name, "sha": commit.sha, "siblings": siblings})
            return
        if kind == "paths_info":
            wanted = parse_qs(self.body.decode()).get("paths", [])
            if self.body.startswith(b"{"):
                wanted = json.loads(self.body)["paths"]
            self._json(kind, fields, [_entry(commit.files[p]) for p in wanted if p in commit.files])
            return
        if kind == "commits":
            entries = [_commit_entry(entry) for entry in repo.history(commit)]
        else:
            prefix = fields["path"].rstrip("/") + "/" if fields["path"] else ""
            paths = [path for path in sorted(commit.files) if path.startswith(prefix)]
            if query.get("recursive", "false").lower() not in ("true", "1"):
                paths = [path for path in paths if "/" not in path[len(prefix) :]]
            entries = [_entry(commit.files[path]) for path in paths]
        first = int(query.get("cursor", 0))
        page, headers = entries[first : first + self.hub.page_size], {}
        if first + self.hub.page_size < len(entries):
            url = urlsplit(self.path)
            following = urlencode({**query, "cursor": first + self.hub.page_size})
            host = self.headers["Host"]
            headers["Link"] = f'<{self.server.scheme}://{host}{url.path}?{following}>; rel="next"'
        if self.hub.link:
            headers["Link"] = f'<{self.hub.link}>; rel="next"'
        self._json(kind, fields, page, **headers)

    def _json(self, kind: str, fields: dict[str, str], value: Any, **headers: str) -> None:
        self.noted(kind, 200, fields["repo"], fields.get("rev", ""), fields["path"])
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _refused(
        self, kind: str, status: int, code: str, fields: dict[str, str], message: str = ""
    ) -> None:
        self.noted(kind, status, fields["repo"], fields.get("rev", ""), fields["path"])
        stated = {"X_Error_Code": code} if code else {}
        self.answer(status, X_Error_Message=message or code, **stated)


def _refs(repo: Repository) -> dict[str, Any]:
    def listed(refs: dict[str, str], where: str) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{where}/{name}", "targetCommit": sha}
            for name, sha in refs.items()
        ]

    return {
        "branches": listed(repo.branches, "heads"),
        "tags": listed(repo.tags, "tags"),
        "converts": [],
    }


def _entry(file: StoredFile) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file", "path": file.path, "size": file.size, "oid": file.blob_id,
    }  # fmt: skip
    if file.is_lfs:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return entry


def _commit_entry(commit: Commit) -> dict[str, Any]:
    return {
        "id": commit.sha,
        "title": commit.message.partition("\n")[0],
        "message": commit.message.partition("\n")[2],
        "date": "2024-01-01T00:00:00.000Z",
        "authors": [{"user": "somebody"}],
    }
