"""The package under its own name: what it offers, what importing it costs, and what it gives back."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

import hallmarks
import pipeline
from pipeline.planning.request import RESOURCES, SELECTION, Request, Resources
from tests.suites import stored_weights, trajectory, write_suite

STEPS = [0, 10, 20, 40]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = trajectory("smooth", 4, 300, 0.1)
    folder = tmp_path_factory.mktemp("python") / "suite"
    return write_suite(folder, {"layers.0.w.weight": rows}, steps=STEPS)


@pytest.fixture(scope="module")
def store(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> hallmarks.Store:
    folder = tmp_path_factory.mktemp("python") / "store"
    summary = hallmarks.analyze(suite, folder, run="demo", executor="local")
    assert isinstance(summary, hallmarks.Summary)
    return hallmarks.open_store(folder)


def test_the_same_under_both_names() -> None:
    assert dir(hallmarks) == sorted(pipeline.__all__)
    for name in pipeline.__all__:
        assert getattr(hallmarks, name) is getattr(pipeline, name)
        assert getattr(pipeline, name).__name__ == name
    for package in (hallmarks, pipeline):
        with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
            package.nonsense  # noqa: B018
    errors = [getattr(hallmarks, name) for name in dir(hallmarks) if name.endswith("Error")]
    assert hallmarks.HallmarksError in errors
    assert all(issubclass(error, hallmarks.HallmarksError) for error in errors)


def test_importing_it_brings_nothing(store: hallmarks.Store) -> None:
    """torch takes a second, and asking a store needs none."""
    code = (
        "import sys, hallmarks; dir(hallmarks)\n"
        "assert not {'numpy', 'duckdb', 'torch', 'ray', 'click'} & sys.modules.keys()\n"
        f"hallmarks.open_store({store.path!r}).trajectory_map('demo')\n"
        "assert not {'torch', 'ray', 'click', 'huggingface_hub'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("function", [hallmarks.plan, hallmarks.analyze, hallmarks.analyze_joint])
def test_signatures_name_every_option(function: Any) -> None:
    """With the defaults of what they become."""
    parameters = inspect.signature(function).parameters
    options = {name for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}
    resources = {*RESOURCES, "fresh", "replace"} - {"threads"}
    selection = {*SELECTION}
    if function is hallmarks.analyze_joint:  # a log is of one training
        selection.remove("training")
    assert options == {*selection, *(() if function is hallmarks.plan else resources)}
    made: dict[str, Any] = {"fresh": False, "replace": False}
    for stated in (Request("x"), Resources()):
        made |= {name: getattr(stated, name) for name in stated.__slots__}
    assert {name: parameters[name].default for name in options} == {
        name: made[name] for name in options
    }
    with pytest.raises(TypeError, match="includes"):
        function("x", includes="attn")


def test_every_argument_is_explained() -> None:
    text = inspect.getdoc(hallmarks.analyze) or ""
    for name in inspect.signature(hallmarks.analyze).parameters:
        assert f"\n    {name}: " in text, name
    for name in pipeline.__all__:
        assert inspect.getdoc(getattr(hallmarks, name)), name


def test_a_trajectory_map(store: hallmarks.Store, suite: Path) -> None:
    square = store.trajectory_map("demo")
    (rows,) = stored_weights(suite).values()
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert isinstance(square, hallmarks.TrajectoryMap) and isinstance(square, np.ndarray)
    assert np.allclose(square, directions @ directions.T, atol=1e-6)
    assert (square.run, square.steps) == ("demo", tuple(STEPS))
    assert square.names == tuple(f"step{step}" for step in STEPS)
    assert (1 - square).steps == square.steps
    assert square[1:].steps == () and square[0].names == () and square[1:].run == "demo"
    assert float(square.mean()) == pytest.approx(np.asarray(square).mean())
    copy = pickle.loads(pickle.dumps(square))
    assert np.array_equal(copy, square) and (copy.steps, copy.names) == (square.steps, square.names)
    relative = store.trajectory_map("demo", relative=True)
    assert np.isnan(relative[0]).all() and relative[1, 1] == 1


def test_what_is_no_map(store: hallmarks.Store) -> None:
    with pytest.raises(hallmarks.QueryError, match="no run 'dmo'") as error:
        store.trajectory_map("dmo")
    assert error.value.hint == "there are: demo"
    with pytest.raises(hallmarks.QueryError, match="found none"):
        store.trajectory_map("demo", "layer", layer=7)


def test_pandas_is_optional(store: hallmarks.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(hallmarks.PackageMissing, match="pandas is not installed") as error:
        store.trajectory_map("demo").to_dataframe()
    assert "hallmarks[pandas]" in error.value.hint
    with pytest.raises(duckdb.InvalidInputException, match="'pandas' is required"):
        store.sql("FROM runs").df()


def test_a_data_frame(store: hallmarks.Store) -> None:
    pandas = pytest.importorskip("pandas")
    frame = store.trajectory_map("demo").to_dataframe()
    assert isinstance(frame, pandas.DataFrame) and frame.shape == (4, 4)
    assert frame.loc[10, 40] == store.trajectory_map("demo")[1, 3]
    assert store.sql("FROM runs").df()["run"].tolist() == ["demo"]


def test_an_answer_in_other_forms(store: hallmarks.Store) -> None:
    """What DuckDB's relation offers, without another package."""
    query = "SELECT run, created_at FROM runs"
    ((run, created),) = store.sql(query).fetchall()
    assert run == "demo" and created.tzinfo is None
    assert store.sql(query).arrow().read_all().to_pylist() == [{"run": run, "created_at": created}]
    assert store.sql(query).fetchnumpy()["run"].tolist() == ["demo"]
