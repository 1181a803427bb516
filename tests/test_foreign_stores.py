"""Stores that others have made or that a disk has damaged: named, left out, and never followed."""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from pathlib import Path

import pytest

import pipeline
from pipeline.errors import DamagedRun, StoreFailed, StoreUnusable
from pipeline.store.schema import SCHEMAS
from tests.commands import hallmarks
from tests.suites import trajectory, write_suite
from tests.test_store_objects import VIEWS, everything, refused, rows

TABLES = sorted(SCHEMAS.keys() - {"runs"})


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = trajectory("walk", 6, 3000, 0.1)
    folder = tmp_path_factory.mktemp("foreign") / "suite"
    return write_suite(folder, {"layers.0.w.weight": rows, "layers.1.b": rows[:, :3]})


def analyze(suite: Path, store: Path, run: str, **options: bool) -> pipeline.Summary:
    return pipeline.analyze(str(suite), str(store), executor="local", run=run, **options)


@pytest.fixture(scope="module")
def made(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("foreign") / "store"
    for run in ("r", "x"):
        analyze(suite, store, run)
    return store


@pytest.fixture(scope="module")
def expected(made: Path) -> dict[str, list[dict]]:
    """What all views show of a sound store."""
    found, said = answers(made)
    assert not said
    return found


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """Runs `r` and `x`, alike but for their names."""
    return Path(shutil.copytree(made, tmp_path / "store"))


def answers(store: Path) -> tuple[dict[str, list[dict]], set[str]]:
    """Return what all views show, and what was said meanwhile."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("ignore")  # what other tests left open may be collected meanwhile
        warnings.simplefilter("always", DamagedRun)
        found = everything(str(store))
    return found, {str(warning.message) for warning in said}


def of_run(found: dict[str, list[dict]], run: str) -> dict[str, list[dict]]:
    return {view: [row for row in each if row["run"] == run] for view, each in found.items()}


def file_of(store: Path, table: str, run: str) -> Path:
    (found,) = store.glob(f"{table}/run={run}/*.parquet")
    return found


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)


FAULTS = {
    "gone": lambda file: file.unlink(),
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "a bit flipped": flip,
    "another's": lambda file: shutil.copy(file_of(file.parents[2], "groups", "r"), file),
    "a table without rows": lambda file: shutil.copy(file_of(file.parents[2], "findings", "r"), file),
    "a directory": lambda file: (file.unlink(), file.mkdir()),
    "a link": lambda file: (file.rename(file.parents[3] / "moved"), file.symlink_to("../../../moved")),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "table",
    # a table of figures is read like any other: test_no_flipped_bit_gives_another_figure has all
    ["runs", "similarity", pytest.param("checkpoints", marks=pytest.mark.slow)],
)
def test_a_damaged_run_is_named_and_blocks_no_other(
    fault: str, table: str, store: Path, suite: Path, expected: dict[str, list[dict]]
) -> None:
    """And the command that made it makes it again, to the same bits."""
    FAULTS[fault](file_of(store, table, "x"))
    found, said = answers(store)
    assert of_run(found, "r") == of_run(expected, "r")
    known = {view for view, each in of_run(found, "x").items() if each}
    if fault in ("gone", "a directory", "a link") and table == "runs":
        assert (known, said) == (set(), set())  # there is no such run
        return
    if not said:  # a row has its own digest: of a bit that decides no value nobody need know
        assert (table, found) == ("runs", expected)
        return
    assert len(said) == 1 and said.pop().startswith(f"run x is left out: {table}/run=x/")
    assert all(of_run(found, "x")[view] in ([], of_run(expected, "x")[view]) for view in VIEWS)
    if fault in ("a link", "a directory"):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert analyze(suite, store, "x").recomputed
    assert answers(store) == (expected, set())


def test_no_flipped_bit_gives_another_figure(store: Path, expected: dict[str, list[dict]]) -> None:
    """Every table, a bit in four places."""
    for table in TABLES:
        file = file_of(store, table, "x")
        sound = file.read_bytes()
        for place in range(0, len(sound), -(-len(sound) // 4)):
            data = bytearray(sound)
            data[place] ^= 1
            file.write_bytes(data)
            with pytest.warns(DamagedRun, match=f"run x is left out: {table}/run=x/"):
                found = rows(pipeline.open_store(str(store)), f"FROM {table}")
            assert not [row for row in found if row["run"] == "x"]
        file.write_bytes(sound)
    assert answers(store) == (expected, set())


def test_what_no_row_names_is_no_part_of_a_store(
    store: Path, expected: dict[str, list[dict]]
) -> None:
    good = file_of(store, "path", "r")
    for name in ("run=r/stray.parquet", "run=r/more/deep.parquet", "run=y/a.parquet", "a.parquet"):
        for table in SCHEMAS:
            stray = store / table / name
            stray.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(good, stray)
    for name in (b"run=caf\xe9", b"run=a\nb", b"notes.txt"):
        Path(os.fsdecode(bytes(store / "runs") + b"/" + name)).write_text("not Parquet")
    assert answers(store) == (expected, set())


def test_what_is_damaged_is_told_on_the_command_line(store: Path) -> None:
    flip(file_of(store, "indicators", "x"))
    ask = ("sql", "--store", store, "--format", "csv", "SELECT DISTINCT run FROM indicators")
    done = hallmarks(*ask)
    assert (done.returncode, done.stdout) == (3, "run\nr\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: run x is left out: indicators/run=x/")
    done = hallmarks("audit", "--store", store)
    assert done.returncode == 3
    assert "run r: nothing found" in done.stdout
    assert "error   damaged: indicators/run=x/" in done.stdout


HOSTILE = "x' UNION SELECT 'a'; COPY (SELECT 1) TO 'written.csv'; SELECT 'b"


@pytest.mark.parametrize("encode", [True, False])
def test_a_run_whose_name_is_a_statement(
    encode: bool, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views of DuckDB decode the names of directories."""
    from urllib.parse import quote

    work = store.parent / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    name = quote(HOSTILE, safe=" ") if encode else HOSTILE.replace("/", "")
    for table in SCHEMAS:
        shutil.copytree(store / table / "run=x", store / table / f"run={name}")
    for command in (("audit",), ("status",), ("sql", "SELECT run FROM runs")):
        done = hallmarks(command[0], "--store", store, *command[1:])
        assert done.returncode in (0, 3), done.stderr
        assert "COPY" not in done.stdout
        assert "a run cannot have this name" in done.stderr
    assert list(work.iterdir()) == []


def outside(store: Path) -> Path:
    """Return a directory of the user's beside a store."""
    folder = store.parent / "precious"
    folder.mkdir()
    for name in ("thesis.safetensors", "similarity.parquet", "lease", "progress"):
        (folder / name).write_text("mine")
    return folder


def intact(folder: Path) -> bool:
    return {file.name: file.read_text() for file in folder.iterdir()} == dict.fromkeys(
        ("thesis.safetensors", "similarity.parquet", "lease", "progress"), "mine"
    )


@pytest.mark.parametrize(
    "place",
    [
        "_tiles/run=r",
        "_tiles",
        "_sums/run=r",
        "_sums",
        "similarity/run=r",
        "similarity",
        "runs/run=r",
        "runs",
    ],
)
def test_links_lead_nowhere(
    place: str, store: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing outside a store is removed or written, whoever made the store."""
    monkeypatch.setattr("pipeline.job.patience.PAUSES_S", ())
    folder = outside(store)
    link = store / place
    shutil.rmtree(link, ignore_errors=True)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(folder)
    with pytest.raises((StoreUnusable, StoreFailed), match="is a link"):
        analyze(suite, store, "r", fresh=True)
    assert intact(folder)
    hallmarks("status", "--store", store)
    assert intact(folder)


def test_a_store_may_be_named_by_a_link(store: Path, expected: dict[str, list[dict]]) -> None:
    link = store.parent / "link"
    link.symlink_to(store)
    assert everything(str(link)) == expected


RECORD = {
    "run": "c", "state": "reading", "tiles": 9, "tiles_done": 4, "tiles_lost": 1, "bytes": 900,
    "bytes_done": 400, "workers": 2, "token": 1, "host": "there", "pid": 7, "started": 0.0,
    "renewed": 0.0,
}  # fmt: skip


def test_records_of_somebody_else(store: Path) -> None:
    """Anything may stand where a driver says how far it is."""
    values = [None, "x", -1, 10**400, float("inf"), float("nan"), [], {}, [[]] * 9, True]
    expected = hallmarks("status", "--store", store).stdout
    for number, key in enumerate(RECORD):
        for other, value in enumerate(values):
            if isinstance(value, str) and isinstance(RECORD[key], str) and key != "run":
                continue
            run = f"c{number}-{other}"
            record = store / f"_tiles/run={run}/progress"
            record.parent.mkdir(parents=True)
            record.write_text(json.dumps(RECORD | {"run": run} | {key: value}))
    for number, text in enumerate((b"", b"[]", b"[" * 100_000, b"\xff", b'"x"', b"{}")):
        record = store / f"_tiles/run=d{number}/progress"
        record.parent.mkdir(parents=True)
        record.write_bytes(text)
    done = hallmarks("status", "--store", store)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert set(expected.splitlines()) <= set(lines)
    assert "Traceback" not in done.stderr and len(json.dumps(lines)) < 10_000
    done = hallmarks("status", "--store", store, "--json")
    assert json.loads(done.stdout)["runs"] and done.stderr == ""


def test_a_record_may_not_name_another_run(store: Path) -> None:
    record = store / "_tiles/run=c/progress"
    record.parent.mkdir(parents=True)
    hostile = RECORD | {"renewed": time.time(), "host": "there\x1b[2J\nerror: fake"}
    record.write_text(json.dumps(hostile | {"run": "r"}))
    assert "c:" not in (shown := hallmarks("status", "--store", store).stdout)
    assert "r: complete" in shown
    record.write_text(json.dumps(hostile))
    shown = hallmarks("status", "--store", store).stdout
    assert r"on there\x1b[2J\nerror: fake" in shown
    assert "no run" not in refused(hallmarks("sql", "--store", store, "nonsense"))
