"""Windows and stages in the store: against the weights themselves, and against the product on the part alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import pipeline
from pipeline.errors import RequestError
from pipeline.job.analyze import analyze
from pipeline.numerics.indicators import INDICATORS
from pipeline.numerics.windows import offered
from pipeline.planning.make import make_plan
from pipeline.planning.request import Request, Resources
from pipeline.reduce.groups import INCREMENTS_KEPT, grouping
from pipeline.reduce.memory import encoded_tables
from pipeline.store.query import Store
from tests import reference
from tests.commands import hallmarks
from tests.reference import Matrix
from tests.suites import stored_weights, trajectory, write_suite

FIRST, SECOND = 14, 10
STEPS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000] + [
    4000 + 500 * k for k in range(SECOND)
]
"""Uneven, then even; the second stage begins at step 4,000."""
LAYERS = (0, 1)
KEYS = "scope, layer, component, tensor"


def staged_suite(folder: Path) -> Path:
    """Two layers whose second stage goes another way, with a copy and a checkpoint that did not move."""
    tensors = {}
    for layer in LAYERS:
        for number, name in enumerate(("self_attn.q_proj", "mlp.up_proj")):
            before = trajectory("walk", FIRST, 500, 0.05, 10 * layer + number)
            after = trajectory("smooth", SECOND + 1, 500, 0.02, 10 * layer + number + 5)
            rows = np.vstack([before, before[-1] + after[1:] - after[0]])
            rows[5], rows[9] = rows[4], rows[3]
            tensors[f"model.layers.{layer}.{name}.weight"] = rows
    write_suite(folder, tensors, steps=STEPS)
    for k, step in enumerate(STEPS):
        (folder / f"step{step}").rename(folder / f"stage{1 + (k >= FIRST)}-step{step}")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return staged_suite(tmp_path_factory.mktemp("windows") / "suite")


@pytest.fixture(scope="module")
def store(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return analysed(source, tmp_path_factory.mktemp("windows") / "store", windows="5,8,12")


def analysed(source: Path, store: Path, **options: Any) -> Store:
    pipeline.analyze(source, store, executor="local", **options)
    return pipeline.open_store(store)


def rows_of(store: Store, query: str) -> list[dict[str, Any]]:
    return store.sql(query).to_arrow_table().to_pylist()


def group_weights(source: Path, row: dict[str, Any]) -> Matrix:
    """(K, P) of the group that a row of a view speaks of."""
    words = {"attn_q": "q_proj", "mlp_up": "up_proj"}
    parts = [
        values
        for name, values in stored_weights(source).items()
        if row["layer"] is None or f"layers.{row['layer']}." in name
        if row["component"] is None or words[row["component"]] in name
    ]
    return np.concatenate(parts, axis=1)


def assert_owed(name: str, found: float | None, truth: float, fold: float = 1.0) -> None:
    """To the accuracy that method.md §4 and method-2.md §8 owe."""
    if math.isnan(truth):
        assert found is None, name
        return
    assert found is not None, name
    if name in ("path_length", "displacement", "norm_ratio"):
        assert found == pytest.approx(truth, rel=1e-6 * fold), name
    elif name.endswith("_deg"):
        assert found == pytest.approx(truth, abs=1e-3 * fold), name
    else:
        assert found == pytest.approx(truth, abs=1e-6 * fold), name


def expected_of(weights: Matrix, steps: Sequence[int], k: int) -> tuple[dict[str, float], ...]:
    """Indicators of a part as a path of its own, and of the walk with its step lengths."""
    times = np.array(steps, float)
    when = times, times, k + np.arange(len(steps), dtype=float)
    walked = reference.orthogonal_walk(weights)
    return reference.indicators(weights, *when), reference.indicators(walked, *when)


def test_windows_are_those_of_the_weights(store: Store, source: Path) -> None:
    rows = rows_of(store, f"FROM windows WHERE k_first % 8 = 1 ORDER BY {KEYS}, w, k_first")
    truths: dict[tuple[Any, ...], tuple[dict[str, float], ...]] = {}
    for row in rows:
        first, last = row["k_first"], row["k_last"]
        assert last - first + 1 == row["w"]
        assert (row["step_first"], row["step_last"]) == (STEPS[first], STEPS[last])
        part = row["scope"], row["layer"], row["component"], row["w"], first
        if part not in truths:
            weights = group_weights(source, row)[first : last + 1]
            truths[part] = expected_of(weights, STEPS[first : last + 1], first)
        truth, walked = truths[part]
        name = row["indicator"]
        assert_owed(name, row["value"], truth[name])
        assert_owed(name, row["null_value"], walked[name])
    assert len(truths) == (2 + 2 + 2) * (3 + 2 + 2)
    assert {row["scope"] for row in rows} == set(INCREMENTS_KEPT)


def test_every_window_is_there_once(store: Store) -> None:
    found = store.sql(
        f"SELECT {KEYS}, w, indicator, list(k_first ORDER BY k_first) FROM windows GROUP BY ALL"
    ).fetchall()
    widths = [(width, name) for width in (5, 8, 12) for name in offered(width)]
    assert len(found) == (2 + 2 + 2) * len(widths)
    assert sorted({row[-3:-1] for row in found}) == sorted(widths)
    for *_, width, _, firsts in found:
        assert firsts == list(range(len(STEPS) - width + 1))


def test_a_window_is_what_its_checkpoints_alone_give(
    store: Store, source: Path, tmp_path: Path
) -> None:
    for first, width in ((1, 12), (3, 8), (14, 5)):
        last = first + width - 1
        steps = f"{STEPS[first]}:{STEPS[last]}"
        alone = analysed(source, tmp_path / steps, steps=steps)
        where = f"w = {width} AND k_first = {first}"
        columns = f"{KEYS}, indicator, value, null_value"
        rows = store.sql(f"SELECT {columns} FROM windows WHERE {where}").fetchall()
        query = f"SELECT {columns} FROM indicators WHERE scope IN {INCREMENTS_KEPT}"
        expected = {row[:-2]: row[-2:] for row in alone.sql(query).fetchall()}
        assert len(rows) == 6 * len(offered(width))
        for row in rows:
            for found, truth in zip(row[-2:], expected[row[:-2]], strict=True):
                assert_owed(row[-3], found, math.nan if truth is None else truth)


def test_a_stage_is_what_its_checkpoints_alone_give(
    store: Store, source: Path, tmp_path: Path
) -> None:
    for stage, first, count in ((1, 0, FIRST), (2, FIRST, SECOND)):
        alone = analysed(source, tmp_path / str(stage), revisions=f"stage{stage}*")
        rows = rows_of(store, f"FROM stages WHERE stage = {stage}")
        assert len(rows) == (2 + 2 + 2) * len(INDICATORS)
        query = f"SELECT {KEYS}, indicator, value, null_value FROM indicators"
        expected = {row[:-2]: row[-2:] for row in alone.sql(query).fetchall()}
        elapsed = alone.sql("SELECT elapsed FROM checkpoints ORDER BY k").fetchall()
        assert [time for (time,) in elapsed] == STEPS[first : first + count]
        for row in rows:
            assert (row["k_first"], row["k_last"]) == (first, first + count - 1)
            assert (row["step_first"], row["step_last"]) == (STEPS[first], STEPS[row["k_last"]])
            key = tuple(row[name] for name in (*KEYS.split(", "), "indicator"))
            for found, truth in zip((row["value"], row["null_value"]), expected[key], strict=True):
                assert_owed(row["indicator"], found, math.nan if truth is None else truth)


def test_the_files_of_views_alone_give_them(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by DuckDB and nothing else."""
    monkeypatch.chdir(store.path)
    connection = duckdb.connect()
    connection.execute(Path("views.sql").read_text())
    for view in ("windows", "stages"):
        query = f"SELECT * FROM {view} ORDER BY ALL"
        assert connection.sql(query).fetchall() == store.sql(query).fetchall() != []


