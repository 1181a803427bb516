"""How a command ends: in one line and with its exit code, whatever happens to its process and streams."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pipeline
from pipeline.job import analyze as analysis
from tests.commands import hallmarks
from tests.suites import trajectory, write_suite

PYTHON = sys.executable
CONSOLE_SCRIPT = str(Path(PYTHON).parent / "hallmarks")
IN_ONE = "from jobs.cli import main; main()"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ending") / "suite"
    return write_suite(folder, {"layers.0.mlp.up_proj.weight": trajectory("walk", 4, 900, 0.1)})


@contextmanager
def stopped_at(
    folder: Path, command: list[str], module: str = "", **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Start a command and wait until it is at the import of a module that never ends."""
    folder.mkdir()
    stub = "import os, time\nos.write(2, b'here\\n')\ntime.sleep(60)\n"
    (folder / f"{module}.py").write_text(stub) if module else None
    paths = os.pathsep.join([str(folder), str(Path(__file__).parent.parent)])
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": paths} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None and process.stderr.readline() == "here\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "command", [[PYTHON, "-m", "jobs.analyze"], [PYTHON, "-m", "jobs.status"], [CONSOLE_SCRIPT]]
)
def test_a_signal_during_imports(
    command: list[str], number: signal.Signals, tmp_path: Path
) -> None:
    """Which take the first second."""
    with stopped_at(tmp_path / "stubs", command, "click") as process:
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (output, errors) == ("", f"interrupted ({number.name})\n")


KEPT = "interrupted ({}): finished tiles are kept; rerun the same command to resume\n"


