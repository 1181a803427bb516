"""`make gpu-check` runs on a machine that has torch and little else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LACKING = (
    "ray", "duckdb", "pyarrow", "obstore", "huggingface_hub", "click", "rich", "transformers",
    "cryptography", "moto",
)  # fmt: skip


def test_it_needs_torch_and_what_workers_import(tmp_path: Path) -> None:
    """The whole of it, on the processor where there is no GPU, with everything else hidden."""
    for name in LACKING:
        (tmp_path / f"{name}.py").write_text("raise ModuleNotFoundError(__name__)\n")
    done = subprocess.run(
        ["make", "gpu-check", f"GPU_PYTHON={sys.executable}",
         "GPU_OPTIONS=--checkpoints 6 --elements 65536 --threads 1 --workers 1"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    # make says which directory it leaves after the object where another make has called it
    found, _ = json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("{") :])
    assert found["digests_equal"]
