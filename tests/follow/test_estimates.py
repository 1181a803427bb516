"""What is estimated of followed runs, against float64 products of the weights themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import pipeline
from benchmarks.follow import covered
from pipeline.follow.estimates import followed_sums
from pipeline.follow.norms import with_norms
from pipeline.numerics.basis import Basis
from pipeline.numerics.indicators import INDICATORS
from pipeline.numerics.trajectory import cosines, present_increments
from pipeline.planning.make import make_plan
from pipeline.planning.plan import Plan
from pipeline.planning.request import Request
from pipeline.planning.sample import JACKKNIFE_FOLDS
from pipeline.reduce.figures import Figures, GroupSums, Times, figures
from pipeline.reduce.groups import grouping
from pipeline.statistics.parts import Sums
from tests.following import OneByOne, read
from tests.suites import stored_weights, trajectory, write_suite

LARGE, OTHER, SMALL = (
    "layers.0.self_attn.q_proj.weight",
    "layers.0.mlp.up_proj.weight",
    "layers.0.input_layernorm.weight",
)
M = 256


def series(count: int = 9, numel: int = 5000, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    return {
        LARGE: trajectory("smooth", count, numel, 0.05, seed),
        OTHER: trajectory("walk", count, numel, 0.2, seed + 1),
        SMALL: trajectory("walk", count, 2 * M, 0.2, seed + 2),
    }


def followed(plan: Plan, sums: Sums, at_once: int = 1 << 20) -> dict[str, GroupSums]:
    """Return what is estimated of every group, by its tensor or what else it is."""
    grouped = grouping(plan)
    found = {}
    for groups, of_groups in followed_sums(plan, grouped, OneByOne(plan, sums), at_once):
        assert of_groups is not None
        for key in (grouped.keys[group] for group in groups):
            name = key.tensor or " ".join(
                str(each) for each in (key.scope, key.layer, key.component) if each is not None
            )
            found[name] = of_groups
    return found


def increments(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.diff(rows, axis=0, prepend=0.0)


def gram(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return increments(rows) @ increments(rows).T


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("series") / "suite", series(), "F32")


@pytest.fixture(scope="module")
def many(suite: Path) -> list[dict[str, GroupSums]]:
    """Estimates with forty seeds."""
    plan, source = make_plan(Request(str(suite)))
    plans = [plan.sketched(M, seed) for seed in range(40)]
    return [followed(each, read(each, source)) for each in plans]


def test_estimates_are_unbiased_and_as_precise_as_is_said(
    suite: Path, many: list[dict[str, GroupSums]]
) -> None:
    """Var Ŝ_ab ≤ Σ (S_aa S_bb + S_ab²)/m over sketched parts (docs/method-2.md, §7), before norms are set."""
    weights = stored_weights(suite)
    for name, parts in ((LARGE, (LARGE,)), (OTHER, (OTHER,)), ("model", (LARGE, OTHER))):
        all_parts = (LARGE, OTHER, SMALL) if name == "model" else parts
        truth = sum(gram(weights[part]) for part in all_parts)
        of_parts = [gram(weights[part]) for part in parts]
        bound = np.sqrt(sum(np.outer(np.diagonal(s), np.diagonal(s)) + s**2 for s in of_parts) / M)
        errors = np.array([each[name].increments for each in many]) - truth
        # of the largest of 81 scatters of 40 seeds
        assert (errors.std(axis=0) <= 1.5 * bound).all(), name
        assert (np.abs(errors.mean(axis=0)) <= 4.5 * bound / np.sqrt(len(many))).all(), name


def test_norms_are_exact_and_small_parts_whole(
    suite: Path, many: list[dict[str, GroupSums]]
) -> None:
    weights = stored_weights(suite)
    for name, parts in ((LARGE, (LARGE,)), ("model", (LARGE, OTHER, SMALL))):
        squares = sum((weights[part] ** 2).sum(axis=1) for part in parts)
        for each in many[:5]:
            dots = each[name].increments.cumsum(0).cumsum(1)
            np.testing.assert_allclose(np.diagonal(dots), squares, rtol=1e-12)
            assert set(each[name].changes) == set(range(JACKKNIFE_FOLDS))
            assert each[name].folds == JACKKNIFE_FOLDS
            for change in each[name].changes.values():
                dots = (each[name].increments + change).cumsum(0).cumsum(1)
                np.testing.assert_allclose(np.diagonal(dots), squares, rtol=1e-12)
                assert np.linalg.eigvalsh(each[name].increments + change)[0] > -1e-12
    for each in many[:5]:
        assert each[SMALL].changes == {}
        np.testing.assert_allclose(each[SMALL].increments, gram(weights[SMALL]), rtol=1e-12)


def test_replicates_leave_out_every_32nd_bucket(suite: Path) -> None:
    """By the definition, from the sketch alone: (S − S_g)·32/31, each with the norms that are known."""
    plan, source = make_plan(Request(str(suite)))
    plan = plan.sketched(M)
    sums = read(plan, source)
    found = followed(plan, sums)[LARGE]
    (row,) = (n for n, key in enumerate(sums.keys) if plan.tensors[key.tensor].name == LARGE)
    sketches = sums.arrays["sketch.buckets"][row][:, :M]
    squares = (stored_weights(suite)[LARGE] ** 2).sum(axis=1)
    for fold, change in found.changes.items():
        left = sketches[:, np.arange(M) % 32 != fold] * np.sqrt(32 / 31)
        np.testing.assert_allclose(
            found.increments + change,
            gram(lengthened(left, squares)),
            rtol=1e-9,
            atol=1e-12 * squares.max(),
        )


def lengthened(theta: NDArray[np.float64], squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return vectors of known lengths: each the one before, a little longer or shorter, and its increment."""
    result = [theta[0] * np.sqrt(squares[0] / (theta[0] @ theta[0]))]
    for before, now, square in zip(theta[:-1], theta[1:], squares[1:], strict=True):
        last, step = result[-1], now - before
        roots = np.roots([last @ last, 2 * last @ step, step @ step - square])
        stretch = roots[np.argmin(np.abs(roots - 1))]
        result.append(stretch * last + step)
    return np.array(result)


