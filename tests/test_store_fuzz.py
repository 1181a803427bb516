"""Whole stores with changed, foreign and missing files (tests/store_fuzz.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "seconds", [5, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_changed_stores(seconds: int, tmp_path: Path) -> None:
    """To go on with one: python -m tests.store_fuzz DIRECTORY --seed SEED --case NUMBER."""
    command = [sys.executable, "-m", "tests.store_fuzz", str(tmp_path), "--seconds", str(seconds)]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=seconds + 200,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
