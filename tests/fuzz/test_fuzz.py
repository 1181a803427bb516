"""Changed files, listings and tables are read right or refused in one line, within limits."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import corpus

ROOT = Path(__file__).parents[2]
# One arena, one pool: else addresses are reserved by the gigabyte, and the limit counts addresses.
PLAIN = {"MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1",
         "OPENBLAS_NUM_THREADS": "1"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("corpus")
    corpus.write(found)
    return found


def fuzz(folder: Path, seconds: float, seed: int) -> None:
    command = [sys.executable, "-m", "tests.fuzz.child", str(folder), str(seed), str(seconds)]
    environment = {**os.environ, **PLAIN, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds + 180
    )
    last = (folder / "current").read_text().strip()
    assert done.returncode == 0, f"seed {seed}, input {last!r}:\n{done.stderr[-4000:]}"
    counts = json.loads(done.stdout)
    print(f"seed {seed}: refused and read, by reader: {counts}")
    assert all(sum(each) for each in counts.values())


def test_a_few_seconds(folder: Path) -> None:
    fuzz(folder, 4, seed=20261126)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_minutes(folder: Path) -> None:
    """With another seed each time."""
    fuzz(folder, 300, seed=random.SystemRandom().randrange(2**32))