def test_norms_of_a_path_whose_steps_are_longer_than_its_weights() -> None:
    """Where no multiple of the checkpoint before gives the norm, and where one is zero."""
    rng = np.random.default_rng(0)
    theta = rng.standard_normal((7, 50))
    theta[2] *= 30.0
    theta[3] *= 0.01
    theta[5] = 0.0
    squares = (theta**2).sum(axis=1) * np.array([1, 1.3, 0.7, 0.5, 1.2, 1, 0.9])
    absent = np.array([False, False, False, False, True, False, False])
    theta[4] = theta[3]
    made = with_norms(gram(theta)[None], squares, absent)[0]
    norms = np.diagonal(made.cumsum(0).cumsum(1))[~absent]
    np.testing.assert_allclose(norms, squares[~absent], rtol=1e-9, atol=1e-9)
    assert np.linalg.eigvalsh(made)[0] > -1e-9
    exact = with_norms(gram(theta)[None], (theta**2).sum(axis=1), absent)[0]
    # at the one that is zero, the root of a difference of products is left: of their last bits, 1e-8
    np.testing.assert_allclose(exact, gram(theta), rtol=1e-9, atol=1e-6)


def test_how_many_parts_are_taken_at_once_decides_no_bit(trained: dict[str, Path]) -> None:
    plan, source = make_plan(Request(str(trained["neox-f16"])))
    plan = plan.sketched(M)
    sums = read(plan, source)
    first, again = (followed(plan, sums, at_once) for at_once in (1, 1 << 30))
    for name, each in first.items():
        assert each.increments.tobytes() == again[name].increments.tobytes(), name
        assert each.changes.keys() == again[name].changes.keys()
        for fold, change in each.changes.items():
            assert change.tobytes() == again[name].changes[fold].tobytes()


@pytest.mark.parametrize("moving", [20, 1])
def test_a_few_large_coordinates(moving: int, tmp_path: Path) -> None:
    """Whatever the distribution: a weight that moves alone is nearly exact, since no other is near it."""
    rng = np.random.default_rng(0)
    rows = np.tile(0.02 * rng.standard_normal(20_000), (8, 1))
    places = rng.choice(20_000, moving, replace=False)
    rows[1:, places] += 0.05 * rng.standard_normal((7, moving)).cumsum(axis=0)
    suite = {LARGE: rows, SMALL: np.zeros((8, 4)) + 1}
    directory = write_suite(tmp_path / "suite", suite, "F64")
    plan, source = make_plan(Request(str(directory)))
    truth = gram(rows)[1:, 1:]
    lengths = np.sqrt(np.diagonal(truth))
    errors = []
    for seed in range(10):
        each = plan.sketched(M, seed)
        found = followed(each, read(each, source))[LARGE].increments[1:, 1:]
        errors.append((found - truth) / np.outer(lengths, lengths))
    rms = np.sqrt(np.mean(np.square(errors)))
    assert rms < (0.03 if moving == 1 else 2 / np.sqrt(M))  # of others: 0.0625


def test_intervals_hold_the_truth() -> None:
    """A short form of benchmarks/follow.py: a walk and a smooth path beside each other."""
    found = covered(series(count=12, numel=6000), M, range(60))
    held, off = np.array(list(found.values())).T
    assert held.min() >= 0.8 and np.median(held) >= 0.9
    assert np.abs(off).max() < 0.6


