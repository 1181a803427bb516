"""Views and functions of a store, against NumPy on the very weights; the glossary, against all there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from numpy.typing import NDArray

import pipeline
from pipeline.numerics.indicators import INDICATORS
from pipeline.reduce.groups import INCREMENTS_KEPT
from pipeline.store import glossary
from pipeline.store.query import Store, views
from tests.suites import stored_weights, trajectory, write_suite

ROOT = Path(__file__).parent.parent
STEPS = [0, 1, 5, 10, 20, 30, 40, 60]
KINDS = ("walk", "smooth", "decaying")
OVER_SEEDS = ("settings", "mean", "stderr", "null_value")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = {
        f"layers.{layer}.{name}.weight": trajectory(kind, 8, 600, 0.1, 10 * layer + number)
        for layer, kind in enumerate(KINDS)
        for number, name in enumerate(("self_attn.q_proj", "mlp.up_proj"))
    }
    return write_suite(tmp_path_factory.mktemp("views") / "suite", tensors, steps=STEPS)


@pytest.fixture(scope="module")
def store(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = str(tmp_path_factory.mktemp("views") / "store")
    pipeline.analyze(str(suite), folder, executor="local", run="a")
    pipeline.analyze(str(suite), folder, executor="local", run="b", include="q_proj", steps="1:")
    return pipeline.open_store(folder)


@pytest.fixture(scope="module")
def weights(suite: Path) -> NDArray[np.float64]:
    """Of the whole model, (K, P)."""
    return np.concatenate(list(stored_weights(suite).values()), axis=1)


def layer(suite: Path, number: int) -> NDArray[np.float64]:
    stored = stored_weights(suite)
    rows = [values for name, values in stored.items() if f"layers.{number}." in name]
    return np.concatenate(rows, axis=1)


def cosines(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return directions @ directions.T


def records(store: Store, query: str) -> list[dict[str, Any]]:
    return store.sql(query).to_arrow_table().to_pylist()


def square(rows: list[dict[str, Any]], column: str, count: int = 8) -> NDArray[np.float64]:
    filled = np.full((count, count), np.nan)
    for row in rows:
        assert np.isnan(filled[row["i"], row["j"]])  # each pair once
        value = row[column]
        filled[row["i"], row["j"]] = np.nan if value is None else value
    return filled


def test_trajectory_map(store: Store, suite: Path, weights: NDArray[np.float64]) -> None:
    rows = records(store, "FROM trajectory_map('a')")
    assert len(rows) == 64
    assert np.allclose(square(rows, "cosine"), cosines(weights), atol=1e-6)
    relative = square(rows, "relative_cosine")
    assert np.isnan(relative[0]).all() and np.isnan(relative[:, 0]).all()
    assert np.allclose(relative[1:, 1:], cosines(weights[1:] - weights[0]), atol=1e-6)
    assert {(row["i"], row["step_i"]) for row in rows} == set(enumerate(STEPS))
    assert {(row["j"], row["step_j"]) for row in rows} == set(enumerate(STEPS))
    of_layer = records(store, "FROM trajectory_map('a', scope := 'layer', layer := 1)")
    assert np.allclose(square(of_layer, "cosine"), cosines(layer(suite, 1)), atol=1e-6)
    assert np.array_equal(square(rows, "cosine"), store.trajectory_map("a"))


def test_update_similarity(store: Store, suite: Path, weights: NDArray[np.float64]) -> None:
    rows = records(store, "FROM update_similarity WHERE run = 'a' AND scope = 'model'")
    upper = np.triu_indices(7)
    increments = np.diff(weights, axis=0)
    assert np.allclose(square(rows, "cosine")[1:, 1:][upper], cosines(increments)[upper], atol=2e-7)
    dots = increments @ increments.T
    assert np.allclose(
        square(rows, "dot")[1:, 1:][upper], dots[upper], rtol=0, atol=1e-6 * dots.max()
    )
    assert {(row["i"], row["step_i"]) for row in rows} == set(enumerate(STEPS[1:], 1))
    of_layer = records(store, "FROM update_similarity WHERE run = 'a' AND layer = 2")
    expected = cosines(np.diff(layer(suite, 2), axis=0))[upper]
    assert np.allclose(square(of_layer, "cosine")[1:, 1:][upper], expected, atol=2e-7)
    stored = "stored_similarity JOIN groups USING (run, attempt, group_id)"
    for kept in ("update_similarity", f"{stored} WHERE increment_dot IS NOT NULL"):
        scopes = store.sql(f"SELECT DISTINCT scope FROM {kept}").fetchall()
        assert {scope for (scope,) in scopes} == set(INCREMENTS_KEPT)


def test_small_increments_keep_their_directions(tmp_path: Path) -> None:
    """Warm-up and decay: from distances, which hold the long way between them, they would cancel."""
    sizes = [1e-5, 1e-5, 0.3, 0.3, 0.3, 1e-5, 1e-5]
    rng = np.random.default_rng(1)
    common = rng.standard_normal(4000)
    moves = [size * (common + rng.standard_normal(4000)) for size in sizes]
    rows = np.cumsum([rng.standard_normal(4000), *moves], axis=0)
    suite = write_suite(tmp_path / "suite", {"layers.0.w.weight": rows}, dtype="F64")
    pipeline.analyze(suite, tmp_path / "store", executor="local")
    store = pipeline.open_store(tmp_path / "store")
    (path,) = stored_weights(suite).values()
    upper = np.triu_indices(7)
    expected = cosines(np.diff(path, axis=0))[upper]
    rows = records(store, "FROM update_similarity WHERE scope = 'model'")
    assert np.allclose(square(rows, "cosine")[1:, 1:][upper], expected, atol=2e-7)


@pytest.mark.slow
def test_a_layer_s_map_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2.2 million similarities the view reads those of two groups; joined in another order, it would hold all."""
    tensors = {
        f"layers.{layer}.{name}.weight": trajectory("walk", 154, 16, 0.1, layer)
        for layer in range(60)
        for name in ("self_attn.q_proj", "mlp.up_proj")
    }
    suite = write_suite(tmp_path / "suite", tensors)
    pipeline.analyze(suite, tmp_path / "store", executor="local")
    monkeypatch.chdir(tmp_path / "store")
    connection = duckdb.connect(config={"memory_limit": "64MB", "threads": 2})
    connection.execute(Path("views.sql").read_text())
    query = "SELECT count(dot) FROM update_similarity WHERE scope = 'layer' AND layer IN (0, 1)"
    assert connection.sql(query).fetchall() == [(153 * 154,)]


