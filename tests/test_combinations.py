"""Reference directions and averages of checkpoints in a store, against float64 from the very weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import pipeline
from pipeline.errors import QueryError
from pipeline.store.query import Store
from tests.commands import hallmarks
from tests.suites import stored_weights, trajectory, write_suite

Matrix = NDArray[np.float64]
STEPS = [0, 1, 5, 10, 20, 30, 40, 60]
LAST = len(STEPS) - 1
KINDS = ("walk", "smooth", "decaying")


def tensors(seed: int) -> dict[str, Matrix]:
    return {
        f"layers.{layer}.{name}.weight": trajectory(kind, 8, 600, 0.1, 10 * layer + number)
        + (0 if seed == 0 else trajectory("walk", 8, 600, 0.2, seed + layer) - 0.02)
        for layer, kind in enumerate(KINDS)
        for number, name in enumerate(("self_attn.q_proj", "mlp.up_proj"))
    }


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("combinations")
    return [
        write_suite(folder / name, tensors(seed), steps=STEPS) for seed, name in enumerate("ab")
    ]


@pytest.fixture(scope="module")
def store(suites: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("combinations") / "store"
    pipeline.analyze_joint(suites, folder, executor="local", run="both")
    return pipeline.open_store(folder)


def weights(suite: Path, part: str = "") -> Matrix:
    """Of the whole model, or of the tensors with this in their names, (K, P)."""
    stored = stored_weights(suite)
    return np.concatenate([rows for name, rows in stored.items() if part in name], axis=1)


def records(store: Store, query: str) -> list[dict[str, Any]]:
    return store.sql(query).to_arrow_table().to_pylist()


def parts(displacements: Matrix, direction: Matrix) -> tuple[Matrix, Matrix]:
    along = displacements @ direction / (direction @ direction)
    across = displacements - along[:, np.newaxis] * direction
    return along, np.linalg.norm(across, axis=1) / np.linalg.norm(direction)


def assert_parts(rows: list[dict[str, Any]], displacements: Matrix, direction: Matrix) -> None:
    along, off = parts(displacements, direction)
    assert [row["k"] for row in rows] == list(range(len(along)))
    assert np.allclose([row["along"] for row in rows], along, rtol=0, atol=1e-6)
    found = np.array([row["off"] for row in rows])
    clear = off > 1e-3
    assert clear.sum() > 2 and np.allclose(found[clear], off[clear], rtol=0, atol=1e-6)
    assert (found[~clear] < 2e-3).all()


GROUPS = [
    ("", ""),
    ("scope := 'layer', layer := 1", "layers.1."),
    ("scope := 'component', component := 'attn_q'", "q_proj"),
    ("scope := 'tensor', tensor := 'layers.2.mlp.up_proj.weight'", "layers.2.mlp"),
]


@pytest.mark.parametrize(("keys", "part"), GROUPS)
@pytest.mark.parametrize(("i", "j"), [(0, LAST), (2, 5), (6, 3)])
def test_along_a_direction_of_the_run(
    i: int, j: int, keys: str, part: str, store: Store, suites: list[Path]
) -> None:
    path = weights(suites[0], part)
    query = f"FROM along('a', {', '.join(filter(None, (str(i), str(j), keys)))}) ORDER BY k"
    rows = records(store, query)
    assert_parts(rows, path - path[0], path[j] - path[i])
    assert [row["step"] for row in rows] == STEPS


@pytest.mark.parametrize(("i", "j"), [(0, 7), (8, 15), (3, 12), (15, 7)])
def test_along_a_direction_of_another_run(i: int, j: int, store: Store, suites: list[Path]) -> None:
    """Of one source, and from one source to the other."""
    both = [weights(suite) for suite in suites]
    path = np.concatenate(both)
    displacements = np.concatenate([rows - rows[0] for rows in both])
    rows = records(store, f"FROM along('both', {i}, {j}) ORDER BY k")
    assert_parts(rows, displacements, path[j] - path[i])
    assert len({row["source"] for row in rows}) == 2
    assert rows == store.along("both", i, j).to_arrow_table().to_pylist()


def test_along_is_exact_where_lengths_differ(tmp_path: Path) -> None:
    """A nearly straight path, and a direction 10,000 times shorter than the displacement."""
    rng = np.random.default_rng(3)
    straight, aside = rng.standard_normal((2, 4000))
    times = np.array([0, 1, 2, 3, 4, 5, 5.0005])
    bend = 2e-3 * np.sin(np.pi * times / 5)
    rows = 0.02 + times[:, np.newaxis] * straight + bend[:, np.newaxis] * aside
    suite = write_suite(tmp_path / "suite", {"layers.0.w.weight": rows}, dtype="F64")
    pipeline.analyze(suite, tmp_path / "store", executor="local", run="a")
    store = pipeline.open_store(tmp_path / "store")
    path = weights(suite)
    for i, j in ((0, 5), (5, 6)):
        along, off = parts(path - path[0], path[j] - path[i])
        found = store.along("a", i, j).fetchnumpy()
        size = max(1.0, np.abs(along).max())
        assert np.allclose(found["along"], along, rtol=0, atol=1e-9 * size)
        clear = off > 1e-4
        assert np.allclose(found["off"][clear], off[clear], rtol=0, atol=1e-9 * size)


def named(words: str) -> Matrix:
    """Weights by their definitions, of this module's steps."""
    kind, _, number = words.partition(":")
    counted = np.zeros(len(STEPS))
    if kind == "last":
        counted[-int(number) :] = 1
    elif kind == "ema":
        for k in range(len(STEPS)):  # as the recursion has it, without what it began with
            counted *= float(number)
            counted[k] = 1 - float(number)
    else:  # how much of each increment a falling rate keeps, averaged over its time
        first, times = len(STEPS) - 1 - int(number), np.array(STEPS, np.float64)
        middles = (times[:-1] + times[1:]) / 2
        kept = np.clip((times[-1] - middles) / (times[-1] - times[first]), 0, 1)
        kept[:first] = 1
        counted = -np.diff(kept, prepend=1, append=0)
    return counted / counted.sum()


