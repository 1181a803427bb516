"""A job's memory: what it is seen to take is within what was projected."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.commands import hallmarks


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen checkpoints of 12 million float32 weights: twelve tiles of 64 MiB."""
    directory = tmp_path_factory.mktemp("large") / "suite"
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(12_000_000, generator=generator)
    for k in range(16):
        folder = directory / f"step{k}"
        folder.mkdir(parents=True)
        save_file({"layers.0.w.weight": weights.view(3000, 4000)}, folder / "model.safetensors")
        weights += 0.1 * torch.randn(1_000_000, generator=generator).repeat(12)
    return directory


def peak_bytes(process: subprocess.Popen[str]) -> int:
    """Return the largest RssAnon + RssShmem seen until the process ends."""
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            held = [line.split() for line in lines if line.startswith(("RssAnon", "RssShmem"))]
            peak = max(peak, sum(1024 * int(fields[1]) for fields in held))
        time.sleep(0.005)
    return peak


def test_memory_stays_within_the_projection(large: Path, tmp_path: Path) -> None:
    """And follows --memory: the budget is not only a number that is printed."""
    projections, rows = [], []
    for number, budget in enumerate(("64MiB", "400MiB")):
        options = ["--executor", "local", "--memory", budget]
        planned = hallmarks("plan", large, "--json", "--memory", budget)
        memory = json.loads(planned.stdout)["memory"]
        store = tmp_path / str(number)
        command = [
            sys.executable,
            "-m",
            "jobs.analyze",
            str(large),
            "--store",
            str(store),
            *options,
        ]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        peak = peak_bytes(process)
        assert process.returncode == 0
        assert memory["projected"] <= memory["budget"]
        assert peak <= memory["projected"] + memory["idle"]
        projections.append(memory["projected"])
        rows.append(memory["row_bytes"])
    assert projections[0] < projections[1] and rows[0] < rows[1]
