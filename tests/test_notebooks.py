"""The notebooks of docs/notebooks, cell by cell: what they show works, for a Hub's repository and by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save

import pipeline
from tests.hub import Hub
from tests.suites import trajectory, write_suite

NOTEBOOKS = Path(__file__).parent.parent / "docs" / "notebooks"
STEPS = [0, 1, 2, 4, 8, 16, 512, 1000, 2000]
CONFIG = {
    "model_type": "gpt_neox",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "hidden_size": 16,
}
SHAPES = {
    "attention.query_key_value": (48, 16),
    "attention.dense": (16, 16),
    "mlp.dense_h_to_4h": (64, 16),
    "mlp.dense_4h_to_h": (16, 64),
}


def cells(name: str, kind: str) -> list[dict[str, Any]]:
    book = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    return [cell for cell in book["cells"] if cell["cell_type"] == kind]


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Execute the cells with code one after the other, in a folder, and return the names they make."""
    from matplotlib import pyplot

    monkeypatch.chdir(folder)
    made: dict[str, Any] = {}
    try:
        for number, cell in enumerate(cells(name, "code")):
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), made)
    finally:
        pyplot.close("all")
    return made


def test_from_the_hub(
    served_hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    repository = served_hub.repository("EleutherAI/pythia-70m")
    rows = {
        f"gpt_neox.layers.{layer}.{name}.weight": trajectory(
            "smooth", len(STEPS), shape[0] * shape[1], 0.05, seed=10 * layer + number
        ).reshape(-1, *shape)
        for layer in range(2)
        for number, (name, shape) in enumerate(SHAPES.items())
    }
    for k, step in enumerate(STEPS):
        weights = save({name: values[k].astype("float16") for name, values in rows.items()})
        files = {"model.safetensors": weights, "config.json": json.dumps(CONFIG).encode()}
        repository.commit(files, branch=f"step{step}")
    made = run("from_the_hub", tmp_path, monkeypatch)
    assert [checkpoint.step for checkpoint in made["plan"].checkpoints] == STEPS
    assert made["summary"].checkpoints == len(STEPS) and len(made["path"]["k"]) == len(STEPS) - 2
    shown = capfd.readouterr().out
    assert f"{len(STEPS)} checkpoints" in shown and "straightness" in shown


def test_two_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It shows the results that it was kept with, but for their last digits, which processors decide."""
    made = run("two_runs", tmp_path, monkeypatch)
    assert [summary.run for summary in made["summaries"]] == ["sgd", "adamw", "both"]
    shown = capfd.readouterr().out
    kept = "".join(
        "".join(output.get("text", ""))
        for cell in cells("two_runs", "code")
        for output in cell["outputs"]
    )
    assert kept and lines(shown) == lines(kept)


def lines(text: str) -> list[str]:
    """Return the words of tables and sentences, without numbers and frames."""
    words = [[word for word in line.split() if word.isidentifier()] for line in text.splitlines()]
    return [" ".join(line) for line in words if line]


def test_jupyter_without_its_widgets(tmp_path: Path) -> None:
    """There DuckDB refuses every setting of its progress bar, which is off."""
    suite = write_suite(tmp_path / "suite", {"layers.0.w.weight": trajectory("walk", 3, 50, 0.1)})
    pipeline.analyze(suite, tmp_path / "store", executor="local")
    code = """
import sys, types
shell = types.SimpleNamespace(config={"IPKernelApp": {}})  # by which DuckDB tells a kernel
sys.modules["IPython"] = types.ModuleType("IPython")
sys.modules["IPython"].get_ipython = lambda: shell
import duckdb, pipeline
try:
    duckdb.connect().execute("SET enable_progress_bar = false")
except duckdb.Error as error:
    assert "ipywidgets" in str(error), error
    print(pipeline.open_store("store").sql("FROM runs").fetchall()[0][0])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "suite\n"), done.stderr
