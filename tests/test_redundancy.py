"""The view `redundancy`, against explicit weights: real shapes of paths, and those in which little is defined."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pipeline
from pipeline.store.query import Store
from tests import reference
from tests.suites import stored_weights, trajectory, write_suite

STEPS = [0, 1, 5, 10, 20, 30, 40, 60, 80, 100, 120, 140]
COUNT = len(STEPS)
FIGURES = ("saturation_step", "settled_step", "predictability_1", "effective_rank", "rank_95")


def straight_from(first: int) -> NDArray[np.float64]:
    """Return a path whose direction is final long before its end: from a checkpoint on it goes straight."""
    rng = np.random.default_rng(3)
    along, across = rng.standard_normal((2, 600))
    rows = np.arange(COUNT)[:, None] * along
    rows[1:first] += 4 * across
    return 0.02 * rng.standard_normal(600) + 0.01 * rows


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("redundancy")
    paths = {
        **{kind: trajectory(kind, COUNT, 600, 0.1) for kind in ("walk", "smooth", "decaying")},
        "final": straight_from(5),
    }
    tensors = {
        f"layers.{layer}.mlp.up_proj.weight": rows for layer, rows in enumerate(paths.values())
    }
    suite = write_suite(folder / "suite", tensors, steps=STEPS)
    pipeline.analyze(suite, folder / "store", executor="local")
    return pipeline.open_store(folder / "store")


def records(store: Store, query: str) -> list[dict[str, Any]]:
    return store.sql(query).to_arrow_table().to_pylist()


def expected(weights: NDArray[np.float64], steps: list[int]) -> dict[str, float]:
    """Return what the view shows of a group, from its weights."""
    times, numbers = np.array(steps, float), np.arange(len(steps), dtype=float)
    figures = {
        prefix + name: value
        for prefix, rows in (("", weights), ("null_", reference.orthogonal_walk(weights)))
        for name, value in reference.indicators(rows, times, times, numbers).items()
        if name in FIGURES
    }
    displaced = weights - weights[0]
    final = [reference.cosine(row, displaced[-1]) >= 0.99 for row in displaced]
    k = reference.first_lasting(final)
    left = np.linalg.norm(weights[-1] - weights[k]) / np.linalg.norm(displaced[-1])
    return figures | {"remaining": float(left)}


def test_figures_are_those_of_the_weights(store: Store) -> None:
    suite = Path(store.path).parent / "suite"
    layers = list(stored_weights(suite).values())
    rows = records(store, "FROM redundancy WHERE scope = 'layer' ORDER BY layer")
    rows += records(store, "FROM redundancy WHERE scope = 'model'")
    groups = [*layers, np.concatenate(layers, axis=1)]
    assert len(rows) == len(groups) == 5
    for row, weights in zip(rows, groups, strict=True):
        for name, value in expected(weights, STEPS).items():
            assert row[name] == pytest.approx(value, rel=1e-5, abs=1e-6), (row["layer"], name)
    # what the column is for: straight on from step 30, most of the way still to go
    assert rows[3]["saturation_step"] == 30 and rows[3]["remaining"] > 0.5
    assert rows[0]["remaining"] <= math.sqrt(1 - 0.99**2)  # of a walk it is always
    kept = "FROM redundancy JOIN groups USING (run, scope, layer, component) WHERE scope = 'layer_component'"
    assert len(records(store, kept)) == 4


def one(tmp_path: Path, rows: NDArray[np.float64], **options: Any) -> dict[str, Any]:
    suite = write_suite(tmp_path / "suite", {"layers.0.w.weight": rows}, "F64")
    for number, name in enumerate(options.pop("names", ())):
        (suite / f"step{number}").rename(suite / name)
    pipeline.analyze(suite, tmp_path / "store", executor="local", **options)
    store = pipeline.open_store(tmp_path / "store")
    return records(store, "FROM redundancy WHERE scope = 'model'")[0]


def test_steps_that_begin_again(tmp_path: Path) -> None:
    """Two checkpoints have the step: the one is meant from which the direction is final."""
    names = [f"stage{stage}-step{step}" for stage in (1, 2) for step in range(6)]
    row = one(tmp_path, straight_from(9), names=names)
    assert row["saturation_step"] == 3  # of the second stage, k = 9
    assert row["remaining"] == pytest.approx(2 / 11, rel=1e-3)


def test_an_absent_checkpoint(tmp_path: Path) -> None:
    """The direction is final from the checkpoint after it, of those that are present."""
    rows = straight_from(5)
    rows[[5, 8]] = np.nan
    present = np.delete(np.arange(COUNT), [5, 8])
    row = one(tmp_path, rows)
    assert row["saturation_step"] == 6
    assert row["remaining"] == pytest.approx(
        expected(rows[present], present.tolist())["remaining"], rel=1e-9
    )


def test_what_is_undefined(tmp_path: Path) -> None:
    still = np.repeat(trajectory("walk", 1, 300, 0.1), 4, axis=0)
    row = one(tmp_path / "still", still)
    assert {name: row[name] for name in (*FIGURES, "remaining")} == dict.fromkeys(
        (*FIGURES, "remaining")
    )
    row = one(tmp_path / "two", trajectory("walk", 2, 300, 0.1))
    assert (row["saturation_step"], row["remaining"], row["predictability_1"]) == (1, 0, None)
    back = trajectory("walk", 5, 300, 0.1)
    back[2] = back[0]  # no displacement there, and so no direction
    back[3:] = back[1] + np.outer([1, 2], back[1] - back[0])
    row = one(tmp_path / "back", back)
    assert row["saturation_step"] == 3
    assert row["remaining"] == pytest.approx(1 / 3)


def test_of_several_sources_nothing_is_final(tmp_path: Path) -> None:
    sources = [
        write_suite(tmp_path / name, {"layers.0.w.weight": trajectory("walk", 4, 300, 0.1, at)})
        for at, name in enumerate("ab")
    ]
    pipeline.analyze_joint(sources, tmp_path / "store", run="both", executor="local")
    store = pipeline.open_store(tmp_path / "store")
    (row,) = records(store, "FROM redundancy WHERE run = 'both' AND scope = 'model'")
    assert row["saturation_step"] is None and row["remaining"] is None
    of_one = records(store, "FROM redundancy WHERE run = 'a' AND scope = 'model'")
    assert of_one[0]["remaining"] is not None
