"""`make test` runs in several processes: which of them takes what."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MODULE = """
import os
from pathlib import Path
import pytest

pytestmark = [pytest.mark.{mark}]

@pytest.mark.parametrize("number", range(3))
def test_it(number):
    with open("{name}", "a") as file:
        print(os.environ["PYTEST_XDIST_WORKER"], file=file)
"""


def test_one_process_takes_all_that_start_ray(tmp_path: Path) -> None:
    """One cluster at a time; and what a module has made for its tests is made once."""
    (tmp_path / "conftest.py").write_text(
        "from tests.conftest import pytest_xdist_make_scheduler  # noqa: F401\n"
    )
    marks = {"a": "ray", "b": "ray", "c": "gpu", "d": "gpu", "e": "gpu", "f": "ray"}
    for name, mark in marks.items():
        (tmp_path / f"test_{name}.py").write_text(MODULE.format(mark=mark, name=name))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--numprocesses=3", "-p", "no:cacheprovider",
         "-W", "ignore::pytest.PytestUnknownMarkWarning"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    took = {name: set((tmp_path / name).read_text().split()) for name in marks}
    assert all(len(processes) == 1 for processes in took.values())
    assert took["a"] == took["b"] == took["f"]
    assert len(set.union(*took.values())) == 3
