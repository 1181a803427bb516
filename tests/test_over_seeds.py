"""`over_seeds(…)`: means and errors against NumPy on the indicators of single runs, and what counts as a seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.store.query import Store
from tests.suites import trajectory, write_suite

SEEDS = {(3e-4, 0): 2, (3e-4, 0.1): 3, (1e-3, 0): 2}
"""Of learning rate and weight decay."""


def run_of(folder: Path, name: str, settings: Any, *, seed: int, count: int = 6) -> None:
    rows = trajectory("smooth", count, 300, 0.1, seed)
    write_suite(folder / name, {"layers.0.w.weight": rows})
    pipeline.analyze(folder / name, folder / "store", executor="local", settings=settings)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("over-seeds")
    for at, ((rate, decay), seeds) in enumerate(SEEDS.items()):
        for seed in range(seeds):
            settings = {"lr": rate, "wd": decay, "width": 8, "data": {"seed": seed}}
            run_of(folder, f"grid-{rate}-{decay}-{seed}", settings, seed=10 * at + seed)
    run_of(folder, "none", None, seed=50)
    run_of(folder, "unseeded-1", {"lr": 1e-2}, seed=51)
    run_of(folder, "unseeded-2", {"lr": 1e-2}, seed=52)
    run_of(folder, "longer", {"lr": 1e-2}, seed=53, count=7)
    run_of(folder, "again-1", {"lr": 1e-2, "seed": 0, "momentum": 1}, seed=54)
    run_of(folder, "again-2", {"lr": 1e-2, "seed": 0, "momentum": 1.0}, seed=54)
    run_of(folder, "again-3", {"lr": 1e-2, "seed": 1, "momentum": 1}, seed=55)
    hostile = {"$.x": "a', '", "/y": [1, {"z": None}], 'q"': False, "lr": "1e-2"}
    run_of(folder, "hostile", hostile, seed=56)
    return pipeline.open_store(folder / "store")


def rows(store: Store, arguments: str) -> list[dict[str, Any]]:
    return store.sql(f"FROM over_seeds({arguments})").to_arrow_table().to_pylist()


def indicators(store: Store, wanted: Callable[[str], bool], name: str, scope: str) -> Any:
    """Return values and null values of the runs that are wanted, (2, N), by name."""
    query = "SELECT run, value, null_value FROM indicators WHERE indicator = ? AND scope = ? ORDER BY run"
    answer = store.sql(query, [name, scope]).fetchall()
    return np.array([numbers for run, *numbers in answer if wanted(run)]).T


@pytest.mark.parametrize("scope", ["model", "layer"])
@pytest.mark.parametrize("indicator", ["relative_mds", "mean_update_angle_deg"])
def test_means_and_errors(store: Store, indicator: str, scope: str) -> None:
    found = {
        row["settings"]: row
        for row in rows(store, f"'{indicator}', scope := '{scope}', runs := 'grid-*'")
    }
    assert list(map(json.loads, found)) == [
        {"lr": rate, "wd": decay} for rate, decay in SEEDS
    ]  # of what varies and no more, in the order of the numbers
    for row in found.values():
        at = json.loads(row["settings"])
        values, nulls = indicators(
            store, lambda run, at=at: run.startswith(f"grid-{at['lr']}-{at['wd']}-"), indicator, scope
        )  # fmt: skip
        seeds = SEEDS[at["lr"], at["wd"]]
        assert (row["seeds"], row["checkpoints"], row["parameters"]) == (seeds, 6, 300)
        assert row["mean"] == pytest.approx(np.mean(values), rel=1e-12)
        assert row["stderr"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(seeds), rel=1e-9)
        assert row["null_value"] == pytest.approx(np.mean(nulls), rel=1e-12)
        assert row["layer"] == (0 if scope == "layer" else None)


def test_patterns_choose_runs(store: Store) -> None:
    exactly = "grid-0.001-0-0, grid-0.001-0-1"
    (row,) = rows(store, f"'straightness', runs := '{exactly}'")
    assert (row["settings"], row["seeds"]) == ("{}", 2)  # nothing else differs
    assert rows(store, "'straightness', runs := 'nothing'") == []
    assert rows(store, "'nonsense', runs := 'grid-*'") == []
    assert rows(store, "'straightness', runs := 'none'") == []  # of no known settings
    assert {row["indicator"] for row in rows(store, "NULL, runs := 'unseeded-*'")} > {
        "mds",
        "straightness",
    }
    everything = rows(store, "'straightness'")
    assert sum(row["seeds"] for row in everything) == 7 + 2 + 1 + 2 + 1


def test_what_counts_as_a_seed(store: Store) -> None:
    """One that is stated counts once; runs that state none by themselves; other lengths are others."""
    row, longer = rows(store, "'straightness', runs := 'unseeded-*,longer'")
    assert [row["seeds"], longer["seeds"]] == [2, 1] and longer["stderr"] is None
    assert [row["checkpoints"], longer["checkpoints"]] == [6, 7]
    (row,) = rows(store, "'straightness', runs := 'again-*'")  # 1 is 1.0
    values, _ = indicators(store, lambda run: run.startswith("again"), "straightness", "model")
    assert row["seeds"] == 2
    assert row["mean"] == pytest.approx((values[0] + values[2]) / 2)
    assert values[0] == values[1] != values[2]


def test_hostile_settings_are_data(store: Store) -> None:
    other, hostile = rows(store, "'straightness', runs := 'hostile,unseeded-*'")
    assert json.loads(other["settings"]) == {"lr": 0.01} and other["seeds"] == 2
    assert json.loads(hostile["settings"]) == {
        "$.x": "a', '", "/y": [1, {"z": None}], 'q"': False, "lr": "1e-2",
    }  # fmt: skip
    assert rows(store, "'straightness', runs := '*'' OR true --'") == []
