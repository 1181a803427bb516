"""A query reads the store's files and nothing else, and writes nothing, unless it is let."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import pipeline
from pipeline.errors import QueryError
from pipeline.store.query import Store
from tests.commands import hallmarks
from tests.suites import trajectory, write_suite
from tests.terminals import on_terminal
from tests.test_store_objects import refused, rows


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("confined")
    suite = write_suite(folder / "suite", {"layers.0.w.weight": trajectory("walk", 6, 3000, 0.1)})
    pipeline.analyze(str(suite), str(folder / "store"), executor="local", run="r")
    return folder / "store"


@pytest.fixture(scope="module")
def opened(store: Path) -> Store:
    return pipeline.open_store(store)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, empty but for a file of the user's."""
    monkeypatch.chdir(tmp_path)
    Path("mine.csv").write_text("secret\n1\n")
    Path("mine.parquet").write_bytes(b"PAR1")
    monkeypatch.setenv("SECRET", "hf_secret")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


REFUSED = [
    "COPY (SELECT 1) TO 'out.csv'",
    "COPY (SELECT 1) TO '{file}'",
    "COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)",
    "EXPLAIN (FORMAT json, ANALYZE) COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)",
    "explain/**/analyze/**/copy (SELECT 1) to '{file}' (USE_TMP_FILE false)",
    "SELECT 1; COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)",
    "PREPARE p AS COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false); EXECUTE p",
    "CREATE TABLE t AS SELECT 1; COPY t TO 'out.parquet'",
    "EXPORT DATABASE 'out'",
    "IMPORT DATABASE 'out'",
    "ATTACH 'out.duckdb'",
    "ATTACH '{file}'",
    "ATTACH ':memory:' AS other",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '/tmp/any.so'",
    "FROM 'mine.csv'",
    "FROM read_csv('mine.csv')",
    "FROM read_text('mine.csv')",
    "FROM read_blob('/etc/passwd')",
    "FROM glob('*')",
    "FROM sniff_csv('mine.csv')",
    "FROM parquet_metadata('mine.parquet')",
    "FROM read_json('mine.csv')",
    "FROM read_text('{store}/views.sql')",
    "FROM read_text('{store}/../suite/step0/model.safetensors')",
    "CREATE MACRO f(a) AS TABLE FROM read_text(a); FROM f('mine.csv')",
    "FROM 'http://localhost:9/x.parquet'",
    "FROM read_text('s3://bucket/x')",
    "CREATE PERSISTENT SECRET s (TYPE http)",
    "SET threads = 1",
    "RESET threads",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "SET allowed_paths = ['mine.csv']",
    "PRAGMA enable_profiling = 'json'",
    "PRAGMA threads = 1",
    "CALL enable_logging(storage = 'file', storage_path = 'logs')",
    "CALL enable_profiling(save_location = 'profile.json')",
    "SELECT getenv('SECRET')",
    "FROM secret_frame",
    "CHECKPOINT",
    "VACUUM",
    "FROM duckdb_extensions()",
    "UPDATE EXTENSIONS",
    "FORCE INSTALL httpfs",
    "FROM query_table('mine.csv')",
    "FROM query('FROM read_text(''mine.csv'')')",
    "FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''mine.csv'')'))",
    "CREATE TABLE t AS FROM read_csv('mine.csv')",
    "CREATE TABLE t (secret INT); INSERT INTO t FROM 'mine.csv'",
    "CREATE VIEW v AS FROM 'mine.csv'; FROM v",
    "CREATE TYPE kind AS ENUM (SELECT content FROM read_text('mine.csv'))",
    "CREATE TEMP MACRO f() AS TABLE FROM 'mine.csv'; FROM f()",
    "PIVOT (FROM read_csv('mine.csv')) ON secret",
    "WITH a AS MATERIALIZED (FROM 'mine.csv') FROM a",
    "EXPLAIN ANALYZE FROM 'mine.csv'",
    "SUMMARIZE FROM 'mine.csv'",
    "DESCRIBE FROM 'mine.csv'",
    'FROM "mine.csv"',
    "FROM read_ndjson_objects('mine.csv')",
    "FROM parquet_schema('mine.parquet')",
    "FROM read_parquet('{store}/*/*/*.parquet')",
    "FROM read_text('file:///etc/passwd')",
    "FROM read_text('/proc/self/environ')",
    "FROM read_csv('/dev/stdin')",
    "FROM 'https://localhost:9/x.parquet'",
    "FROM read_parquet('hf://datasets/org/name/x.parquet')",
    "FROM read_duckdb('other.duckdb')",
    "ATTACH 'https://localhost:9/x.duckdb'",
    "COPY FROM DATABASE memory TO other",
    "COPY runs FROM 'mine.csv'",
    "DETACH memory",
    "SET VARIABLE file = 'mine.csv'",
    "PRAGMA json_execute_serialized_sql('x')",
    "DELETE FROM stored_runs",
    "SELECT nothing FROM runs",
    "",
]


