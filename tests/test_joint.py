"""Several sources in one read: each by itself as ever, and what lies between them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import pipeline
from jobs.analyze import analyze
from jobs.plan import plan as plan_command
from pipeline.planning.make import make_joint_plan
from pipeline.planning.request import Request
from tests import reference
from tests.reference import Matrix
from tests.suites import stored_weights, trajectory, write_suite
from tests.test_accuracy import assert_group, of_scope

COUNTS = (9, 7, 5)
SHAPES = {"model.layers.0.mlp.up_proj.weight": 30_000, "model.layers.1.mlp.up_proj.weight": 3000}


def weights_of(seed: int, count: int, start: int) -> dict[str, Matrix]:
    """A walk with tiny steps from the first checkpoint of another."""
    found = {}
    for name, numel in SHAPES.items():
        walk = trajectory("smooth", count, numel, 1e-4, seed)
        found[name] = walk - walk[0] + trajectory("smooth", 1, numel, 1e-4, start)[0]
    return found


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of one start, and one of another."""
    root = tmp_path_factory.mktemp("sources")
    return [
        write_suite(root / f"seed{n}", weights_of(n, count, start), steps=range(0, 10 * count, 10))
        for n, (count, start) in enumerate(zip(COUNTS, (50, 50, 51), strict=True))
    ]