def test_from_anchor(store: Store, suite: Path) -> None:
    rows = records(store, "FROM from_anchor('a', 3, scope := 'layer') WHERE layer = 2")
    others = [k for k in range(8) if k != 3]
    found = square(rows, "relative_cosine")[np.ix_(others, others)]
    expected = cosines(layer(suite, 2)[others] - layer(suite, 2)[3])
    upper = np.triu_indices(len(others))
    assert np.allclose(found[upper], expected[upper], atol=1e-5)
    assert len(rows) == len(upper[0])


def test_window_mds(store: Store, suite: Path) -> None:
    rows = records(store, "FROM window_mds('a', 2, 6, scope := 'layer') ORDER BY layer")
    assert [row["layer"] for row in rows] == [0, 1, 2]
    for number, row in enumerate(rows):
        window = layer(suite, number)[2:7]
        assert (row["run"], row["k_first"], row["k_last"]) == ("a", 2, 6)
        assert row["mds"] == pytest.approx(cosines(window).mean(), abs=1e-6)
        relative = cosines(window[1:] - window[0]).mean()
        assert row["relative_mds"] == pytest.approx(relative, abs=1e-5)
    (whole,) = records(store, "FROM window_mds('a', 0, 7)")
    for name in ("mds", "relative_mds"):
        (row,) = records(store, f"FROM compare('{name}') WHERE run = 'a'")
        assert whole[name] == pytest.approx(row["value"], abs=1e-6)


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.6, 1.5])
def test_settled(threshold: float, store: Store, suite: Path) -> None:
    rows = records(store, f"FROM settled('a', {threshold}, scope := 'layer')")
    assert len(rows) == 3
    for row in rows:
        path = layer(suite, row["layer"])
        left = np.linalg.norm(path - path[-1], axis=1)
        beyond = np.flatnonzero(left > threshold * left[0])
        k = int(beyond[-1]) + 1 if beyond.size else 0
        assert (row["k"], row["step"]) == (k, STEPS[k])
        assert row["remaining"] == pytest.approx(left[k] / left[0], abs=1e-6)


def test_top(store: Store) -> None:
    column = (
        "SELECT run, tensor, value FROM indicators WHERE indicator = 'mds' AND scope = 'tensor'"
    )
    values = store.sql(column).fetchall()
    rows = store.sql("SELECT run, tensor, value FROM top('mds', 2, scope := 'tensor')").fetchall()
    for run in ("a", "b"):
        of_run = sorted((row for row in values if row[0] == run), key=lambda row: -row[2])
        assert [row for row in rows if row[0] == run] == of_run[:2]
    assert len(rows) == 4