@pytest.mark.parametrize("query", REFUSED)
def test_refused(query: str, opened: Store, store: Path, work: Path) -> None:
    """Nothing has happened to any file, and the store, opened once for all of them, still answers."""
    (file,) = store.glob("findings/run=r/*.parquet")
    before = contents(work), contents(store)
    secret_frame = pa.table({"secret": [1]})
    with pytest.raises(QueryError):
        list(opened.rows(query.format(file=file, store=store))[1])
    assert (contents(work), contents(store)) == before and len(secret_frame) == 1
    assert len(rows(opened, "FROM runs")) == 1


@pytest.mark.parametrize(
    ("way", "form"), [("argument", "table"), ("file", "csv"), ("input", "json")]
)
def test_refused_however_it_comes(way: str, form: str, store: Path, work: Path) -> None:
    """As an argument, from a file or a pipe; the second of two statements, too."""
    query = "FROM runs; COPY (SELECT 1) TO 'out.csv'"
    (work / "query.sql").write_text(query)
    how = {"argument": [query], "file": ["--file", "query.sql"], "input": []}[way]
    program = [sys.executable, "-c", "from jobs.cli import main; main()", "sql", "--rows", "3"]
    done = subprocess.run(
        [*program, "--store", str(store), "--format", form, *how],
        input=query if way == "input" else None,
        stdin=None if way == "input" else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert refused(done).endswith("COPY is no question about a store") and done.stdout == ""
    assert not (work / "out.csv").exists()


def test_the_prompt_has_no_commands_of_a_shell(store: Path, work: Path) -> None:
    """DuckDB's own shell reads and writes files, and runs programs, at a dot."""
    lines = [
        ".read mine.csv", ".shell touch out", ".system touch out", ".import mine.csv runs",
        ".output out", ".once out", ".open out", ".log out", "!touch out", "\\! touch out",
        "FROM 'mine.csv';", "COPY (SELECT 1) TO 'out';", ".quit",
    ]  # fmt: skip
    shown = on_terminal("sql", "--store", store, keys="".join(f"{line}\n" for line in lines))
    assert shown.returncode == 0 and "secret" not in shown.text
    assert shown.text.count("no command '.") == 8, shown.text
    assert {path.name for path in work.iterdir()} == {"mine.csv", "mine.parquet"}


def test_links_in_a_store_lead_nowhere(store: Path, tmp_path: Path) -> None:
    """Whoever made the store: of files and folders elsewhere nothing is shown."""
    private = tmp_path / "private"
    suite = write_suite(private / "suite", {"secret.weight": trajectory("walk", 4, 300, 0.1)})
    pipeline.analyze(str(suite), str(private / "store"), executor="local", run="r")
    for table, what in (("tensors", "file"), ("path", "file"), ("groups", "folder")):
        shared = tmp_path / f"{table}-{what}"
        shutil.copytree(store, shared)
        place = shared / table / "run=r"
        (file,) = place.glob("*.parquet")
        (there,) = (private / "store" / table / "run=r").glob("*.parquet")
        if what == "file":
            file.unlink()
            file.symlink_to(there)
        else:
            shutil.rmtree(place)
            place.symlink_to(there.parent)
        opened = pipeline.open_store(str(shared))
        with pytest.warns(UserWarning, match="run r is left out"):
            assert rows(opened, f"FROM {table}") == []
        assert "secret" not in repr(opened.damaged)


ALLOWED = [
    "FROM runs",
    "SHOW TABLES",
    "DESCRIBE similarity",
    "SUMMARIZE indicators",
    "EXPLAIN SELECT * FROM path",
    "EXPLAIN ANALYZE SELECT * FROM path",
    "WITH a AS (FROM runs) FROM a",
    "PIVOT indicators ON indicator USING first(value) GROUP BY scope",
    "SELECT count(*) FROM query_table('simi' || 'larity')",
    "CREATE TEMP TABLE t AS FROM runs; FROM t",
    "CREATE MACRO twice(x) AS x * 2; SELECT twice(value) FROM indicators",
    'SELECT a.run FROM Runs a JOIN "checkpoints" USING (run)',
    "VALUES (1)",
]


@pytest.mark.parametrize("query", ALLOWED)
def test_allowed(query: str, store: Path) -> None:
    assert len(rows(pipeline.open_store(str(store)), query)) > 0


def test_nothing_is_told_of_the_user(store: Path, work: Path) -> None:
    settings = rows(pipeline.open_store(str(store)), "SELECT * FROM duckdb_settings()")
    assert str(Path.home()) not in repr(settings) or str(Path.home()) == "/"
    assert "hf_secret" not in repr(settings)


def test_unconfined(store: Path, work: Path) -> None:
    """For who asks for it."""
    opened = pipeline.open_store(str(store), confined=False)
    query = "SELECT run, secret FROM 'mine.csv' JOIN runs ON true"
    assert opened.sql(query).fetchall() == [("r", 1)]
    query = "COPY (SELECT run FROM runs) TO 'out.csv'"
    assert "hint: --unconfined" in (done := hallmarks("sql", "--store", store, query)).stderr
    assert refused(done).endswith("COPY is no question about a store")
    assert hallmarks("sql", "--store", store, "--unconfined", query).returncode == 0
    assert Path("out.csv").read_text() == "run\nr\n"


@pytest.mark.parametrize(
    "query",
    [
        "SELECT sum(length(repeat('x', 1_000_000_000 + range::INT))) FROM range(64)",
        "SELECT string_agg(repeat('x', 100_000_000), '') FROM range(1000)",
        "FROM range(1_000_000_000_000) ORDER BY hash(range) LIMIT 1 OFFSET 900_000_000_000",
    ],
)
def test_memory_is_bounded(query: str, store: Path, work: Path) -> None:
    """With the machine's memory said to be 1 GiB: texts that a query makes count, too."""
    program = (
        "import pipeline.store.confine as c; c.total_memory = lambda: 1 << 30\n"
        "from jobs.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "sql", "--store", str(store), query]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "Out of Memory" in refused(done)
    assert len(contents(work)) == 2  # nothing was put aside


def test_answers_as_json(store: Path) -> None:
    query = (
        "SELECT 1 AS name, 2 AS name, 3 AS name, 4 AS name_1, 'inf'::DOUBLE AS a, 'nan'::FLOAT AS b,"
        " [1, 'nan'::DOUBLE] AS c, {'x': '-inf'::DOUBLE} AS d, NULL AS e"
    )
    done = hallmarks("sql", "--store", store, "--format", "json", query)
    assert done.stdout.count("\n") == 1 and "Infinity" not in done.stdout
    (found,) = json.loads(done.stdout)
    assert [found.pop(key) for key in list(found)[:4]] == [1, 2, 3, 4]
    assert found == {"a": None, "b": None, "c": [1, None], "d": {"x": None}, "e": None}
    done = hallmarks("sql", "--store", store, "--format", "json", "FROM runs WHERE false")
    assert json.loads(done.stdout) == []
    done = hallmarks("sql", "--store", store, "SELECT 1 AS name, 2 AS name")
    assert done.stdout.count("name") == 2