@pytest.mark.parametrize(
    ("command", "line", "number"),
    [
        ("analyze", KEPT, signal.SIGINT),
        ("plan", "interrupted ({})\n", signal.SIGTERM),
        pytest.param("analyze", KEPT, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("plan", "interrupted ({})\n", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_at_work(
    command: str, line: str, number: signal.Signals, suite: Path, tmp_path: Path
) -> None:
    """Of every command."""
    program = (
        "import os, time\n"
        f"import jobs.{command}\n"
        "from pipeline.job import analyze as analysis\n"
        "def make_plan(request):\n"
        "    os.write(2, b'here\\n')\n"
        "    time.sleep(60)\n"
        f"jobs.plan.make_plan = analysis.make_plan = make_plan\n{IN_ONE}\n"
    )
    program = program.replace("import jobs.analyze", "import jobs.analyze, jobs.plan")
    with stopped_at(tmp_path / "stubs", [PYTHON, "-c", program, command, str(suite)]) as process:
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (output, errors) == ("", line.format(number.name))


def test_a_process_that_is_killed_leaves_a_word(suite: Path, tmp_path: Path) -> None:
    program = (
        "import os, time\nfrom pipeline.job import analyze as analysis\n"
        "def make_plan(request):\n    os.write(2, b'here\\n')\n    time.sleep(60)\n"
        f"analysis.make_plan = make_plan\n{IN_ONE}\n"
    )
    with stopped_at(tmp_path / "stubs", [PYTHON, "-c", program, "analyze", str(suite)]) as process:
        process.kill()
        _, errors = process.communicate(timeout=30)
    first, second = errors.splitlines()
    assert first.startswith("error: the process was ended from outside: killed")
    assert second == "hint: finished tiles are kept; rerun the same command to resume"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell in which `hallmarks` is this checkout's."""
    hallmarks = f'hallmarks() {{ "{PYTHON}" -c "{IN_ONE}" "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", hallmarks + line], env=os.environ | environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    store = str(tmp_path_factory.mktemp("expected"))
    found = pipeline.analyze(str(suite), store, executor="local").relative_mds
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("closed", "shown"),
    [
        ("2>&-", 1),
        # and in tests/test_outside_text.py
        *(pytest.param(each, 0, marks=pytest.mark.slow) for each in (">&-", "<&- >&- 2>&-")),
    ],
)
def test_closed_streams(
    closed: str, shown: int, suite: Path, expected: float, tmp_path: Path
) -> None:
    """No file of the store takes their place."""
    store = tmp_path / "store"
    done = shell(f"hallmarks analyze {suite} --store {store} --executor local --json {closed}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == shown
    found = pipeline.open_store(str(store)).sql(
        "SELECT complete, value FROM runs JOIN indicators USING (run)"
        " WHERE scope = 'model' AND indicator = 'relative_mds'"
    )
    assert found.fetchall() == [(True, expected)]


@pytest.mark.parametrize("arguments", ["plan SUITE", "plan SUITE --json", "--help"])
def test_standard_output_that_is_full(arguments: str, suite: Path) -> None:
    done = shell(f"hallmarks {arguments.replace('SUITE', str(suite))} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"


def test_a_reader_that_has_gone_is_told_nothing(suite: Path) -> None:
    done = shell(f"(sleep 0.1; hallmarks plan {suite} --json; echo $? >&2) | true")
    assert done.stderr == "1\n"


@pytest.mark.parametrize(
    "environment",
    [
        # in tests/test_outside_text.py, too
        pytest.param({"PYTHONIOENCODING": "ascii"}, marks=pytest.mark.slow),
        pytest.param({"LC_ALL": "C"}, marks=pytest.mark.slow),
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_terminals_that_know_ascii_only(
    environment: dict[str, str], suite: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    command = f"hallmarks analyze {suite} --store {store} --executor local"
    done = shell(
        f'{command} && hallmarks sql --store {store} "SELECT chr(8230) AS x"', **environment
    )
    assert done.returncode == 0, done.stderr
    done = shell(f"hallmarks plan {tmp_path}/nö", **environment)
    assert done.returncode == 2 and done.stderr.startswith("error: ")


def broken(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have planning fail in a way that nobody thought of."""

    def make_plan(request: object) -> None:
        raise error

    monkeypatch.setattr(analysis, "make_plan", make_plan)


SECRET = "hf_aSecretThatNobodyMaySee"
ADDRESS = "https://me:wordpass@host/file?X-Amz-Signature=0123456789abcdef"


@pytest.mark.parametrize("kind", ["directory", "object storage", "nothing can be written there"])
def test_an_internal_error_keeps_its_traceback(
    kind: str, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the store, or with temporary files; without secrets."""
    (tmp_path / "file").touch()
    (temporary := tmp_path / "tmp").mkdir()
    store, place = {
        "directory": (str(tmp_path / "store"), tmp_path),
        "object storage": ("s3://bucket/store", temporary),
        "nothing can be written there": (str(tmp_path / "file/store"), temporary),
    }[kind]
    broken(TypeError(f"odd\n{SECRET} {ADDRESS}"), monkeypatch)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    done = hallmarks("analyze", suite, "--store", store)
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("error: internal error: TypeError: ")
    (log,) = place.glob("*-error-*.log")
    assert second == f"hint: this is a bug; the traceback is in {log}"
    text = log.read_text()
    assert "Traceback" in text and "make_plan" in text and log.stat().st_mode & 0o077 == 0
    for secret in (SECRET, "wordpass", "0123456789abcdef"):
        assert secret not in text + done.stderr


@pytest.mark.parametrize("error", [EOFError(), KeyError("mds"), AssertionError()], ids=repr)
def test_no_error_passes_for_an_interruption(
    error: Exception, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(error, monkeypatch)
    done = hallmarks("analyze", suite, "--store", tmp_path / "s")
    assert done.returncode == 1
    assert re.match("error: internal error: (EOF|Key|Assertion)Error", done.stderr.strip()), (
        done.stderr
    )


def test_memory_that_runs_out(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(MemoryError(), monkeypatch)
    done = hallmarks("analyze", suite, "--store", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: out of memory\nhint: use a smaller --memory\n"