WORDS = ["last:1", "last:3", "last:8", "ema:0", "ema:0.5", "ema:0.95", "warmdown:1", "warmdown:5"]


@pytest.mark.parametrize("words", [*WORDS, "warmdown:7"])
def test_weights_by_name(words: str, store: Store) -> None:
    rows = records(store, f"FROM average_weights('a', '{words}') ORDER BY k")
    assert np.allclose([row["weight"] for row in rows], named(words), rtol=0, atol=1e-15)
    assert [(row["k"], row["step"]) for row in rows] == list(enumerate(STEPS))
    assert rows[1]["name"] == "step1"


def test_a_warm_down_keeps_of_each_increment_what_its_rate_would(
    store: Store, suites: list[Path]
) -> None:
    """arXiv 2507.17634: an increment counts with the weights of all checkpoints from it on."""
    path, steps = weights(suites[0]), np.array(STEPS, np.float64)
    rate = np.interp((steps[:-1] + steps[1:]) / 2, [0, steps[3], steps[-1]], [1, 1, 0])
    led = path[0] + rate @ np.diff(path, axis=0)
    found = store.average("a", "warmdown:4").fetchnumpy()
    assert np.allclose(found["distance"], np.linalg.norm(path - led, axis=1), rtol=1e-6)


def angles(one: Matrix, others: Matrix) -> Matrix:
    """Seen from the origin, in degrees: of small ones, too."""
    one = one / np.linalg.norm(one)
    others = others / np.linalg.norm(others, axis=1, keepdims=True)
    halves = np.linalg.norm(others - one, axis=1), np.linalg.norm(others + one, axis=1)
    return np.degrees(2 * np.arctan2(*halves))


LISTS = [
    [0, 0, 0.5, 0, 0, 0, -1.5, 2],
    [0, 0, 0, 0, 0, 1, 0, 0],
    [1e-6, 0, 0, 0, 0, 0, 0, 1 - 1e-6],
]


@pytest.mark.parametrize(("keys", "part"), GROUPS)
@pytest.mark.parametrize("combination", [*WORDS, *LISTS])
def test_average(
    combination: str | list[float], keys: str, part: str, store: Store, suites: list[Path]
) -> None:
    path = weights(suites[0], part)
    counted = named(combination) if isinstance(combination, str) else np.array(combination)
    mean = counted @ path
    given = f"'{combination}'" if isinstance(combination, str) else str(combination)
    rows = records(store, f"FROM average('a', {', '.join(filter(None, (given, keys)))}) ORDER BY k")
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    assert np.allclose(columns["weight"], counted, rtol=0, atol=1e-15)
    assert np.allclose(columns["norm"], np.linalg.norm(mean), rtol=1e-6)
    assert np.allclose(
        columns["distance"], np.linalg.norm(path - mean, axis=1), rtol=1e-6, atol=1e-12
    )
    assert np.allclose(columns["angle_deg"], angles(mean, path), rtol=1e-5, atol=1e-6)
    assert columns["step"].tolist() == STEPS


def test_a_soup_of_two_runs(store: Store, suites: list[Path]) -> None:
    path = np.concatenate([weights(suite) for suite in suites])
    counted = np.zeros(16)
    counted[[7, 15]] = 0.5
    found = store.average("both", counted.tolist()).fetchnumpy()
    distances = np.linalg.norm(path - counted @ path, axis=1)
    assert np.allclose(found["distance"], distances, rtol=1e-6)
    with pytest.raises(QueryError, match="last is of one source, the run has 2"):
        store.average("both", "last:2")


