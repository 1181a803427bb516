"""The project as such: import rules, errors that cross processes, the command line."""

from __future__ import annotations

import importlib
import json
import pickle
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import jobs
import pipeline
from jobs import cli
from pipeline.errors import HallmarksError, quoted
from pipeline.planning.request import Request
from tests.commands import hallmarks
from tests.suites import trajectory, write_suite

ROOT = Path(__file__).parent.parent


def linted(root: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command as c; c()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=root, capture_output=True, text=True
    )


def test_imports_go_one_way() -> None:
    done = linted(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


FORBIDDEN = [
    ("pipeline.planning.tiles", "ray"),
    ("pipeline.planning.tiles", "torch"),
    ("pipeline.planning.contents", "pipeline.checkpoint.safetensors"),
    ("pipeline.numerics.path", "pipeline.store.folder"),
    ("pipeline.checkpoint.names", "pipeline.numerics.path"),
    ("pipeline.report.maps", "pipeline.store.folder"),
    ("pipeline.store.query", "pipeline.report.page"),
    ("pipeline.execute.drive.loop", "pipeline.execute.ray.session"),
    ("pipeline.execute.drive.local", "pipeline.execute.work.worker"),
    ("pipeline.execute.work.verify", "pipeline.execute.drive.loop"),
]


def test_the_import_rules_can_fail(tmp_path: Path) -> None:
    """Each by itself: it is named where a chain of imports that a rule forbids begins."""
    for name in ("hallmarks", "pipeline", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, imported in FORBIDDEN:
        broken = tmp_path / f"{module.replace('.', '/')}.py"
        text = broken.read_text().replace("from __future__ import annotations\n", "")
        broken.write_text(f"import {imported}\n{text}")
    done = linted(tmp_path)
    assert done.returncode != 0
    begins = re.findall(r"^- +(\S+) -> (\S+) \(", done.stdout, re.MULTILINE)
    assert set(FORBIDDEN) <= set(begins), done.stdout


def all_errors() -> list[type[HallmarksError]]:
    """Return them, of all modules: packages of other people's trainers are imported for that."""
    for package in (pipeline, jobs):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    found = [HallmarksError]
    for error in found:
        found.extend(error.__subclasses__())
    return found


def test_errors_cross_processes() -> None:
    errors = all_errors()
    assert len(errors) > 10
    for error in errors:
        copy = pickle.loads(pickle.dumps(error("what, where", "a cure")))
        assert type(copy) is error
        said = copy.message, copy.hint, copy.exit_code
        assert said == ("what, where", "a cure", error.exit_code), error


@pytest.mark.parametrize(
    ("arguments", "unused"),
    [
        ("--help", {"numpy", "rich.progress", "pipeline.planning", "pipeline.store"}),
        ("sql --store {store} FROM(runs)", {"torch", "huggingface_hub", "pipeline.planning.plan"}),
        ("status --store {store}", {"torch", "huggingface_hub", "pipeline.planning.plan"}),
        ("audit --store {store}", {"torch", "huggingface_hub", "pipeline.planning.plan"}),
        ("report --store {store}", {"torch", "huggingface_hub", "pipeline.planning.plan"}),
        ("plan {suite}", {"torch", "huggingface_hub", "pyarrow", "duckdb", "obstore"}),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_commands_do_without_what_they_do_not_use(
    arguments: str, unused: set[str], suite: Path, finished: Path
) -> None:
    """Start-up is imports: torch takes two seconds, the others a tenth to a quarter each."""
    code = (
        "import sys; from jobs import cli, console\n"
        "console.outcome(cli.hallmarks, console.Invocation())\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    given = [part.format(suite=suite, store=finished) for part in arguments.split()]
    done = subprocess.run(
        [sys.executable, "-c", code, *given], capture_output=True, text=True, check=True
    )
    imported = set(done.stderr.split())
    assert done.stdout and "jobs.cli" in imported
    assert unused.isdisjoint(imported)


def test_help_lists_every_command() -> None:
    for name in cli.COMMANDS:
        command = cli.hallmarks.get_command(click.Context(cli.hallmarks), name)
        assert command is not None and command.help, name


def test_driving_needs_no_engine() -> None:
    code = (
        "import sys, pipeline.execute.drive.loop, pipeline.execute.drive.local;"
        " assert not {'torch', 'ray'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_driver_on_ray_does_without_torch() -> None:
    code = "import sys, jobs.analyze, pipeline.execute.ray.pool; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_outside_text_stays_on_one_line() -> None:
    assert quoted("a\nb\x1b[31m").isprintable()
    assert len(quoted("x" * 10_000)) <= 120


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = trajectory("walk", 4, 2000, 0.1)
    directory = tmp_path_factory.mktemp("cli") / "suite"
    return write_suite(directory, {"layers.0.w.weight": rows, "b": rows[:, :3]})


@pytest.fixture(scope="module")
def finished(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("finished") / "store"
    pipeline.analyze(str(suite), str(store), executor="local")
    return store


def apart(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `hallmarks` in a process of its own."""
    command = [sys.executable, "-c", "from jobs.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def truncated(suite: Path, target: Path) -> Path:
    """Cut off the end of every checkpoint; a single one of them would be left out."""
    shutil.copytree(suite, target)
    for file in target.glob("*/model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    return target


def test_bad_requests_write_nothing(suite: Path, tmp_path: Path) -> None:
    """Exit 2, one line and a hint, no traceback, no store."""

    def refused(*arguments: object) -> tuple[str, str]:
        done = hallmarks("analyze", *arguments)
        assert done.returncode == 2, arguments
        return done.stdout, done.stderr

    store = tmp_path / "store"
    cut = truncated(suite, tmp_path / "cut")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((tmp_path / "nowhere",), "no such directory"),
        ((tmp_path / "file",), "is a file"),
        ((tmp_path / "empty",), "at least 2 checkpoints, found 0"),
        ((suite, "--revisions", "nothing*"), "at least 2 checkpoints, found 0"),
        ((suite, "--steps", "0:0"), "at least 2 checkpoints, found 1"),
        ((suite, "--steps", "x"), "--steps"),
        ((suite, "--include", "nothing"), "no tensor is left"),
        ((suite, "--include", "("), "not a regular expression"),
        ((suite, "--memory", "1KiB"), "need at least"),
        ((suite, "--memory", "much"), "is not a size"),
        ((suite, "--run", "../x"), "not a run name"),
        ((suite, "--fraction", "0"), "more than 0 and at most 1"),
        ((suite, "--fraction", "0.1", "--budget", "1MB"), "cannot be combined"),
        ((suite, "--budget", "100B"), "the smallest sample"),
        ((suite, "--device", "cuda"), "no CUDA device"),
        ((suite, "--nonsense"), "No such option"),
        ((cut,), "tensors that end with the file"),
    ]
    for arguments, message in cases:
        output, errors = refused(*arguments, "--store", store, "--executor", "local")
        lines = errors.splitlines()
        assert lines[0].startswith("error: ") and message in lines[0], lines
        assert len(lines) <= 2 and "Traceback" not in errors
        assert output == ""
        assert not store.exists()
    file = tmp_path / "file" / "x"
    assert "cannot be written" in refused(suite, "--store", file, "--executor", "local")[1]
    far = ("--address", "ray://somewhere:1")
    assert "submit a job" in refused(suite, *far, "--store", store)[1]
    done = apart("analyze", tmp_path / "nowhere", "--store", store, "--executor", "local")
    assert done.returncode == 2 and done.stdout == "" and "no such directory" in done.stderr


def test_commands(suite: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    planned = json.loads(hallmarks("plan", suite, "--json").stdout)
    assert planned["bytes_total"] == 4 * 2003 * 4
    assert "4: step0 … step3" in hallmarks("plan", suite).stdout
    done = hallmarks("analyze", suite, "--store", store, "--executor", "local")
    assert done.returncode == 0, done.stderr
    assert "relative_mds" in done.stdout and "random walk" in done.stdout
    query = "SELECT k, name FROM checkpoints ORDER BY k LIMIT 2"
    ask = ("sql", "--store", store)
    assert hallmarks(*ask, "--format", "csv", query).stdout == "k,name\n0,step0\n1,step1\n"
    assert json.loads(hallmarks(*ask, "--format", "json", query).stdout)[1]["name"] == "step1"
    assert "| 1 | step1 |" in hallmarks(*ask, "--format", "markdown", query).stdout
    assert "step1" in apart(*ask, input=query).stdout
    for bad, message in (("SELECT nonsense", "query refused"), ("  ", "is empty")):
        done = hallmarks(*ask, bad)
        assert done.returncode == 2 and message in done.stderr
    listed = hallmarks("--help").stdout
    assert all(f"  {name} " in listed for name in cli.COMMANDS)


def test_left_out_tensors_are_named(tmp_path: Path) -> None:
    rows = trajectory("walk", 3, 500, 0.1)
    directory = write_suite(tmp_path / "suite", {"w": rows, "layers.0.rotary_emb.inv_freq": rows})
    done = hallmarks("analyze", directory, "--store", tmp_path / "s", "--executor", "local")
    assert done.returncode == 0, done.stderr
    rows = pipeline.open_store(str(tmp_path / "s")).sql(
        "SELECT tensor, included, reason FROM tensors ORDER BY tensor"
    )
    reason = "buffer: rotary frequencies"
    assert rows.fetchall() == [("layers.0.rotary_emb.inv_freq", False, reason), ("w", True, None)]
    assert Request("x").run is None


def test_several_sources_are_a_run_each(suite: Path, tmp_path: Path) -> None:
    other = write_suite(tmp_path / "other", {"w": trajectory("smooth", 3, 300, 0.1)})
    store = tmp_path / "store"
    both = ("analyze", suite, other, "--store", store, "--executor", "local")
    done = hallmarks(*both, "--json")
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert [(run["run"], run["checkpoints"]) for run in runs] == [("suite", 4), ("other", 3)]
    assert len(pipeline.open_store(str(store)).runs()) == 2
    done = hallmarks(*both, "--run", "x")
    assert done.returncode == 2 and "cannot name 2 runs" in done.stderr
    twin = shutil.copytree(suite, tmp_path / "elsewhere" / suite.name)
    done = hallmarks("analyze", suite, twin, "--store", store, "--executor", "local")
    assert done.returncode == 2 and "both be called suite" in done.stderr
    assert len(json.loads(hallmarks("plan", suite, other, "--json").stdout)["runs"]) == 2


def test_a_plan_tells_how_a_suite_was_understood(tmp_path: Path) -> None:
    steps = [0, 10, 20, 30, 50, 60, 90, 100]
    rows = {f"layers.{i}.w.weight": trajectory("walk", 8, 40, 0.1) for i in range(2)}
    masks = {f"layers.{i}.rotary_emb.inv_freq": rows["layers.0.w.weight"] for i in range(2)}
    directory = write_suite(tmp_path / "suite", rows | masks, steps=steps)
    for step in (5, 10):
        shutil.copytree(directory / f"step{step * 2}", directory / f"stage2-step{step}")
    shown = hallmarks("plan", directory).stdout
    assert "10: step0 … stage2-step10" in shown
    assert "no stage: 8, steps 0 … 100" in shown and "stage 2: 2, steps 5 … 10" in shown
    assert "gap: 1 missing between step 30 and step 50" in shown
    assert "inv_freq and 1 more (buffer: rotary frequencies)" in shown
