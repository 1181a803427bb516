"""Names that others chose, wherever they are shown: one line stays one line, and nothing is obeyed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import pipeline
from pipeline.errors import HallmarksError, printable, quoted
from tests.commands import Done, hallmarks
from tests.suites import trajectory, write_suite
from tests.test_store_objects import command

NASTY = "\x1b[2J\x1b]0;t\x07\r\nerror: fake\u202e\u2028\x85\x00\x7f"
IN_A_NAME = NASTY.replace("\x00", "").replace("/", "")
SHOWN = r"\x1b[2J\x1b]0;t\x07\r\nerror: fake\u202e\u2028\x85"
NAME = f"step1{IN_A_NAME}:smile:[bold]"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, a tensor and the folder of them all are called by names that draw on screens."""
    folder = tmp_path_factory.mktemp("text") / f"suite{IN_A_NAME}"
    values = trajectory("walk", 4, 1000, 0.1).astype(np.float32)
    for k, row in enumerate(values):
        checkpoint = folder / (NAME if k == 1 else f"step{k}")
        checkpoint.mkdir(parents=True)
        tensors = {f"layers.0.w{NASTY}.weight": row, f"ids{NASTY}": np.arange(3)}
        if k == 1:
            tensors[f"layers.0.w{NASTY}.weight"] = np.full_like(row, np.nan)
        save_file(tensors, checkpoint / "model.safetensors")
    (folder / f"other{IN_A_NAME}").mkdir()
    return folder


@pytest.fixture(scope="module")
def store(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / f"store{IN_A_NAME}"
    done = hallmarks("analyze", suite, "--store", folder, "--run", "r", "--executor", "local")
    assert_tame(done)
    return folder


def assert_tame(done: Done, said: str = SHOWN) -> None:
    """Check that all lines are the program's own, and that the name is among them, escaped."""
    text = done.stdout + done.stderr
    assert all(each.isprintable() for each in text.split("\n")), text
    assert not any(line.startswith("error: fake") for line in text.split("\n"))
    assert said in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "{suite}"],
        ["plan", "{suite}", "--run", NAME],
        ["plan", "{suite}", "--include", NAME],
        ["plan", "{suite}", "--revisions", NAME],
        ["plan", "{suite}", "--steps", NAME],
        ["plan", "{suite}", "--budget", NAME],
        ["plan", f"{{suite}}/absent{IN_A_NAME}"],
        ["analyze", "{suite}", "--store", "{store}", "--run", "r", "--executor", "local"],
        ["audit", "--store", "{store}"],
        ["audit", "--store", "{store}", "--run", NAME],
        ["status", "--store", f"{{store}}/absent{IN_A_NAME}"],
        ["sql", "--store", "{store}", "SELECT tensor, name FROM tensors, checkpoints"],
        ["sql", "--store", "{store}", "--format", "csv", "SELECT name, [name] FROM checkpoints"],
        ["sql", "--store", "{store}", "--format", "markdown", "FROM findings"],
        ["sql", "--store", "{store}", f"SELECT 1 AS \"{IN_A_NAME}\""],
        ["sql", "--store", "{store}", "--format", "csv", f"SELECT 1 AS \"{IN_A_NAME}\""],
        ["sql", "--store", "{store}", f"SELECT \"{IN_A_NAME}\""],
        ["sql", "--store", f"{{store}}/absent{IN_A_NAME}", "FROM runs"],
        [f"no{IN_A_NAME}"],
        pytest.param(["sql", f"--no{IN_A_NAME}"], marks=pytest.mark.slow),
        pytest.param(["sql", "--format", IN_A_NAME], marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_every_command(arguments: Sequence[str], suite: Path, store: Path) -> None:
    filled = [
        each.replace("{suite}", str(suite)).replace("{store}", str(store)) for each in arguments
    ]
    assert_tame(hallmarks(*filled), r"\x1b[2J")


def test_json_keeps_what_it_is(suite: Path, store: Path) -> None:
    done = hallmarks("sql", "--store", store, "--format", "json", "SELECT name FROM checkpoints")
    assert {row["name"] for row in json.loads(done.stdout)} == {"step0", NAME, "step2", "step3"}
    assert_tame(done, "u001b")


def test_markup_of_rich_and_markdown(store: Path) -> None:
    shown = hallmarks("plan", store.parent / "absent:smile:[red]x[/]").stderr
    assert ":smile:[red]x[/]" in shown
    query = "SELECT 'a|b\\' AS x, '![i](http://h/p)' AS y, '<script>' AS z, [1, 2] AS l, ':smile:[b]' AS m"
    line = hallmarks("sql", "--store", store, "--format", "markdown", query).stdout.splitlines()[2]
    assert line == r"| a\|b\\ | ![i\](http://h/p) | \<script> | [1, 2] | :smile:[b] |"
    assert ":smile:[b]" in hallmarks("sql", "--store", store, query).stdout


def test_in_python() -> None:
    """Errors and what is quoted in them, too: they end in logs."""
    error = HallmarksError(f"a{NASTY}", f"b{NASTY}")
    assert str(error).isprintable() and error.hint.isprintable() and quoted(NASTY).isprintable()
    assert printable("é 你 ü…") == "é 你 ü…" and printable("\udc80") == r"\udc80"


@pytest.mark.parametrize(
    "closed",
    [
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("<&-", ">&-", "2>&-")),
        "<&- >&- 2>&-",
    ],
)
def test_closed_descriptors(closed: str, store: Path, suite: Path, tmp_path: Path) -> None:
    """Results do not land in files that got the number of what was closed."""
    shell = 'exec "$@" ' + closed
    for arguments, code in (
        (["sql", "--store", store, "FROM runs"], 0),
        (["sql", "--store", store], 2),
        (["analyze", suite, "--store", tmp_path / "s", "--executor", "local", "--json"], 0),
    ):
        done = subprocess.run(
            ["sh", "-c", shell, "sh", *command(*arguments)], capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr and "internal" not in done.stderr
    assert pipeline.open_store(str(tmp_path / "s")).runs().to_arrow_table().num_rows == 1


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        pytest.param(
            {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_terminal_that_knows_ascii(environment: dict[str, str], tmp_path: Path) -> None:
    suite, store = tmp_path / "suite", tmp_path / "s"
    write_suite(suite, {"layers.0.é.weight": trajectory("walk", 4, 100, 0.1)})
    for arguments in (
        ["plan", suite],
        ["analyze", suite, "--store", store, "--executor", "local"],
        ["sql", "--store", store, "SELECT 'é…' AS x, NULL AS y"],
        ["sql", "--store", store, "--format", "csv", "SELECT 'é…' AS x"],
        ["sql", "--store", store, "--format", "markdown", "SELECT 'é…' AS x"],
        ["audit", "--store", store],
        ["status", "--store", store],
    ):
        done = subprocess.run(
            command(*arguments), capture_output=True, env=os.environ | environment, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert (done.stdout + done.stderr).isascii() and done.stdout
        assert "é" not in str(arguments[-1]) or rb"\xe9\u2026" in done.stdout


def test_a_full_disk_behind_standard_output(store: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("sql", "--store", store, "FROM runs"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1 and "No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_a_reader_that_has_gone(store: Path) -> None:
    shell = '"$@" | head -c 1 >/dev/null; exit "${PIPESTATUS[0]}"'
    query = "SELECT repeat('x', 1000) FROM range(10000)"
    arguments = command("sql", "--store", store, "--format", "csv", query)
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *arguments], capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (1, b"")
