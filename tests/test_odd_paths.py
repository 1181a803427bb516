"""Paths are data: wherever a store lies, it gives the same figures, or is refused before any work."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import pytest

import pipeline
from pipeline.errors import StoreUnusable
from tests.commands import hallmarks
from tests.suites import trajectory, write_suite
from tests.test_store_objects import VIEWS, everything, refused, rows

NAMES = [
    "rank=8/value=1/layer=3/i=0/group_id=3", "lr=0.1,wd=0/run=7/scope=x/k=1", "{a,b}/a[1]/a*b?c[d]",
    "back\\slash", "it's/a\"b/a;b -- c", "line\nbreak/é ü 你/%41%2F", "$HOME/~/#1/ blank ",
]  # fmt: skip
"""What means something to DuckDB, to patterns, to SQL, to URLs, and to shells."""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = trajectory("walk", 6, 3000, 0.1)
    folder = tmp_path_factory.mktemp("paths") / "suite"
    return write_suite(folder, {"layers.0.w.weight": rows, "layers.1.b": rows[:, :3]})


@pytest.fixture(scope="module")
def plain(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    store = str(tmp_path_factory.mktemp("paths") / "store")
    pipeline.analyze(str(suite), store, executor="local", run="r")
    return everything(store)


@pytest.mark.parametrize("name", NAMES)
def test_a_store_anywhere_gives_the_same(
    name: str, suite: Path, plain: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the program, and through its views in a DuckDB of one's own."""
    store = tmp_path / name / "store"
    pipeline.analyze(str(suite), str(store), executor="local", run="r")
    assert everything(str(store)) == plain
    assert pipeline.analyze(str(suite), str(store), executor="local", run="r").already_complete
    monkeypatch.chdir(store)
    connection = duckdb.connect()
    connection.execute(Path("views.sql").read_text())
    assert {view: rows(connection, query) for view, query in VIEWS.items()} == plain


def test_every_command_there(suite: Path, tmp_path: Path) -> None:
    store = tmp_path / "value=1,{run}=2\\" / "s"
    analyze = ("analyze", suite, "--store", store, "--run", "r", "--executor", "local", "--json")
    for command in (
        analyze,
        analyze,
        ("status", "--store", store),
        ("audit", "--store", store),
        ("sql", "--store", store, "SELECT count(*) FROM similarity"),
    ):
        done = hallmarks(*command)
        assert (done.returncode, done.stderr.count("error")) == (0, 0), done.stderr


def undecodable(name: bytes) -> str:
    return os.fsdecode(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "--store is empty"),
        (" ", "--store is empty"),
        (undecodable(b"caf\xe9"), "not UTF-8"),
        ("back\\slash*", "a backslash and one of"),
        ("file", "is a file"),
        ("loop/store", "--store"),
    ],
)
def test_what_will_not_do_is_refused(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("loop").symlink_to("loop")
    with pytest.raises(StoreUnusable, match=said):
        pipeline.open_store(name)
    assert sorted(map(str, Path().iterdir())) == ["file", "loop"]


def test_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no source."""
    monkeypatch.chdir(tmp_path)
    for command in (("analyze", "demo/nowhere", "--executor", "local"), ("status",)):
        assert "--store is empty" in refused(hallmarks(*command, "--store", ""))
    assert list(Path().iterdir()) == []