def test_absent_checkpoints(tmp_path: Path) -> None:
    values = tensors(0)
    values["layers.1.mlp.up_proj.weight"][3, 7] = np.nan
    values["layers.0.mlp.up_proj.weight"][0, 7] = np.nan
    suite = write_suite(tmp_path / "suite", values, steps=STEPS)
    pipeline.analyze(suite, tmp_path / "store", executor="local", run="a")
    store = pipeline.open_store(tmp_path / "store")
    path = weights(suite, "layers.1.")
    present = [k for k in range(8) if k != 3]
    found = store.average("a", "last:4", scope="layer", layer=1).fetchnumpy()
    distances = np.linalg.norm(path - path[4:].mean(axis=0), axis=1)
    assert np.ma.getmaskarray(found["distance"]).tolist() == [k == 3 for k in range(8)]
    assert np.allclose(found["distance"][present], distances[present], rtol=1e-6)
    gone = store.average("a", "last:5", scope="layer", layer=1).fetchnumpy()
    for column in ("norm", "distance", "angle_deg"):
        assert np.ma.getmaskarray(gone[column]).all()
    # displacements begin at the first checkpoint that is there
    path = weights(suite, "layers.0.")
    along, off = parts(path[1:] - path[1], path[7] - path[2])
    found = store.along("a", 2, 7, scope="layer", layer=0).fetchnumpy()
    for column, expected in (("along", along), ("off", off)):
        assert np.ma.getmaskarray(found[column]).tolist() == [True] + [False] * 7
        assert np.allclose(found[column][1:], expected, rtol=0, atol=1e-6)
    nowhere = store.along("a", 4, 4, scope="layer", layer=0).fetchnumpy()
    assert np.ma.getmaskarray(nowhere["along"]).all() and np.ma.getmaskarray(nowhere["off"]).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("along('a', 0, 8)", "expected checkpoints from 0 to 7, found 0 and 8"),
        ("along('a', -1, 3)", "expected checkpoints from 0 to 7, found -1 and 3"),
        ("along('a', NULL, 3)", "expected checkpoints from 0 to 7, found NULL and 3"),
        ("along('a', 1, NULL)", "expected checkpoints from 0 to 7, found 1 and NULL"),
        ("along('nobody', 1, 2)", "along: no run nobody"),
        ("along(NULL, 1, 2)", "along: no run NULL"),
        ("average('nobody', 'last:2')", "average: no run nobody"),
        ("average(NULL, 'last:2')", "average: no run NULL"),
        ("average('a', NULL)", "or a list of numbers, found NULL"),
        (
            "average('a', 'mean')",
            "expected last:M, ema:DECAY, warmdown:M or a list of numbers, found mean",
        ),
        ("average('a', 3)", "or a list of numbers, found 3"),
        ("average('a', 'last:0')", "expected last:M, M from 1 to 8, found last:0"),
        ("average('a', 'last:9')", "expected last:M, M from 1 to 8, found last:9"),
        ("average('a', 'last:2.5')", "expected last:M, M from 1 to 8, found last:2.5"),
        ("average('a', 'last:nan')", "expected last:M, M from 1 to 8, found last:nan"),
        ("average('a', 'warmdown:8')", "expected warmdown:M, M from 1 to 7, found warmdown:8"),
        ("average('a', 'ema:1')", "expected ema:DECAY, from 0 to below 1, found ema:1"),
        ("average('a', [0.5, 0.5])", "expected 8 weights, one for each checkpoint, found 2"),
        ("average('a', range(9))", "expected 8 weights, one for each checkpoint, found 9"),
        ("average('a', [1, 1, 1, 0, 0, 0, 0, 0])", "expected weights that add up to 1, found 3"),
        ("average('a', [1, NULL, 0, 0, 0, 0, 0, 0])", "found NULL, NaN or infinity"),
        ("average('a', ['nan'::DOUBLE, 1, 0, 0, 0, 0, 0, 0])", "found NULL, NaN or infinity"),
    ],
)
def test_what_is_asked_wrongly_is_refused_in_one_line(call: str, said: str, store: Store) -> None:
    done = hallmarks("sql", "--store", store.path, f"SELECT count(*) FROM {call}")
    assert done.returncode == 2 and done.stdout == ""
    error, *others = done.stderr.splitlines()
    assert error.startswith("error: ") and said in error and not others


def test_in_python_it_is_refused_at_once(store: Store) -> None:
    with pytest.raises(QueryError, match="found 0 and 8"):
        store.along("a", 0, 8)
    with pytest.raises(QueryError, match="add up to 1, found 2"):
        store.average("a", [2, 0, 0, 0, 0, 0, 0, 0])
    with pytest.raises(QueryError, match="expected weights, found"):
        store.average("a", [10**400, "x"])
    rows = store.average("a", np.full(8, 1 / 8), scope="layer").to_arrow_table().to_pylist()
    assert [(row["layer"], row["k"]) for row in rows] == [
        (n, k) for n in range(3) for k in range(8)
    ]
