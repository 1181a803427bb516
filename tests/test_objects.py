"""Object storage: the same suite in a bucket, through a real client and a real server (moto)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import from_url

import pipeline
from pipeline.errors import (
    NothingMatches,
    RequestError,
    SourceChanged,
    SourceNotFound,
    TransientReadError,
)
from pipeline.execute.work.urls import UrlBroker
from pipeline.planning.make import make_plan
from pipeline.planning.request import Request
from pipeline.transport import object_client
from pipeline.transport.reader import Reader
from tests import buckets
from tests.hub import Hub
from tests.suites import trajectory, write_suite


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with buckets.served() as found:
        yield found


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    return buckets.named("suites", endpoint, monkeypatch)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    rows = trajectory("walk", 4, 40_000, 0.1)
    return write_suite(tmp_path / "run-1", {"layers.0.w.weight": rows, "b": rows[:, :3]})


def upload(folder: Path, url: str) -> None:
    store = from_url(url)
    for path in folder.rglob("*.*"):
        if path.is_file():
            obstore.put(store, str(path.relative_to(folder)), path.read_bytes())


def dots(source: str, store: Path | str) -> list[tuple]:
    pipeline.analyze(source, str(store), executor="local", run="r")
    query = "SELECT scope, tensor, i, j, step_j, dot FROM similarity ORDER BY ALL"
    return pipeline.open_store(str(store)).sql(query).fetchall()


def test_a_bucket_gives_what_a_directory_gives(bucket: str, suite: Path, tmp_path: Path) -> None:
    upload(suite, f"{bucket}/team/run-1")
    expected = dots(str(suite), tmp_path / "local")
    assert dots(f"{bucket}/team/run-1", tmp_path / "bucket") == expected
    assert dots(f"{bucket}/team/run-1/", tmp_path / "slash") == expected
    plan, source = make_plan(Request(f"{bucket}/team/run-1"))
    assert plan.run == "suites-team-run-1"
    assert source.is_remote


def test_bare_files_and_manifests(bucket: str, suite: Path, tmp_path: Path) -> None:
    store = from_url(f"{bucket}/flat")
    for folder in suite.iterdir():
        data = (folder / "model.safetensors").read_bytes()
        obstore.put(store, f"{folder.name}.safetensors", data)
    expected = dots(str(suite), tmp_path / "local")
    assert dots(f"{bucket}/flat", tmp_path / "flat") == expected
    upload(suite, f"{bucket}/listed")
    lines = [f"{bucket}/listed/{folder.name}\n" for folder in suite.iterdir()]
    (tmp_path / "m.csv").write_text("uri\n" + "".join(lines))
    assert dots(str(tmp_path / "m.csv"), tmp_path / "manifest") == expected


def test_what_is_not_read_is_named_wherever_it_lies(
    bucket: str, suite: Path, served_hub: Hub
) -> None:
    """Folders in a checkpoint, and beside the checkpoints: of a bucket and the Hub as of a directory."""
    for name in (
        "step1/optimizer/rank0.pt", "step1/tokenizer/vocab.json", "step2/a/b/c/deep.bin",
        "README.md", "eval/a/b.json", "step9/optimizer.pt", "tmp-step8/model.safetensors",
    ):  # fmt: skip
        (suite / name).parent.mkdir(parents=True, exist_ok=True)
        (suite / name).write_text("x")
    upload(suite, f"{bucket}/account")
    served_hub.repository("org/account").commit_folder(suite, branch="main")

    def account(source: str) -> tuple[Any, ...]:
        plan, _ = make_plan(Request(source))
        return plan.account, plan.left_out_checkpoints, plan.unread

    expected = account(str(suite))
    assert account(f"{bucket}/account") == expected
    assert account("org/account") == expected
    plan, _ = make_plan(Request(str(suite)))
    assert [each.path for each in plan.account.beside] == [
        "README.md", "eval/", "eval/a/", "step9/", "step9/optimizer.pt",
    ]  # fmt: skip
    assert [set(of_one) for of_one in plan.unread] == [
        set(), {"optimizer/rank0.pt", "tokenizer/vocab.json"}, {"a/b/c/deep.bin"}, set(),
    ]  # fmt: skip


def test_an_object_that_changed_is_refused(bucket: str, suite: Path) -> None:
    upload(suite, f"{bucket}/changing")
    plan, source = make_plan(Request(f"{bucket}/changing"))
    reader = Reader(UrlBroker(plan, source))
    reader.read(0, [(0, memoryview(bytearray(100)))])
    store = from_url(f"{bucket}/changing")
    obstore.put(store, "step0/model.safetensors", b"x" * plan.files[0].size)
    with pytest.raises(SourceChanged, match="changed since it was planned"):
        reader.read(0, [(0, memoryview(bytearray(100)))])


def test_what_is_not_there(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceNotFound, match="no such bucket"):
        make_plan(Request("s3://nowhere/x"))
    with pytest.raises(NothingMatches, match="at least 2 checkpoints, found 0"):
        make_plan(Request(f"{bucket}/empty"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(object_client, "ATTEMPTS", 1)
    object_client.client.cache_clear()
    with pytest.raises(TransientReadError, match="GenericError"):
        make_plan(Request(f"{bucket}/other"))


LISTING = b"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult><Name>b</Name><KeyCount>1</KeyCount><IsTruncated>true</IsTruncated>
<NextContinuationToken>more</NextContinuationToken><Contents><Key>step1/model.safetensors</Key>
<Size>9</Size><ETag>"e"</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>
</ListBucketResult>"""
SKEWED = b"""<?xml version="1.0" encoding="UTF-8"?><Error><Code>RequestTimeTooSkewed</Code>
<Message>The difference between the request time and the current time is too large.</Message></Error>"""


@contextmanager
def answering(status: int, body: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have this process use a storage that says the same to everything."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        for name, value in buckets.environment(f"http://127.0.0.1:{server.server_port}").items():
            monkeypatch.setenv(name, value)
        object_client.client.cache_clear()
        yield
        server.shutdown()


@pytest.mark.timeout(60)
def test_a_listing_without_an_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Given up after a stated time, and announced before."""
    monkeypatch.setattr("pipeline.transport.object_client.QUESTION_S", 0.5)
    for module in ("waiting", "object_client"):
        monkeypatch.setattr(f"pipeline.transport.{module}.ANNOUNCED_S", 0.2)
    monkeypatch.setattr("pipeline.transport.limits.FIRST_PAUSE_S", 0.001)
    with (
        answering(200, LISTING, monkeypatch),
        pytest.raises(TransientReadError, match=r"s3://b: no answer for 0.5 s"),
    ):
        make_plan(Request("s3://b"))
    assert "s3://b: waiting for the storage for" in caplog.messages[0]


def test_a_clock_that_the_storage_does_not_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not "access denied": credentials are not what is wrong."""
    with (
        answering(403, SKEWED, monkeypatch),
        pytest.raises(RequestError, match="a clock as wrong as this machine's") as raised,
    ):
        make_plan(Request("s3://b"))
    assert "which says 20" in raised.value.hint
