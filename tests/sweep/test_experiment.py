"""What experiments leave: means over seeds as a table, and pictures; and whole experiments on tiny trainings."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.studies.experiment import Mean, mean_of, measured, write_means, write_picture
from pipeline.errors import RequestError

TINY = """
name = "tiny"
seeds = 2
[fixed]
network = "mlp"
width = 4
depth = 1
epochs = 2
[grid]
"""


def test_means_are_written_with_their_errors(tmp_path: Path) -> None:
    means = {("mlp", "last:1"): {"loss": mean_of([1.0, 2.0]), "accuracy": Mean(1, 0.5, None)}}
    write_means(tmp_path / "new" / "means.csv", ("network", "weights"), means)
    with (tmp_path / "new" / "means.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {
            "network": "mlp",
            "weights": "last:1",
            "figure": "loss",
            "seeds": "2",
            "mean": "1.5",
            "stderr": "0.5",
        },
        {
            "network": "mlp",
            "weights": "last:1",
            "figure": "accuracy",
            "seeds": "1",
            "mean": "0.5",
            "stderr": "",
        },
    ]


def test_pictures_have_the_places_of_all_lines(tmp_path: Path) -> None:
    panel = {
        "a": {"25%": mean_of([1.0, 2.0]), "50%": Mean(1, 3.0, None)},
        "b": {"75%": Mean(1, 1.0, None)},
    }
    write_picture(tmp_path / "steps.saved", {"mlp": panel, "cnn": panel, "vit": panel})
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {f"steps.saved.{ending}" for ending in ("pdf", "svg", "png")}
    text = (tmp_path / "steps.saved.svg").read_text()
    assert all(word in text for word in ("mlp", "vit", "25%", "50%", "75%"))


def test_runs_that_could_not_be_told_apart_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY + "momentum = [0.0, 0.9]\n")
    with pytest.raises(RequestError, match="found 4 of 2 kinds"):
        measured(str(tmp_path / "tiny.toml"), str(tmp_path / "store"), lambda *_: {}, 1)
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "told"),
    [("line_search", "predictability_1"), ("averages", "above constant's last")],
)
def test_an_experiment_ends_in_a_table_and_a_picture(name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY + 'schedule = ["constant", "cosine"]\n')
    store, config = tmp_path / "store", tmp_path / "tiny.toml"
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.studies.{name}", "--store", store, "--config", config, "--max-workers", "1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert told in done.stdout and "measured 4 of 4 runs" in done.stderr
    endings = {path.suffix for path in (tmp_path / "store-studies").iterdir()}
    assert endings == {".csv", ".pdf", ".svg", ".png"}