def test_compare_and_between(store: Store) -> None:
    of_runs = {
        (row["run"], row["layer"]): row
        for row in records(store, "FROM indicators WHERE scope = 'layer' AND indicator = 'mds'")
    }
    rows = records(store, "FROM compare('mds', scope := 'layer')")
    assert len(rows) == len(of_runs) == 6
    for row in rows:
        stored = of_runs[row["run"], row["layer"]]
        assert row["value"] == stored["value"]
        assert row["above_null"] == stored["value"] - stored["null_value"]
        larger = [of_runs[run, row["layer"]]["value"] > row["value"] for run in ("a", "b")]
        assert row["place"] == 1 + sum(larger)
    query = "FROM \"between\"('a', 'b', scope := 'layer_component') WHERE indicator = 'mds'"
    rows = records(store, query)
    of_both = [row for row in rows if row["component"] == "attn_q"]
    assert len(rows) == 6 and len(of_both) == 3
    for row in rows:
        if row in of_both:
            assert row["difference"] == row["value_b"] - row["value_a"] and row["stderr"] == 0
        else:  # the other run does not have it
            assert row["value_a"] is not None and row["value_b"] is row["difference"] is None


def test_columns_that_were_added(store: Store, weights: NDArray[np.float64]) -> None:
    rows = records(store, "FROM path WHERE run = 'a' AND scope = 'model' ORDER BY k")
    assert rows[0]["relative_increment"] is None
    increments = np.linalg.norm(np.diff(weights, axis=0), axis=1)
    expected = increments / np.linalg.norm(weights[:-1], axis=1)
    found = [row["relative_increment"] for row in rows[1:]]
    assert np.allclose(found, expected, rtol=1e-6)
    one = records(store, "FROM path WHERE run = 'a' AND scope = 'model' AND k = 4")
    assert one[0] == rows[4]  # whatever else is asked for
    sizes = "SELECT scope, any_value(parameters), count(*) FROM groups WHERE run = 'a' GROUP BY ALL"
    assert {(scope, size) for scope, size, _ in store.sql(sizes).fetchall()} == {
        *(("model", 3600), ("body", 3600), ("layer", 1200), ("component", 1800)),
        *(("layer_component", 600), ("tensor", 600)),
    }
    (pair,) = records(
        store, "FROM similarity WHERE run = 'b' AND scope = 'model' AND i = 1 AND j = 2"
    )
    ((source,),) = store.sql("SELECT source FROM runs WHERE run = 'b'").fetchall()
    assert (pair["source_i"], pair["source_j"]) == (source, source)


def test_times_need_no_other_package(store: Store) -> None:
    ((created, zone),) = store.sql(
        "SELECT created_at, typeof(created_at) FROM runs WHERE run = 'a'"
    ).fetchall()
    assert created.tzinfo is None and zone == "TIMESTAMP"
    query = "SELECT count(*) FROM attempts JOIN runs USING (run) WHERE epoch_us(attempts.created_at) = epoch_us(runs.created_at)"
    assert store.sql(query).fetchall() == [(2,)]


def test_every_view_and_function_says_what_it_is(store: Store) -> None:
    store.sql("FROM glossary")
    text = (Path(store.path) / "views.sql").read_text()
    connection = duckdb.connect()
    connection.execute(text.replace("read_parquet('", f"read_parquet('{store.path}/"))
    said = connection.sql(
        "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal UNION ALL"
        " SELECT function_name, comment FROM duckdb_functions() WHERE NOT internal"
    ).fetchall()
    silent = {name for name, comment in said if not comment}
    assert all(name.startswith("stored_") for name in silent), silent
    meant = {
        term.name: term.meaning for term in glossary.terms() if term.kind in ("view", "function")
    }
    assert {name: comment for name, comment in said if comment} == meant
    assert len(connection.sql("FROM trajectory_map('a')").fetchall()) == 64


def test_the_glossary_has_everything_and_nothing_else() -> None:
    terms = glossary.terms()
    names = [(term.kind, term.name) for term in terms]
    assert len(set(names)) == len(names)
    assert [name for kind, name in names if kind == "indicator"] == list(INDICATORS)
    used = {
        glossary.column(view, column).name
        for view, columns in views().items()
        for column, _ in columns
    }
    functions = {"above_null", "place", "value_a", "value_b", "difference", "k_first", "k_last"}
    functions |= {"mds", "relative_mds", "remaining"}
    functions |= {"along", "off", "weight", "average.norm", "average.distance", "angle_deg"}
    functions |= {"seeds", *(f"over_seeds.{name}" for name in OVER_SEEDS)}
    assert {name for kind, name in names if kind == "column"} == used | functions
    source = "".join(path.read_text() for path in (ROOT / "pipeline").rglob("*.py"))
    for kind, name in names:
        assert kind != "finding" or f'"{name}"' in source, name
    made = re.findall(r'"(?:error|warning|info)",\s+"(\w+)"', source)
    found = {name for kind, name in names if kind == "finding"}
    assert set(made) - {"warning"} <= found
    assert all(term.meaning and (term.unit or term.kind == "indicator") for term in terms)