@pytest.fixture(scope="module")
def store(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> pipeline.api.Store:
    where = tmp_path_factory.mktemp("joint") / "store"
    options = ["--joint", "--run", "seeds", "--store", str(where), "--executor", "local", "--json"]
    done = CliRunner().invoke(analyze, [*map(str, sources), *options], standalone_mode=False)
    assert done.exception is None
    return pipeline.open_store(str(where))


def flat(directory: Path) -> Matrix:
    return np.concatenate(list(stored_weights(directory).values()), axis=1)


def test_each_source_is_a_run_as_accurate_as_alone(
    store: pipeline.api.Store, sources: list[Path]
) -> None:
    for source, count in zip(sources, COUNTS, strict=True):
        where = f"run = '{source.name}' AND scope = 'model'"
        assert_group(store, where, flat(source), list(range(0, 10 * count, 10)))
        layer = f"run = '{source.name}' AND scope = 'layer' AND layer = 1"
        one = stored_weights(source)["model.layers.1.mlp.up_proj.weight"]
        assert_group(store, layer, one, list(range(0, 10 * count, 10)))


def test_between_sources(store: pipeline.api.Store, sources: list[Path]) -> None:
    paths = [flat(source) for source in sources]
    weights = np.concatenate(paths)
    moved = np.concatenate([path - path[0] for path in paths])
    rows = of_scope(
        store, "similarity", "i, j, cosine, relative_cosine, distance, step_j",
        "run = 'seeds' AND scope = 'model'", "ORDER BY i, j",
    )  # fmt: skip
    i, j = rows[:, 0].astype(int), rows[:, 1].astype(int)
    assert len(rows) == sum(COUNTS) * (sum(COUNTS) + 1) // 2
    np.testing.assert_allclose(
        rows[:, 2], reference.cosine_matrix(weights)[i, j], rtol=0, atol=2e-7
    )
    np.testing.assert_allclose(rows[:, 3], reference.cosine_matrix(moved)[i, j], rtol=0, atol=4e-7)
    distances = np.linalg.norm(weights[i] - weights[j], axis=1)
    np.testing.assert_allclose(rows[:, 4], distances, rtol=2e-6)
    assert rows[(i == 0) & (j == COUNTS[0]), 4] == 0  # the two seeds of one start
    columns = "k, source, step"
    found = store.sql(f"SELECT {columns} FROM checkpoints WHERE run = 'seeds' ORDER BY k")
    expected = [
        (str(source), 10 * k) for source, n in zip(sources, COUNTS, strict=True) for k in range(n)
    ]
    assert found.fetchall() == [(k, *entry) for k, entry in enumerate(expected)]
    values = dict(
        store.sql(
            "SELECT indicator, value FROM indicators WHERE run = 'seeds' AND scope = 'model'"
        ).fetchall()
    )
    even = [1.0] * len(weights)
    assert values["mds"] == pytest.approx(reference.mean_similarity(weights, even), abs=1e-6)
    assert values["relative_mds"] == pytest.approx(reference.mean_similarity(moved, even), abs=1e-6)
    assert values["pca_share_1"] == pytest.approx(
        reference.principal_figures(weights)["pca_share_1"], abs=1e-6
    )
    assert values["path_length"] is None  # there is no path through all of them


def test_increments_between_sources(store: pipeline.api.Store, sources: list[Path]) -> None:
    assert_increments(store, "seeds", [np.diff(flat(source), axis=0) for source in sources])


def assert_increments(store: pipeline.api.Store, run: str, of_paths: list[Matrix]) -> None:
    """Compare with the increments of each path, NaN where one is undefined; none leads to a first."""
    rows = of_scope(
        store, "update_similarity", "i, j, cosine", f"run = '{run}' AND scope = 'model'", ""
    )
    none = np.full((1, of_paths[0].shape[1]), np.nan)
    increments = np.concatenate([each for path in of_paths for each in (none, path)])
    units = increments / np.linalg.norm(increments, axis=1, keepdims=True)
    i, j = rows[:, 0].astype(int), rows[:, 1].astype(int)
    assert len(rows) == len(units) * (len(units) - 1) // 2
    np.testing.assert_allclose(rows[:, 2], np.sum(units[i] * units[j], axis=1), rtol=0, atol=2e-7)


def test_paths_are_those_of_each_source(store: pipeline.api.Store, sources: list[Path]) -> None:
    columns = "norm, displacement, increment, path_length, update_angle_deg, apex_angle_last_deg"
    together = of_scope(store, "path", columns, "run = 'seeds' AND scope = 'model'", "ORDER BY k")
    alone = [
        of_scope(store, "path", columns, f"run = '{s.name}' AND scope = 'model'", "ORDER BY k")
        for s in sources
    ]
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_a_checkpoint_with_nan_is_absent_from_its_own_path(
    sources: list[Path], tmp_path: Path
) -> None:
    """The first checkpoint of all, which the basis of every path starts from, in one tensor."""
    weights = weights_of(0, COUNTS[0], 50)
    weights["model.layers.1.mlp.up_proj.weight"][0, 7] = np.nan
    broken = write_suite(tmp_path / "broken", weights)
    pipeline.analyze_joint([str(broken), str(sources[1])], str(tmp_path / "s"), executor="local")
    store = pipeline.open_store(str(tmp_path / "s"))
    run = "broken--with--seed1"
    first, second = flat(broken), flat(sources[1])
    whole = np.concatenate([first, second])
    moved = np.concatenate([first - first[1], second - second[0]])
    rows = of_scope(
        store, "similarity", "i, j, cosine, relative_cosine, distance",
        f"run = '{run}' AND scope = 'model'", "ORDER BY i, j",
    )  # fmt: skip
    i, j = rows[:, 0].astype(int), rows[:, 1].astype(int)
    gone = (i == 0) | (j == 0)
    assert np.isnan(rows[gone, 2:]).all()
    assert not np.isnan(rows[~gone, 2]).any()
    i, j, rows = i[~gone], j[~gone], rows[~gone]
    expected = np.array([reference.cosine(whole[a], whole[b]) for a, b in zip(i, j, strict=True)])
    np.testing.assert_allclose(rows[:, 2], expected, rtol=0, atol=2e-7)
    expected = np.array([reference.cosine(moved[a], moved[b]) for a, b in zip(i, j, strict=True)])
    np.testing.assert_allclose(rows[:, 3], expected, rtol=0, atol=4e-7)
    increments = np.diff(first, axis=0)
    increments[0] = np.nan
    assert_increments(store, run, [increments, np.diff(second, axis=0)])


def test_one_read_serves_all_runs(sources: list[Path], tmp_path: Path) -> None:
    requests = [Request(str(source)) for source in sources]
    plan, _ = make_joint_plan(requests, None)
    assert plan.run == "seed0--with--seed1--with--seed2"
    assert plan.bytes_total == sum(COUNTS) * 4 * sum(SHAPES.values())
    assert sum(own.bytes_total for own in plan.alone()) == plan.bytes_total
    names = [str(source) for source in sources]
    summaries = pipeline.analyze_joint(names, str(tmp_path / "s"), executor="local")
    assert [s.checkpoints for s in summaries] == [*COUNTS, sum(COUNTS)]
    assert summaries[-1].bytes_read == plan.bytes_total
    again = pipeline.analyze_joint(names, str(tmp_path / "s"), executor="local")
    assert all(summary.already_complete for summary in again)
    assert [s.mds for s in again] == [s.mds for s in summaries]


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--joint"], "at least 2"), (["--joint", "--run", "seed1"], "both be called seed1")],
)
def test_wrong_requests(sources: list[Path], options: list[str], message: str) -> None:
    named = sources[:1] if len(options) == 1 else sources
    done = CliRunner().invoke(plan_command, [*map(str, named), *options])
    assert message in str(done.exception)


def test_plan_names_the_paths(sources: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [*map(str, sources), "--joint", "--json"]
    plan_command.main(arguments, standalone_mode=False)
    found = json.loads(capfd.readouterr().out)
    assert [(path["run"], path["first"]) for path in found["paths"]] == [
        ("seed0", 0), ("seed1", 9), ("seed2", 16),
    ]  # fmt: skip
    plan_command.main(arguments[:-1], standalone_mode=False)
    assert "from checkpoint 9: " in capfd.readouterr().out
