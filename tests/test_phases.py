"""Views and findings of phases in a store, against the stored weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.numerics.indicators import INDICATORS
from pipeline.store.query import Store
from tests import reference
from tests.numerics.test_indicators import assert_figures
from tests.numerics.test_phases import path_of
from tests.phases_reference import judge
from tests.reference import Matrix, Vector
from tests.suites import stored_weights, write_suite

T = 36
STEPS = [50 * k for k in range(T + 1)]
K = np.arange(T)
DROPS = np.where(K < 14, 1.0, np.where(K < 18, 0.4, 0.1))
DECAY = np.minimum(1.0, np.arange(T, 0, -1) / 10)
SMALL = "layers.0.input_layernorm.weight"


def suite(directory: Path, lengths: Vector, *, seed: int = 0, weights: int = 1200) -> Path:
    tensors = {
        f"layers.{layer}.{name}.weight": path_of(lengths, seed + 10 * layer + n, weights=weights)
        for layer in range(2)
        for n, name in enumerate(("self_attn.q_proj", "mlp.up_proj"))
    }
    tensors[SMALL] = path_of(lengths, seed + 99, weights=64)
    return write_suite(directory, tensors, steps=STEPS)


def analysed(source: Path, store: Path, **options: Any) -> Store:
    pipeline.analyze(str(source), str(store), executor="local", run="a", **options)
    return pipeline.open_store(str(store))


def of_scope(source: Path, scope: str, value: Any) -> Matrix:
    chosen = [
        rows
        for name, rows in stored_weights(source).items()
        if scope in ("model", "body")
        or (scope == "layer" and f"layers.{value}." in name)
        or (scope == "component" and {"attn_q": "q_proj", "mlp_up": "up_proj"}[value] in name)
    ]
    return np.concatenate(chosen, axis=1)


def records(store: Store, query: str) -> list[dict[str, Any]]:
    return store.sql(query).to_arrow_table().to_pylist()


def changed_at(store: Store, where: str = "scope = 'model'") -> list[int]:
    query = f"SELECT DISTINCT k_first FROM phases WHERE {where} AND phase > 0 ORDER BY 1"
    return [k for (k,) in store.sql(query).fetchall()]


def number(value: float | None) -> float:
    return math.nan if value is None else value


def test_phases(tmp_path: Path) -> None:
    """Each with the indicators of its own checkpoints, and with those of the walk with its step lengths."""
    source = suite(tmp_path / "suite", DROPS)
    store = analysed(source, tmp_path / "store")
    groups = store.sql("SELECT DISTINCT scope, layer, component FROM phases").fetchall()
    keys = {(scope, component if layer is None else layer) for scope, layer, component in groups}
    assert keys == {
        ("model", None), ("body", None), ("layer", 0), ("layer", 1),
        ("component", "attn_q"), ("component", "mlp_up"),
    }  # fmt: skip
    times = np.array(STEPS, float), np.array(STEPS, float), np.arange(T + 1.0)
    for scope, value in keys:
        weights = of_scope(source, scope, value)
        expected = judge(weights, *times)
        assert set(expected.changes) == {14, 18} and not expected.doubtful
        where = f"scope = '{scope}' AND coalesce(component, layer::TEXT, '') = '{'' if value is None else value}'"
        rows = records(store, f"FROM phases WHERE {where} ORDER BY phase")
        bounds = sorted({(row["phase"], row["k_first"], row["k_last"]) for row in rows})
        assert bounds == [(0, 0, 14), (1, 14, 18), (2, 18, T)]
        for phase, first, last in bounds:
            of_phase = [row for row in rows if row["phase"] == phase]
            assert {(row["step_first"], row["step_last"]) for row in of_phase} == {
                (STEPS[first], STEPS[last])
            }
            (jump,) = {row["jump"] for row in of_phase}
            assert jump is None if phase == 0 else jump == pytest.approx(expected.changes[first])
            values = {row["indicator"]: number(row["value"]) for row in of_phase}
            nulls = {row["indicator"]: number(row["null_value"]) for row in of_phase}
            if last - first < 5:
                assert all(math.isnan(value) for value in (*values.values(), *nulls.values()))
                continue
            alone = weights[first : last + 1]
            own_times = [column[first : last + 1] for column in times]
            walked = reference.orthogonal_walk(alone)
            for found, truth in ((values, alone), (nulls, walked)):
                ordered = {name: found[name] for name in INDICATORS}
                assert_figures(ordered, reference.indicators(truth, *own_times))


def test_a_finding_for_the_model(tmp_path: Path) -> None:
    store = analysed(suite(tmp_path / "suite", DROPS), tmp_path / "store")
    found = records(store, "FROM findings WHERE kind = 'phase_change' ORDER BY k")
    assert [(f["severity"], f["k"], f["tensor"]) for f in found] == [
        ("info", 14, None),
        ("info", 18, None),
    ]
    jumps = dict(
        store.sql("SELECT DISTINCT k_first, jump FROM phases WHERE scope = 'model'").fetchall()
    )
    for finding in found:
        evidence = json.loads(finding["evidence"])
        k = finding["k"]
        assert evidence["checkpoint"] == {"k": k, "name": f"step{STEPS[k]}", "step": STEPS[k]}
        assert evidence["jump"] == jumps[k] < 0
        times = math.exp(-jumps[k])
        assert finding["message"] == f"increments become {times:.1f} × smaller from step {STEPS[k]}"
    assert 2 < math.exp(-jumps[14]) < 3 and 3 < math.exp(-jumps[18]) < 5


def test_a_decay_in_every_scope(tmp_path: Path) -> None:
    store = analysed(suite(tmp_path / "suite", DECAY), tmp_path / "store")
    found = records(store, "FROM indicators WHERE indicator = 'decay_start_step'")
    assert {row["scope"] for row in found} >= {"model", "layer_component", "tensor"}
    assert all(abs(row["value"] - STEPS[-10]) <= 100 for row in found)
    assert all(row["null_value"] is row["differs_from_null"] is None for row in found)
    assert changed_at(store) == []
    assert store.sql("SELECT count(*) FROM findings WHERE kind = 'phase_change'").fetchall() == [
        (0,)
    ]


def test_nothing_is_judged_of_a_logarithmic_schedule(tmp_path: Path) -> None:
    tensors = {"w.weight": path_of(DROPS[:14], weights=1200), "v.weight": path_of(DROPS[4:18])}
    source = write_suite(tmp_path / "suite", tensors, steps=[2**k for k in range(15)])
    store = analysed(source, tmp_path / "store")
    assert records(store, "FROM phases") == []
    assert records(store, "FROM findings WHERE kind = 'phase_change'") == []
    values = store.sql("SELECT value FROM indicators WHERE indicator = 'decay_start_step'")
    assert {value for (value,) in values.fetchall()} == {None}


def test_a_model_of_few_weights_has_no_phases(tmp_path: Path) -> None:
    source = write_suite(tmp_path / "suite", {"w.weight": path_of(DROPS, weights=999)}, steps=STEPS)
    store = analysed(source, tmp_path / "store")
    assert records(store, "FROM phases") == []
    assert records(store, "FROM findings WHERE kind = 'phase_change'") == []


def test_an_absent_checkpoint_divides_what_can_be_judged(tmp_path: Path) -> None:
    """A value that is not finite, in one layer: the change beside it is seen in the other alone."""
    tensors = {f"layers.{n}.w.weight": path_of(DROPS, n, weights=1200) for n in range(2)}
    tensors["layers.1.w.weight"][19, 5] = math.nan
    store = analysed(write_suite(tmp_path / "suite", tensors, steps=STEPS), tmp_path / "store")
    assert changed_at(store, "scope = 'layer' AND layer = 0") == [14, 18]
    for where in ("scope = 'layer' AND layer = 1", "scope = 'model'"):
        assert changed_at(store, where) == [14]
        (last,) = store.sql(f"SELECT max(k_last) FROM phases WHERE {where}").fetchall()[0]
        assert last == T


def test_a_wrong_checkpoint_is_no_change(tmp_path: Path) -> None:
    """What another finding explains is not told twice."""
    tensors = {"w.weight": path_of(np.ones(T), weights=1200)}
    tensors["w.weight"][20] = tensors["w.weight"][35]
    store = analysed(write_suite(tmp_path / "suite", tensors, steps=STEPS), tmp_path / "store")
    kinds = [kind for (kind,) in store.sql("SELECT kind FROM findings").fetchall()]
    assert "identical_checkpoints" in kinds and "phase_change" not in kinds
    assert changed_at(store) == [21]  # of the lengths alone, there is one


def test_unknown_steps(tmp_path: Path) -> None:
    """Checkpoints of a table without steps lie equally far apart; a finding calls them by their names."""
    source = suite(tmp_path / "suite", np.where(K < 14, 1.0, 0.1))
    table = tmp_path / "table.csv"
    rows = [f"{source / f'step{step}'},c{k},{2**k}" for k, step in enumerate(STEPS)]
    table.write_text("uri,name,tokens\n" + "\n".join(rows) + "\n")
    store = analysed(table, tmp_path / "store")
    (found,) = records(store, "FROM findings WHERE kind = 'phase_change'")
    assert found["k"] == 14 and found["message"].endswith("smaller from c14")
    assert changed_at(store) == [14]


def test_phases_of_a_sample_are_those_of_all_weights(tmp_path: Path) -> None:
    lengths = np.where(K < 14, 1.0, 0.2)
    source = suite(tmp_path / "suite", lengths, weights=40_000)
    whole = analysed(source, tmp_path / "whole")
    sample = analysed(source, tmp_path / "sample", fraction=0.2)
    assert sample.sql("SELECT fraction < 0.5 FROM runs").fetchall() == [(True,)]
    query = "SELECT phase, k_first, jump, value FROM phases WHERE scope = 'model' AND indicator = '{}' ORDER BY 1"
    for name, near in (("relative_mds", 0.02), ("predictability_1", 0.02)):
        pairs = zip(
            *(store.sql(query.format(name)).fetchall() for store in (whole, sample)), strict=True
        )
        for exact, estimate in pairs:
            assert exact[:2] == estimate[:2]
            assert estimate[3] == pytest.approx(exact[3], abs=near)
    assert changed_at(sample) == [14]


def test_each_source_of_a_joint_run_has_its_own_phases(tmp_path: Path) -> None:
    lengths = (np.where(K < 14, 1.0, 0.1), np.where(K < 20, 1.0, 0.1))
    sources = [
        str(suite(tmp_path / name, each, seed=seed))
        for name, each, seed in zip("xy", lengths, (0, 500), strict=True)
    ]
    pipeline.analyze_joint(sources, str(tmp_path / "store"), executor="local", run="both")
    store = pipeline.open_store(str(tmp_path / "store"))
    query = (
        "SELECT DISTINCT phase, k_first, k_last, jump IS NULL FROM phases"
        " WHERE run = '{}' AND scope = 'model' ORDER BY 1"
    )
    alone = [[(0, 0, k, True), (1, k, T, False)] for k in (14, 20)]
    assert [store.sql(query.format(name)).fetchall() for name in "xy"] == alone
    shifted = [(p + 2, a + T + 1, b + T + 1, first) for p, a, b, first in alone[1]]
    assert store.sql(query.format("both")).fetchall() == alone[0] + shifted
    found = records(store, "FROM findings WHERE run = 'both' AND kind = 'phase_change' ORDER BY k")
    assert [(f["k"], f["message"][:3]) for f in found] == [(14, "x: "), (20 + T + 1, "y: ")]
