"""A store on object storage: what a directory gives, whatever the network and other drivers do."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import obstore
import pytest
from obstore.store import from_url

import pipeline
from pipeline.errors import QueryError, StoreUnusable
from pipeline.store.folder import Folder
from pipeline.store.progress import records
from pipeline.store.query import Store
from pipeline.store.schema import SCHEMAS
from pipeline.transport import object_client
from tests import buckets
from tests.buckets import SECRETS, Proxy
from tests.commands import Done, hallmarks
from tests.suites import trajectory, write_suite
from tests.test_bits import SMALL_TILES

VIEWS = {view: f"FROM {view}" for view in SCHEMAS} | {
    "runs": "SELECT * EXCLUDE (created_at, seconds, bytes_read) FROM runs",
    "groups": "SELECT * EXCLUDE (attempt) FROM groups",
}


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with buckets.served() as endpoint:
        yield endpoint


@pytest.fixture
def proxy(moto: str) -> Iterator[Proxy]:
    with Proxy(moto).serve() as found:
        yield found


@pytest.fixture
def store(proxy: Proxy, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a store that is not there yet, in a bucket that is."""
    url = f"{buckets.named('stores', proxy.endpoint, monkeypatch)}/{request.node.name}"
    monkeypatch.setattr("pipeline.transport.limits.FIRST_PAUSE_S", 0.001)
    proxy.requests.clear()
    return url


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = trajectory("walk", 6, 3000, 0.1)
    folder = tmp_path_factory.mktemp("objects") / "suite"
    return write_suite(folder, {"layers.0.w.weight": rows, "b": rows[:, :3]})


@pytest.fixture(scope="module")
def local(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("objects") / "store")
    pipeline.analyze(str(suite), folder, executor="local", run="r")
    return folder


def rows(store: duckdb.DuckDBPyConnection | Store, query: str) -> list[dict]:
    return sorted(store.sql(query).to_arrow_table().to_pylist(), key=repr)


def everything(path: str) -> dict[str, list[dict]]:
    """Return all rows of all views, but for when and how fast they were made."""
    store = Store(path)
    return {view: rows(store, query) for view, query in VIEWS.items()}


def files(url: str) -> list[str]:
    return sorted(entry["path"] for page in obstore.list(from_url(url)) for entry in page)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from jobs.cli import main; main()", *map(str, arguments)]