def test_a_change_of_the_data_is_where_it_was(store: Store) -> None:
    """The second stage goes straight: its windows lie far above their walk, those before near it."""
    rows = store.sql(
        "SELECT step_first >= 4000, step_last < 4000, value - null_value FROM windows"
        " WHERE scope = 'model' AND w = 8 AND indicator = 'straightness' ORDER BY k_first"
    ).fetchall()
    inside = [above for within, _, above in rows if within]
    before = [abs(above) for _, within, above in rows if within]
    assert min(inside) > 1.5 * max(before) > 0


def test_other_widths_read_nothing_and_stay(source: Path, tmp_path: Path) -> None:
    """Until others are stated; products of increments of further scopes come and go with them."""

    def asked(**options: Any) -> tuple[list[int], list[str]]:
        store, request = str(tmp_path / "store"), Request(str(source), by_head=False, **options)
        summary = analyze(request, store, Resources(executor="local"))
        reads.append(summary.bytes_read > 0)
        opened = pipeline.open_store(store)
        queries = (
            "SELECT DISTINCT w FROM windows ORDER BY w",
            "SELECT DISTINCT scope FROM windows ORDER BY scope",
            "SELECT DISTINCT scope FROM update_similarity ORDER BY scope",
        )
        widths, scopes, kept = ([one for (one,) in opened.sql(q).fetchall()] for q in queries)
        assert kept == scopes
        return widths, scopes

    reads: list[bool] = []
    usual = sorted(INCREMENTS_KEPT)
    assert asked() == ([8], usual)
    assert asked(windows="16,5") == ([5, 16], usual)
    assert asked() == ([5, 16], usual)
    assert asked(windows=("6", "tensor")) == ([6], sorted([*usual, "tensor"]))
    assert asked(windows="layer_component") == ([8], sorted([*usual, "layer_component"]))
    assert reads == [True, False, False, False, False]


