"""What `analyze` says when it is over: true, unbroken at 80 columns, and plain where it should be."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import pipeline
from jobs.summary import command_lines
from tests.commands import hallmarks
from tests.suites import trajectory, write_suite
from tests.terminals import needs_tmux, on_terminal, pictured

ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layer 1 goes straight, layer 0 wanders; the last checkpoint is a copy."""
    kinds = {0: "walk", 1: "smooth", 2: "decaying"}
    rows = {
        f"layers.{layer}.{name}.weight": trajectory(kind, 8, 2000, 0.1, 2 * layer + number)
        for layer, kind in kinds.items()
        for number, name in enumerate(("self_attn.q_proj", "mlp.up_proj"))
    }
    for values in rows.values():
        values[7] = values[6]
    return write_suite(tmp_path_factory.mktemp("summary") / "suite", rows)


def commands(text: str) -> list[list[str]]:
    """Return the words of each command, as a shell would read them."""
    whole = text.replace("\\\n", "")
    return [shlex.split(line) for line in whole.splitlines() if line.startswith("  hallmarks ")]


@pytest.mark.parametrize("colour", [True, False])
def test_on_a_terminal(colour: bool, suite: Path, tmp_path: Path) -> None:
    store = tmp_path / ("a-store-whose-name-is-rather-long-" + "x" * 30) / "results"
    options = ("--store", store, "--executor", "local", "--run", "a-run-with-a-long-name")
    environment = {} if colour else {"NO_COLOR": "1"}
    shown = on_terminal("analyze", suite, *options, environment=environment)
    assert shown.returncode == 0, shown.text
    coloured = re.findall(r"\x1b\[[\d;]*3[0-7]m", shown.text)
    assert bool(coloured) is colour
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.text).replace("\r", "\n")
    summary = text[text.index("run a-run-with-a-long-name: ") :]
    assert len(commands(summary)) == 3
    for line in summary[summary.rindex("results: ") :].splitlines()[1:]:
        # one word may be longer than a line, but stands alone then
        assert len(line) <= 80 or len(line.removesuffix(" \\").split()) <= 2
    table = [
        line for line in summary.splitlines() if re.match(r"(mds|relative_mds|settled_step) ", line)
    ]
    assert len(table) == 3 and all(len(line) <= 80 for line in table)


@needs_tmux
def test_the_picture_on_a_terminal(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 80 columns no word is broken, tables are as in a file, and what is told is the same."""
    monkeypatch.chdir(tmp_path)
    options = ("--store", "results", "--executor", "local", "--run", "r")
    picture = pictured("analyze", suite, *options)
    plain = hallmarks("analyze", suite, *options).stdout.splitlines()  # from the store
    shown = picture[picture.index(plain[0]) :]

    def words(lines: list[str]) -> list[str]:
        text = " ".join(line.removesuffix("\\") for line in lines).split("results: ")
        return [
            *re.sub(r"\S+ read in .*|already complete.*", "", text[0]).split(),
            *text[1].split(),
        ]

    assert words(shown) == words(plain)
    table = slice(plain.index("") + 1, len(plain) - plain[::-1].index("") - 1)
    assert shown[table] == plain[table] and shown[table][0].startswith("the whole model  ")
    assert max(map(len, shown)) <= 80 < max(map(len, plain))


def test_in_a_file_it_is_plain_and_its_commands_run(suite: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = hallmarks("analyze", suite, "--store", store, "--executor", "local", "--run", "r")
    assert done.returncode == 0 and ESCAPE not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "run r: 8 checkpoints, 12,000 weights in 6 tensors"
    assert lines[1] == "displacements are from step 0, the initialization"
    opened = pipeline.open_store(store)
    for scope, kind in (("layer", "layers"), ("component", "roles")):
        (line,) = (line for line in lines if f" {kind}: " in line)
        values = opened.sql(
            f"SELECT {scope}::VARCHAR, value FROM indicators"
            f" WHERE scope = '{scope}' AND indicator = 'straightness' ORDER BY value"
        ).fetchall()
        (least, low), (most, high) = values[0], values[-1]
        assert line == (
            f"straightest of {len(values)} {kind}: {most} ({high:.3f});"
            f" least straight: {least} ({low:.3f})"
        )
    assert "straightest of 3 layers: 1 (" in done.stdout
    assert "findings: 1 error" in lines
    assert any(re.match(r"error +identical_checkpoints: .*step7", line) for line in lines)
    (times,) = (line for line in lines if " s reading and multiplying, " in line)
    assert "starting Ray" not in times
    shown = commands(done.stdout)
    assert [words[1] for words in shown] == ["report", "sql", "sql"]
    for words in shown:
        again = hallmarks(*words[1:])
        assert again.returncode == 0 and again.stdout, again.stderr


def test_nothing_is_said_to_be_read_twice(suite: Path, tmp_path: Path) -> None:
    options = ("--store", tmp_path / "store", "--executor", "local", "--steps", "2:")
    first = hallmarks("analyze", suite, *options)
    again = hallmarks("analyze", suite, *options)
    assert "already complete; nothing was read" in again.stdout
    assert "displacements are from step 2, not from initialization" in first.stdout
    part = (" read in ", "already complete")
    kept = [
        [line for line in done.stdout.splitlines() if not any(words in line for words in part)]
        for done in (first, again)
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_command_is_broken_between_its_words(width: int) -> None:
    command = ["hallmarks sql", "--store '/a b/c'", "\"FROM top('mds', 5)\"", "--run x"]
    lines = command_lines(command, width)
    assert all(line.endswith(" \\") for line in lines[:-1]) and not lines[-1].endswith("\\")
    words = ["hallmarks", "sql", "--store", "/a b/c", "FROM top('mds', 5)", "--run", "x"]
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == words
    for line in lines:
        assert len(line) <= width or any(each in line for each in command if len(each) + 6 > width)
    assert (len(lines) == 1) is (width == 80 or width == 200)
