"""`hallmarks sql` as people use it: on a terminal, in pipes, and with what they get wrong."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

import pipeline
from pipeline.store.glossary import terms
from tests.commands import hallmarks
from tests.suites import trajectory, write_suite
from tests.terminals import needs_tmux, on_terminal, pictured


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sql")
    tensors = {
        f"layers.{layer}.{name}.weight": trajectory("walk", 9, 500, 0.1, 2 * layer + number)
        for layer in range(2)
        for number, name in enumerate(("self_attn.q_proj", "mlp.up_proj"))
    }
    suite = write_suite(folder / "suite", tensors)
    pipeline.analyze(suite, folder / "store", executor="local", run="first")
    return folder / "store"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hallmarks"


def test_a_table_for_people(store: Path) -> None:
    """Key columns without a value are gone, numbers are rounded and to the right."""
    keys = "run, scope, stack, layer, component, tensor"
    rest = "k, norm, 'é東' AS t FROM path WHERE scope = 'layer' AND layer = 1 ORDER BY k"
    shown = on_terminal("sql", "--store", store, f"SELECT {keys}, {rest}")
    assert shown.returncode == 0, shown.text
    header, rule, *rows = shown.lines
    assert header == "run    scope  layer  k      norm  t"
    assert rule == "─────  ─────  ─────  ─  ────────  ───"
    expected = pipeline.open_store(store).sql(f"SELECT {rest}").fetchall()
    assert len(expected) == 9
    assert rows == [f"first  layer      1  {k}  {norm:>8.6g}  {text}" for k, norm, text in expected]


def test_rows_that_are_too_wide_are_blocks(store: Path) -> None:
    query = "SELECT run, stack, layer, k, norm FROM path WHERE scope = 'model' AND k < 2 ORDER BY k"
    shown = on_terminal("sql", "--store", store, query, columns=12)
    norms = [norm for *_, norm in pipeline.open_store(store).sql(query).fetchall()]
    blocks = [f"run   first\nk     {k}\nnorm  {norm:.6g}\n" for k, norm in enumerate(norms)]
    assert shown.text == "\n".join(blocks)
    assert all(len(line) <= 80 for line in on_terminal("sql", "--store", store, "FROM path").lines)


@needs_tmux
@pytest.mark.parametrize(
    "query",
    [
        "SELECT run, scope, layer, k, norm, 'é東' AS t FROM path WHERE scope = 'layer' ORDER BY ALL",
        "SELECT *, 'é東' AS t FROM path WHERE scope = 'model' AND k < 2 ORDER BY k",
        "SELECT unnest(['é東', 'b']) AS a, repeat('word ', 30) AS long",
    ],
)
def test_the_picture_on_a_terminal(query: str, store: Path) -> None:
    """Nothing is broken at 80 columns, and characters of two columns take two."""
    picture = pictured("sql", "--store", store, query, lines=200)
    assert picture == on_terminal("sql", "--store", store, query).lines
    assert len(picture) > 4 and any("é東" in line for line in picture)


def test_no_more_rows_than_a_screen_has_room_for(store: Path) -> None:
    total = len(pipeline.open_store(store).sql("FROM similarity"))
    *rows, last = on_terminal("sql", "--store", store, "SELECT i, j FROM similarity").lines
    assert len(rows) == 2 + 40
    assert last == f"… 40 of {total:,} rows; --format csv for all"
    few = on_terminal("sql", "--store", store, "--rows", 3, "SELECT i, j FROM similarity").lines
    assert len(few) == 2 + 3 + 1 and few[-1].startswith("… 3 of ")
    exact = on_terminal("sql", "--store", store, "--rows", 9, "SELECT k FROM checkpoints").lines
    assert len(exact) == 2 + 9 and "…" not in exact[-1]
    piped = hallmarks("sql", "--store", store, "SELECT i, j FROM similarity").stdout.splitlines()
    assert len(piped) == 2 + total
    whole = hallmarks("sql", "--store", store, "SELECT norm, head FROM path").stdout
    assert "head" in whole and max(map(len, whole.splitlines())) > 15  # nothing is rounded


def test_every_format_holds_the_same(store: Path) -> None:
    query = "SELECT run, k, norm, head FROM path WHERE scope = 'model' ORDER BY k"
    rows = pipeline.open_store(store).sql(query).fetchall()

    def said(form: str) -> str:
        return hallmarks("sql", "--store", store, "--format", form, query).stdout

    texts = [["" if value is None else str(value) for value in row] for row in rows]
    assert list(csv.reader(said("csv").splitlines())) == [["run", "k", "norm", "head"], *texts]
    assert [tuple(record.values()) for record in json.loads(said("json"))] == rows
    lines = said("markdown").splitlines()
    assert lines[2:] == ["| " + " | ".join(row) + " |" for row in texts]
    assert [line.split() for line in said("table").splitlines()[2:]] == [row[:3] for row in texts]


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        (
            """SELECT unnest(['a,b', 'say "no"', '', NULL, 'é', 'two' || chr(10) || 'lines']) AS "x,y", 1 AS k""",
            [["a,b", "1"], ['say "no"', "1"], ["", "1"], ["", "1"], ["é", "1"], ["two\\nlines", "1"]],
        ),
        (
            "SELECT unnest(['0', '-0.0', '0.1', '1e300', 'nan', NULL]::DOUBLE[]) AS x, NULL AS y",
            [["0.0", ""], ["-0.0", ""], ["0.1", ""], ["1e+300", ""], ["nan", ""], ["", ""]],
        ),
        ("SELECT unnest([NULL, 7, 2 ** 40]::BIGINT[]) AS n", [[""], ["7"], ["1099511627776"]]),
        ("SELECT [1, 2] AS l, true AS b, DATE '2024-01-02' AS d, 1.50 AS e",
         [["[1, 2]", "True", "2024-01-02", "1.50"]]),
        ("SELECT 1 AS a WHERE false", []),
    ],
)  # fmt: skip
def test_csv_is_what_readers_of_it_take(query: str, fields: list[list[str]], store: Path) -> None:
    text = hallmarks("sql", "--store", store, "--format", "csv", query).stdout
    (names, *rows), connection = list(csv.reader(text.splitlines())), duckdb.connect()
    assert rows == fields
    path = store.parent / "read.csv"
    path.write_text(text, "utf-8")
    again = connection.sql(
        f"FROM read_csv('{path}', all_varchar = true, header = true, nullstr = '-')"
    )
    assert again.columns == names and [list(row) for row in again.fetchall()] == fields


@pytest.mark.parametrize("form", ["table", "csv", "json", "markdown"])
def test_answers_are_written_as_they_come(form: str, store: Path) -> None:
    """A hundred times as many rows take no more memory."""
    program = (
        "import resource, sys; from jobs import cli, console\n"
        "code = console.outcome(cli.hallmarks, console.Invocation())\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
        "sys.exit(code)"
    )

    def asked(times: int) -> tuple[int, int]:
        query = f"SELECT run, i, j, cosine, tensor FROM similarity CROSS JOIN range({times})"
        command = [sys.executable, "-c", program, "sql", "--store", str(store), "--format", form]
        done = subprocess.run([*command, query], capture_output=True, text=True, check=True)
        return int(done.stderr.split()[-1]), len(done.stdout)

    few_kb, few_length = asked(2)
    many_kb, many_length = asked(200)
    assert many_length > 95 * few_length > 2_000_000
    assert many_kb < few_kb + (40 << 10)


def test_a_query_in_a_file(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "query.sql"
    file.write_text("-- é\nSELECT k\nFROM checkpoints WHERE k < 2 ORDER BY k;\n", "utf-8")
    ask = ("sql", "--store", store, "--format", "csv", "--file")
    assert hallmarks(*ask, file).stdout == "k\n0\n1\n"
    both = hallmarks(*ask, file, "FROM runs")
    assert both.returncode == 2 and "--file and QUERY cannot be combined" in both.stderr
    gone = hallmarks(*ask, tmp_path / "gone.sql")
    assert gone.returncode == 2 and "No such file" in gone.stderr


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("FROM indicators WHERE indicator = 'MDS'", "no indicator 'MDS'; did you mean 'mds'?"),
        ("FROM path WHERE Run='frist'", "no run 'frist'; did you mean 'first'?"),
        ("FROM path WHERE run = 'x'", "no run 'x'; there are: first"),
        ("FROM path WHERE scope IN ('modell', 'layr')", "no scope 'layr'; did you mean 'layer'?"),
        ("FROM groups WHERE component = 'q'", "no component 'q'; there are: attn_q, mlp_up"),
        (
            "FROM top('relative_MDS', 5)",
            "no indicator 'relative_MDS'; did you mean 'relative_mds'?",
        ),
        ("FROM trajectory_map('First')", "no run 'First'; did you mean 'first'?"),
        (
            "FROM \"between\"('first', 'furst') WHERE value_b > 0",
            "no run 'furst'; did you mean 'first'?",
        ),
        (
            "FROM trajectory_map('first', scope := 'Layer')",
            "no scope 'Layer'; did you mean 'layer'?",
        ),
    ],
)
def test_an_empty_answer_says_why(query: str, said: str, store: Path) -> None:
    done = hallmarks("sql", "--store", store, query)
    assert done.returncode == 0 and f"hint: {said}" in done.stderr.splitlines()
    assert len(done.stdout.splitlines()) == 2  # the header


def test_what_is_there_is_no_reason(store: Path) -> None:
    for query in ("FROM path WHERE run = 'first' AND k = 99", "FROM runs"):
        assert hallmarks("sql", "--store", store, query).stderr == ""


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (
            'SELECT value FROM indicators WHERE indicator = "mds"',
            "texts stand in single quotes: 'mds'",
        ),
        ("FROM between('first', 'first')", "FROM \"between\"('a', 'b')"),
    ],
)
def test_mistakes_in_quotes_have_a_cure(query: str, said: str, store: Path) -> None:
    done = hallmarks("sql", "--store", store, query)
    error, cure = done.stderr.splitlines()
    assert done.returncode == 2 and error.startswith("error: query refused")
    assert cure.startswith("hint: ") and cure.endswith(said)


def test_the_prompt(store: Path, cache: Path) -> None:
    keys = "SELECT k FROM\ncheckpoints WHERE k < 2 ORDER BY k\nfrm runs\n.views path\n.what\n"
    shown = on_terminal("sql", "--store", store, keys=keys + "SELECT 'al' || 'ive' AS t\n.quit\n")
    assert shown.returncode == 0
    text = shown.text
    assert "\nk\n─\n0\n1\n" in text
    assert 'error: query refused: Parser Error: syntax error at or near "frm"' in text
    assert "noise_floor_deg" in text and "no command '.what'; .help for help" in text
    assert "\nalive\n" in text  # none of it was the end
    history = (cache / "sql-history").read_text()
    assert "frm runs" in history
    again = on_terminal("sql", "--store", store, keys="\x1b[A\x1b[A\n.quit\n")  # two lines up
    assert "\nalive\n" in again.text


def test_the_prompt_completes_and_can_be_interrupted(store: Path) -> None:
    keys = "SELECT count(*) AS n FROM checkpo\t\nFROM range(1000000000000\x03\nSELECT 7 AS n\n\x04"
    shown = on_terminal("sql", "--store", store, keys=keys)
    assert "\nn\n─\n9\n" in shown.text and "^C" in shown.text
    assert "\nn\n─\n7\n" in shown.text and shown.returncode == 0


def test_the_prompt_is_confined(store: Path, tmp_path: Path) -> None:
    keys = f"COPY (SELECT 1) TO '{tmp_path}/out'\nFROM '/etc/passwd'\n.quit\n"
    shown = on_terminal("sql", "--store", store, keys=keys)
    assert "COPY is no question about a store" in shown.text
    assert shown.text.count("error: query refused") == 2 and not (tmp_path / "out").exists()


def test_help_names_what_there_is_to_ask() -> None:
    text = " ".join(hallmarks("sql", "--help").stdout.split())
    for term in terms():
        assert term.kind not in ("view", "function") or f" {term.name}" in text


@pytest.mark.slow
def test_a_query_can_be_stopped(store: Path) -> None:
    """DuckDB sometimes ends its own tasks first: the command does not wait longer than a minute."""
    query = "SELECT sum(hash(range) % 7) FROM range(1_000_000_000_000)"
    command = [
        sys.executable,
        "-c",
        "from jobs.cli import main; main()",
        "sql",
        "--store",
        str(store),
    ]
    job = subprocess.Popen(
        [*command, query], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(5)
    job.send_signal(signal.SIGINT)
    output, errors = job.communicate(timeout=120)
    assert (job.returncode, output, errors) == (130, "", "interrupted (SIGINT)\n")