def test_windows_of_a_tensor_are_its_own(source: Path, tmp_path: Path) -> None:
    store = analysed(source, tmp_path / "store", windows="8,tensor")
    name = "model.layers.1.mlp.up_proj.weight"
    weights = stored_weights(source)[name]
    rows = rows_of(store, f"FROM windows WHERE tensor = '{name}' AND k_first = 7")
    truth, walked = expected_of(weights[7:15], STEPS[7:15], 7)
    assert {row["indicator"] for row in rows} == set(offered(8))
    for row in rows:
        assert_owed(row["indicator"], row["value"], truth[row["indicator"]])
        assert_owed(row["indicator"], row["null_value"], walked[row["indicator"]])


def test_a_run_with_fewer_checkpoints_than_the_window(tmp_path: Path) -> None:
    rows = trajectory("walk", 7, 200, 0.1)
    source = write_suite(tmp_path / "suite", {"layers.0.w.weight": rows})
    store = analysed(source, tmp_path / "store")
    assert store.sql("FROM windows").fetchall() == store.sql("FROM stages").fetchall() == []
    again = analysed(source, tmp_path / "store", windows=[5, 7, 9])
    assert again.sql("SELECT DISTINCT w FROM windows ORDER BY w").fetchall() == [(5,), (7,)]


def test_absent_checkpoints_are_left_out_of_windows(tmp_path: Path) -> None:
    """A window has w that are present; it reaches further across one that is absent."""
    whole = {
        f"model.layers.{layer}.mlp.up_proj.weight": trajectory("walk", 12, 300, 0.1, layer)
        for layer in LAYERS
    }
    broken = {name: rows.copy() for name, rows in whole.items()}
    broken["model.layers.0.mlp.up_proj.weight"][4, 7] = np.nan
    source = write_suite(tmp_path / "broken", broken)
    store = analysed(source, tmp_path / "store")
    present = [k for k in range(12) if k != 4]
    found: dict[int, list[tuple[int, int]]] = {}
    for layer in LAYERS:
        rows = rows_of(store, f"FROM windows WHERE layer = {layer} ORDER BY k_first")
        found[layer] = sorted({(row["k_first"], row["k_last"]) for row in rows})
        weights = whole[f"model.layers.{layer}.mlp.up_proj.weight"].astype(np.float32)
        for row in rows:
            between = range(row["k_first"], row["k_last"] + 1)
            numbers = [k for k in between if layer == 1 or k != 4]
            truth, walked = expected_of(weights[numbers].astype(float), numbers, 0)
            assert_owed(row["indicator"], row["value"], truth[row["indicator"]])
            assert_owed(row["indicator"], row["null_value"], walked[row["indicator"]])
    assert found[1] == [(k, k + 7) for k in range(5)]
    assert found[0] == [(present[n], present[n + 7]) for n in range(4)]


def test_several_sources_have_windows_within_each(tmp_path: Path) -> None:
    sources = []
    for seed, count in enumerate((9, 12)):
        rows = trajectory("walk", count, 300, 0.1, seed)
        sources.append(write_suite(tmp_path / f"seed{seed}", {"layers.0.w.weight": rows}))
    pipeline.analyze_joint(sources, tmp_path / "store", run="both", executor="local")
    store = pipeline.open_store(tmp_path / "store")
    columns = "indicator, k_first, k_last, value, null_value"
    both = store.sql(f"SELECT {columns} FROM windows WHERE run = 'both' ORDER BY ALL").fetchall()
    moved = "indicator, k_first + 9 * (run = 'seed1')::INT, k_last + 9 * (run = 'seed1')::INT"
    query = f"SELECT {moved}, value, null_value FROM windows WHERE run <> 'both' ORDER BY ALL"
    assert both == store.sql(query).fetchall()
    assert {row[1:3] for row in both} == {(0, 7), (1, 8), *((k, k + 7) for k in range(9, 14))}