def test_a_checkpoint_that_is_absent_in_one_part(tmp_path: Path) -> None:
    """The next increment goes from the last checkpoint that is present; of other parts nothing changes."""
    suite = series(count=7)
    suite[LARGE][3, 1234] = np.nan
    plan, source = make_plan(Request(str(write_suite(tmp_path / "suite", suite, "F32"))))
    weights = stored_weights(tmp_path / "suite")
    there = [k for k in range(7) if k != 3]
    errors: dict[str, list[float]] = {LARGE: [], "model": [], OTHER: []}
    for seed in range(20):
        each = plan.sketched(M, seed)
        found = followed(each, read(each, source))
        assert np.flatnonzero(found[LARGE].absent).tolist() == [3]
        assert not found[OTHER].absent.any()
        for name, parts in ((LARGE, (LARGE,)), ("model", (LARGE, OTHER, SMALL)), (OTHER, (OTHER,))):
            kept = there if name != OTHER else list(range(7))
            truth = sum(gram(weights[part][kept]) for part in parts)
            estimate = present_increments(found[name].increments[None], found[name].absent)[0]
            lengths = np.sqrt(np.diagonal(truth))
            errors[name] += list(((estimate - truth) / np.outer(lengths, lengths)).flat)
            squares = sum((weights[part][kept] ** 2).sum(axis=1) for part in parts)
            norms = np.diagonal(estimate.cumsum(0).cumsum(1))
            np.testing.assert_allclose(norms, squares, rtol=1e-12)
    for name, of_name in errors.items():
        assert np.sqrt(np.mean(np.square(of_name))) < 2 / np.sqrt(M), name
        assert abs(np.mean(of_name)) < 4 * np.sqrt(2 / M / 20), name


def test_equal_checkpoints_are_equal(tmp_path: Path) -> None:
    suite = series(count=6)
    for rows in suite.values():
        rows[4] = rows[3]
        rows[5] = rows[1]
    directory = write_suite(tmp_path / "suite", suite, "BF16")
    (found,) = estimated_figures(directory, "model")
    assert found.squared_distances[0, 3, 4] == found.squared_distances[0, 1, 5] == 0.0
    assert found.path["increment"][0, 4] == 0.0
    assert found.dots[0, 2, 3] == found.dots[0, 2, 4]
    assert found.cosine_errors[0, 1, 5] == 0.0


def estimated_figures(source: Path, name: str, seeds: Sequence[int] = (0,)) -> list[Figures]:
    """Return the figures of a group, a stack of one, for each seed."""
    plan, opened = make_plan(Request(str(source)))
    steps = np.array([checkpoint.step for checkpoint in plan.checkpoints], float)
    each = [plan.sketched(M, seed) for seed in seeds]
    sums = [followed(sketched, read(sketched, opened))[name] for sketched in each]
    return [figures([s], Times(steps, steps), Basis((0,), len(steps))) for s in sums]


def test_figures_are_those_of_an_analysis_within_their_errors(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    """Of a really trained network, every indicator that has an error, and every pair of checkpoints."""
    source = trained["llama-bf16"]
    pipeline.analyze(str(source), store=str(tmp_path), run="exact", executor="local")
    store = pipeline.open_store(str(tmp_path))
    query = "SELECT indicator, value FROM indicators WHERE scope = 'model'"
    exact = dict(store.sql(query).fetchall())
    pairs = store.sql(
        "SELECT cosine, relative_cosine FROM similarity WHERE scope = 'model' ORDER BY i, j"
    ).fetchnumpy()
    found = estimated_figures(source, "model", range(8))
    off: dict[str, list[float]] = {}
    for each in found:
        for name, value, error in zip(
            INDICATORS, each.indicators[0], each.indicator_errors[0], strict=True
        ):
            if error > 0:
                off.setdefault(name, []).append((value - exact[name]) / error)
        upper = np.triu_indices(each.dots.shape[1], 1)
        for name, dots, errors in (
            ("cosine", each.dots, each.cosine_errors),
            ("relative_cosine", each.relative_dots, each.relative_cosine_errors),
        ):
            truth = np.full(dots.shape[1:], np.nan)
            truth[np.triu_indices(len(truth))] = np.ma.filled(pairs[name], np.nan)
            deviation = (cosines(dots)[0][upper] - truth[upper]) / errors[0][upper]
            off.setdefault(name, []).extend(deviation[np.isfinite(deviation)])
    assert {"mds", "relative_mds", "straightness", "mean_update_angle_deg", "cosine"} <= off.keys()
    for name, of_name in off.items():
        assert np.mean(np.abs(of_name) < 4) > 0.95, name
        assert np.mean(np.abs(of_name) < 1.96) > 0.7, name