def refused(done: Done) -> str:
    """Return the one line of an error that is the user's."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) <= 2 and lines[0].startswith("error: ") and done.stdout == ""
    assert not any(secret in done.stderr for secret in SECRETS)
    return lines[0]


def test_a_bucket_holds_what_a_directory_holds(store: str, suite: Path, local: str) -> None:
    options = {"executor": "local", "run": "r"}
    assert not pipeline.analyze(str(suite), store, **options).already_complete
    expected = everything(local)
    assert everything(store) == expected
    assert pipeline.analyze(str(suite), store, **options).already_complete
    ours, theirs = (pipeline.open_store(path) for path in (store, local))
    assert np.array_equal(ours.trajectory_map("r"), theirs.trajectory_map("r"), equal_nan=True)
    pipeline.analyze(str(suite), store, fresh=True, **options)
    assert everything(store) == expected
    there = [path for path in files(store) if path.startswith(("_tiles", "similarity"))]
    assert len(there) == 1  # one attempt, no tiles, no lease
    assert [len(rows(ours, "FROM runs")), files(f"{store}x")] == [1, []]


QUERIES = (
    "SELECT i, j, cosine FROM similarity WHERE run = 'r' AND scope = 'layer'"
    " AND layer IS NOT DISTINCT FROM 0 AND i IN (1, 2)",
    "SELECT * FROM indicators WHERE indicator LIKE 'm%' AND (value > 0.5 OR value IS NULL)",
    "SELECT run, basis, max(share) FROM spectrum WHERE rank <= 2 AND basis <> 'centered' GROUP BY ALL",
    "SELECT * FROM path WHERE step BETWEEN 1 AND 3 AND displacement > 0.1 OR k = 5",
    "SELECT tensor FROM tensors WHERE list_contains(shape, 3)",
    "SELECT run FROM runs WHERE complete AND created_at > TIMESTAMPTZ '2020-01-01'",
    "FROM trajectory_map('r', scope := 'tensor') WHERE i > j",
    "FROM settled('r', 0.5, scope := 'layer')",
    "FROM from_anchor('r', 2) WHERE relative_cosine < 0.5",
    "SELECT t.tensor, count(*) FROM tensors t JOIN similarity s USING (run, tensor) GROUP BY ALL",
)


def test_queries_read_what_they_name(store: str, suite: Path, local: str, proxy: Proxy) -> None:
    pipeline.analyze(str(suite), store, executor="local", run="r")
    opened, expected = Store(store), Store(local)
    for query in QUERIES:
        assert rows(opened, query) == rows(expected, query)
    pipeline.analyze(str(suite), store, executor="local", run="other")
    opened = Store(store)
    proxy.requests.clear()
    assert [row["run"] for row in rows(opened, "FROM runs")] == ["other", "r"]
    assert proxy.requests == []  # read when it was opened
    rows(opened, "FROM indicators WHERE run = 'r'")
    read = [tuple(request.split("/")[3:5]) for request in proxy.requests]
    assert set(read) - {("",)} == {("indicators", "run=r"), ("groups", "run=r")}
    assert read.count(("",)) == 2  # listed, both tables


def test_other_programs_read_it_by_its_views(store: str, suite: Path, local: str) -> None:
    """`views.sql` names the bucket, so that it can be run from anywhere, with an extension."""
    pipeline.analyze(str(suite), store, executor="local", run="r")
    text = (Folder(store).read("views.sql") or b"").decode()
    assert "INSTALL httpfs" in text and "in the store's directory" not in text
    assert f"read_parquet('{store}/runs/run=*/*.parquet'" in text
    connection = duckdb.connect()
    connection.execute(text.replace(store, local))  # which needs none
    for view in ("runs", "similarity"):
        assert rows(connection, VIEWS[view]) == rows(Store(local), VIEWS[view])


def test_a_run_that_is_written_again_is_not_mixed(store: str, suite: Path) -> None:
    pipeline.analyze(str(suite), store, executor="local", run="r")
    opened = Store(store)
    assert rows(opened, "FROM path")
    pipeline.analyze(str(suite), store, executor="local", run="r", fresh=True)
    assert len(rows(opened, "FROM runs")) == 1
    with pytest.raises(QueryError, match="run r was written again meanwhile"):
        opened.sql("FROM spectrum")
    with pytest.raises(QueryError, match=r"is gone\.$"):
        list(opened.rows("FROM path")[1])
    assert len(rows(Store(store), "FROM path WHERE scope = 'model'")) == 6


def test_commands(store: str, suite: Path, local: str) -> None:
    """On Ray workers put their results themselves: tests/test_cluster.py."""
    analyze = ("analyze", suite, "--executor", "local", "--run", "r", "--store")
    done = hallmarks(*analyze, store)
    assert done.returncode == 0, done.stderr
    assert f"results: {store}" in done.stdout
    assert not any(secret in done.stderr + done.stdout for secret in SECRETS)
    assert everything(store) == everything(local)
    ask = ("sql", "--store", store, "--format", "csv")
    done = hallmarks(*ask, "SELECT k, name FROM checkpoints ORDER BY k LIMIT 2")
    assert (done.stdout, done.stderr) == ("k,name\n0,step0\n1,step1\n", "")
    assert "nothing found" in hallmarks("audit", "--store", store).stdout
    missing = refused(hallmarks(*analyze, "s3://nowhere/x"))
    assert missing == "error: --store s3://nowhere/x: no such bucket"


def test_what_cannot_be_written_is_refused(store: str, suite: Path, proxy: Proxy) -> None:
    """At once: no weight is read, nothing is written, nothing is shown that may be a secret."""

    def refusal(where: str) -> str:
        with pytest.raises(StoreUnusable) as found:
            pipeline.analyze(str(suite), where, executor="local")
        text = f"{found.value.message} {found.value.hint}"
        assert "\n" not in text and not any(secret in text for secret in SECRETS)
        return text

    assert "no such bucket" in refusal("s3://nowhere/x")
    assert "expected a directory or object storage" in refusal("ftp://somewhere/x")
    assert "expected a directory or object storage" in refusal("s3://")
    assert "expected a URL like s3://bucket/prefix" in refusal(f"s3://user:{SECRETS[0]}@stores/x")
    assert "expected a URL like s3://bucket/prefix" in refusal(f"{store}?token={SECRETS[0]}")
    assert "az://container/x/runs/run=suite: GenericError" in refusal("az://container/x")
    proxy.requests.clear()
    proxy.fault = lambda request: "403" if request.startswith("PUT") else None
    assert "_leases/run=suite/0000000001: access denied" in refusal(store)
    assert sum(request.startswith("PUT") for request in proxy.requests) == 1
    assert files(store) == []
    proxy.fault = lambda request: "403"
    assert "runs/run=suite: access denied" in refusal(store)
    proxy.fault = lambda request: None
    with pytest.raises(StoreUnusable, match="no finished run"):
        Store(store)


def failing(proxy: Proxy) -> None:
    """Have every fourth request fail, and every fourth have its effect but no answer."""
    count = iter(range(10**6))
    faults = (None, "500", None, "drop")
    proxy.fault = lambda request: faults[next(count) % 4]


def test_failing_requests_lose_and_double_nothing(
    store: str, suite: Path, local: str, proxy: Proxy
) -> None:
    failing(proxy)
    pipeline.analyze(str(suite), store, executor="local", run="r")
    assert everything(store) == everything(local)
    proxy.fault = lambda request: None
    names = [path.split("/")[0] for path in files(store)]
    assert sorted(set(names) - {"_sums", "_leases"}) == sorted([*SCHEMAS, "views.sql"])
    assert all(names.count(table) == 1 for table in SCHEMAS)


def test_a_create_knows_its_own_success(store: str, proxy: Proxy) -> None:
    folder = pickle.loads(pickle.dumps(Folder(store)))
    faults = iter(["drop", "500"])
    proxy.fault = lambda request: next(faults, None)
    assert folder.create("a", b"mine")
    assert proxy.requests == [
        *[f"PUT {store[4:]}/a"] * 3,
        f"GET {store[4:]}/a",
    ]
    assert not folder.create("a", b"another's")
    assert folder.read("a") == b"mine"


def test_storage_that_stays_away_is_an_error(
    store: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.fault = lambda request: "500"
    for action in (
        lambda folder: folder.create("a", b""),
        lambda folder: folder.read("a"),
        lambda folder: folder.list("a"),
        lambda folder: folder.delete(["a"]),
    ):
        proxy.requests.clear()
        with pytest.raises(StoreUnusable, match="GenericError") as error:
            action(Folder(store))
        assert len(proxy.requests) == object_client.ATTEMPTS
        assert not any(secret in repr(error.value) for secret in SECRETS)


def test_a_killed_job_goes_on_where_it_stopped(
    store: str, twelve_tiles: Path, proxy: Proxy, tmp_path: Path
) -> None:
    expected = str(tmp_path / "local")
    pipeline.analyze(str(twelve_tiles), expected, executor="local", run="r")
    put, second = set(), threading.Event()

    def refuse_the_second_tile(request: str) -> str | None:
        if request.startswith("PUT") and request.endswith(".safetensors"):
            put.add(request)
            if len(put) > 1:
                second.set()
                return "500"
        return None

    proxy.fault = refuse_the_second_tile
    analyze = ("analyze", twelve_tiles, "--store", store, "--executor", "local", "--run", "r")
    program = f"{SMALL_TILES}from jobs.cli import main\nmain()"
    job = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, analyze)], stderr=subprocess.PIPE, text=True
    )
    assert second.wait(60)
    assert "is being written by process" in refused(hallmarks(*analyze))
    job.kill()
    job.communicate()
    assert not [path for path in files(store) if not path.startswith(("_tiles/", "_leases/"))]
    proxy.fault = lambda request: None
    (record,) = records(Folder(store))
    assert record.state == "reading" and record.tiles > 1
    summary = pipeline.analyze(str(twelve_tiles), store, executor="local", run="r")
    assert summary.resumed_tiles == 1
    assert summary.bytes_read < summary.bytes_total
    assert Folder(store).list("_tiles") == []
    assert everything(store) == everything(expected)