@pytest.mark.parametrize("fraction", [None, 0.3])
def test_a_window_over_all_checkpoints_has_the_figures_of_the_run(
    fraction: float | None, tmp_path: Path
) -> None:
    """In a sample, too, where squares of dot products are less their bias."""
    tensors = {
        f"model.layers.{layer}.mlp.up_proj.weight": trajectory("smooth", 12, 40_000, 0.1, layer)
        for layer in LAYERS
    }
    source = write_suite(tmp_path / "suite", tensors)
    store = analysed(source, tmp_path / "store", fraction=fraction, windows=12)
    rows = store.sql(
        "SELECT w.indicator, w.value, i.value, w.null_value, i.null_value FROM windows w"
        " JOIN indicators i ON i.scope = w.scope AND i.indicator = w.indicator"
        " AND i.layer IS NOT DISTINCT FROM w.layer"
        " AND i.component IS NOT DISTINCT FROM w.component"
    ).fetchall()
    assert len(rows) == (2 + 2 + 1) * len(offered(12))
    for name, value, of_run, null, null_of_run in rows:
        assert value == pytest.approx(of_run, rel=1e-9), name
        assert null == pytest.approx(null_of_run, rel=1e-9), name


@pytest.mark.parametrize(
    "stated", ["4", "0", "-8", "eight", "8.5", "5,,8", "8;16", "model", "all", "9" * 12, "²"]
)
def test_what_is_no_window_is_refused_alike_everywhere(stated: str, source: Path) -> None:
    done = hallmarks("analyze", source, "--windows", stated, "--store", source / "never")
    assert done.returncode == 2 and not (source / "never").exists()
    with pytest.raises(RequestError) as refused:
        pipeline.plan(source, windows=stated)
    assert "--windows: expected numbers of checkpoints from 5 on" in refused.value.message
    assert refused.value.message in done.stderr and refused.value.hint in done.stderr


@pytest.mark.parametrize("stated", [True, 7.5, [5, None], {"w": 5}, b"8"])
def test_what_is_no_list_in_python_is_refused(stated: Any, source: Path) -> None:
    with pytest.raises(RequestError, match="--windows"):
        pipeline.plan(source, windows=stated)


def test_tables_of_parts_are_no_larger_than_a_plan_says(tmp_path: Path) -> None:
    tensors = {
        f"layers.{layer}.mlp.up_proj.weight": trajectory("walk", 60, 200, 0.1, layer)
        for layer in LAYERS
    }
    source = write_suite(tmp_path / "suite", tensors)
    for k in range(60):
        (source / f"step{k}").rename(source / f"stage{k // 6}-step{k}")
    request = Request(str(source), windows=range(5, 17))
    analyze(request, str(tmp_path / "store"), Resources(executor="local"))
    plan, _ = make_plan(request)
    *_, windows, stages, phases = encoded_tables(grouping(plan), plan)
    for table, projected in (("windows", windows), ("stages", stages)):
        (file,) = (tmp_path / "store" / table).rglob("*.parquet")
        assert projected / 2 < file.stat().st_size <= 1.2 * projected, table  # and a footer
    (file,) = (tmp_path / "store" / "phases").rglob("*.parquet")
    assert file.stat().st_size <= phases  # a third of the checkpoints may begin one, few do


def test_a_plan_says_what_windows_take(source: Path, tmp_path: Path) -> None:
    sizes = {}
    for stated in ("8", "5,8,16", "8,tensor", "200"):
        made = json.loads(hallmarks("plan", source, "--json", "--windows", stated).stdout)
        sizes[stated] = made["tables"]
    assert sizes["200"]["windows"] == 0 < sizes["8"]["windows"] < sizes["5,8,16"]["windows"]
    assert sizes["8,tensor"]["increments"] > sizes["8"]["increments"]
    assert sizes["5,8,16"]["widths"] == [5, 8, 16]
    assert sizes["8,tensor"]["scopes"] == [*INCREMENTS_KEPT, "tensor"]
    text = hallmarks("plan", source, "--windows", "5,8").stdout
    assert "windows of 5, 8 checkpoints" in " ".join(text.split())
