"""Change points and decay starts, against the explicit weights, loop by loop."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.numerics.decay import decay_starts
from pipeline.numerics.phases import jumps
from pipeline.numerics.trajectory import Trajectory, present_increments
from tests import reference, walks
from tests.numerics.examples import EXAMPLES
from tests.numerics.test_trajectory import repeatable, trajectory_of
from tests.phases_reference import judge
from tests.reference import Matrix, Vector


def path_of(
    lengths: Vector, seed: int = 0, memory: float = 0.0, noise: float = 0.02, weights: int = 300
) -> Matrix:
    """Increments of these lengths, but for noise; each keeps a share of the direction before."""
    rng = np.random.default_rng(seed)
    directions = [rng.standard_normal(weights)]
    for _ in lengths[1:]:
        fresh = math.sqrt(1 - memory**2) * rng.standard_normal(weights)
        directions.append(memory * directions[-1] + fresh)
    scaled = lengths * np.exp(noise * rng.standard_normal(len(lengths))) / math.sqrt(weights)
    start = 10 * rng.standard_normal(weights)
    return np.cumsum([start, *(np.array(directions) * scaled[:, np.newaxis])], axis=0)


def even(weights: Matrix) -> tuple[Vector, Vector, Vector]:
    numbers = np.arange(len(weights), dtype=float)
    return 50 * numbers, 50 * numbers, numbers


def found_in(trajectory: Trajectory, *times: Vector) -> tuple[Matrix, Vector]:
    elapsed, steps, numbers = times
    changes = jumps(trajectory, elapsed, numbers)
    return changes, decay_starts(trajectory, elapsed, steps, numbers)


def assert_as_judged(changes: Vector, start: float, weights: Matrix, *times: Vector) -> None:
    expected = judge(weights, *times)
    assert not expected.doubtful
    assert set(np.flatnonzero(~np.isnan(changes)).tolist()) == expected.judged
    found = {int(k): float(changes[k]) for k in np.flatnonzero(np.nan_to_num(changes))}
    assert found == pytest.approx(expected.changes, rel=1e-6)
    assert start == pytest.approx(expected.decay_start, rel=0, nan_ok=True)


T = 40
K = np.arange(T)
LENGTHS: dict[str, Vector] = {
    "even": np.ones(T),
    "a drop": np.where(K < 20, 1.0, 0.3),
    "a small drop": np.where(K < 20, 1.0, 0.7),
    "a rise": np.where(K < 12, 0.1, 1.0),
    "two drops": np.where(K < 15, 1.0, np.where(K < 27, 0.4, 0.1)),
    "restarts": 0.55 + 0.45 * np.cos(np.pi * (K % 10) / 10),
    "a drop at the third": np.where(K < 3, 5.0, 1.0),
    "a drop at the second": np.where(K < 2, 5.0, 1.0),
    "an outlier": np.where(K == 20, 10.0, 1.0),
    "two outliers": np.where(abs(K - 20) < 1, 10.0, 1.0),
    "a bend": np.exp(-0.2 * np.maximum(0, K - 20)),
    "power": (K + 1.0) ** -0.7,
    "cosine": 0.01 + 0.5 * (1 + np.cos(np.pi * K / T)),
    "linear": 1.0 - 0.95 * K / T,
    "warm-up": np.minimum(1, (K + 1) / 6),
    "decay": np.minimum(1, 0.05 + 0.95 * (T - K) / 12),
    "decay after warm-up": np.minimum((K + 1) / 6, 0.05 + 0.95 * np.minimum(1, (T - K) / 12)),
    "decay after a drop": np.minimum(1, (T - K) / 10) * np.where(K < 12, 4.0, 1.0),
    "decay of four": np.minimum(1, (T - K) / 4),
}


@pytest.mark.parametrize("memory", [0.0, 0.7])
@pytest.mark.parametrize("name", LENGTHS)
def test_against_the_weights(name: str, memory: float) -> None:
    weights = path_of(LENGTHS[name], memory=memory)
    (changes,), (start,) = found_in(trajectory_of(weights), *even(weights))
    assert_as_judged(changes, start, weights, *even(weights))


def test_what_is_there_is_seen() -> None:
    """The table above holds some of everything: what a reading of the reference alone would not show."""

    def seen(name: str) -> tuple[list[int], list[int], float]:
        weights = path_of(LENGTHS[name])
        (changes,), (start,) = found_in(trajectory_of(weights), *even(weights))
        return *(np.flatnonzero(side).tolist() for side in (changes > 0, changes < 0)), start

    for name in ("even", "an outlier", "a bend", "power", "cosine", "linear", "warm-up"):
        rises, falls, start = seen(name)
        assert (rises, falls) == ([], []) and math.isnan(start), name
    assert seen("a drop")[:2] == ([], [20])
    assert seen("a rise")[:2] == ([12], [])
    assert seen("two drops")[:2] == ([], [15, 27])
    assert seen("restarts")[:2] == ([10, 20, 30], [])
    assert seen("a drop at the third")[:2] == ([], [3])
    assert seen("a drop at the second")[:2] == ([], [])
    for name in ("decay", "decay after warm-up"):
        assert seen(name)[2] / 50 == pytest.approx(T - 12, abs=2), name
    assert seen("decay after a drop")[1] == [12]
    assert seen("decay after a drop")[2] / 50 == pytest.approx(T - 10, abs=2)


def test_a_small_jump_counts_where_directions_change() -> None:
    drop = np.where(K < 20, 1.0, 0.6)
    weights = path_of(drop)
    turned = path_of(drop, memory=0.9)
    turned[21:] = turned[20] + (weights[21:] - weights[20])
    for rows, expected in ((weights, []), (turned, [20])):
        (changes,), _ = found_in(trajectory_of(rows), *even(rows))
        assert np.flatnonzero(np.nan_to_num(changes)).tolist() == expected
        assert_as_judged(changes, math.nan, rows, *even(rows))


@pytest.mark.parametrize("name", EXAMPLES)
def test_odd_paths(name: str) -> None:
    weights = EXAMPLES[name]()
    (changes,), (start,) = found_in(trajectory_of(weights), *even(weights))
    assert_as_judged(changes, start, weights, *even(weights))


def repeated(weights: Matrix, places: list[int]) -> Matrix:
    """Each of these checkpoints stored with the values of the one before."""
    rows = weights.copy()
    for k in places:
        rows[k:] -= rows[k] - rows[k - 1]
    rows[places] = rows[[k - 1 for k in places]]
    return rows


def uneven(weights: Matrix, times: Callable[[Vector], Vector]) -> tuple[Vector, Vector, Vector]:
    numbers = np.arange(len(weights), dtype=float)
    return times(numbers), times(numbers), numbers


SCHEDULES: dict[str, Callable[[Vector], Vector]] = {
    "unknown": lambda k: np.full(k.size, np.nan),
    "one unknown": lambda k: np.where(k == 3, np.nan, 10 * k),
    "logarithmic": lambda k: 2.0**k,
    "slowly growing": lambda k: k * (1 + 0.002 * k),
    "logarithmic, then even": lambda k: np.where(k < 10, 2.0**k, 512.0 + 512 * (k - 9)),
    "one apart": lambda k: 10 * k + 10 * (k > 25),
    "other spacing from the change on": lambda k: np.where(k <= 20, 10 * k, 200 + 20 * (k - 20)),
    "all at one time": lambda k: 0 * k,
    "backwards": lambda k: -k,
    "odd by half a per cent": lambda k: 1000 * k + 5 * (k % 2),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["a drop", "decay", "restarts"])
def test_schedules(name: str, schedule: str) -> None:
    weights = path_of(LENGTHS[name])
    times = uneven(weights, SCHEDULES[schedule])
    (changes,), (start,) = found_in(trajectory_of(weights), *times)
    assert_as_judged(changes, start, weights, *times)
    if schedule in ("logarithmic", "all at one time", "backwards"):
        assert np.isnan(changes).all() and np.isnan(start)


@pytest.mark.parametrize("places", [[5], [20], [21], [20, 21, 22], [1, 2, 39, 40], [*range(1, 36)]])
@pytest.mark.parametrize("name", ["a drop", "decay"])
def test_increments_of_zero_are_left_out(name: str, places: list[int]) -> None:
    weights = repeated(path_of(LENGTHS[name]), places)
    (changes,), (start,) = found_in(trajectory_of(weights), *even(weights))
    assert_as_judged(changes, start, weights, *even(weights))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("gone", [[0], [1, 2], [20], [30], [7, 21, 40]])
def test_absent_checkpoints(gone: list[int], known: bool) -> None:
    """The increment past one takes the time of two: it ends a stretch."""
    weights = path_of(LENGTHS["a drop"])
    absent = np.isin(np.arange(T + 1), gone)
    increments = present_increments(reference.increment_gram(weights)[np.newaxis], absent)
    labels = reference.labels(weights)[np.newaxis, ~absent]
    elapsed, steps, numbers = (values[~absent] for values in even(weights))
    times = (elapsed if known else elapsed * math.nan, steps, numbers)
    (changes,), (start,) = found_in(Trajectory.from_increments(increments, labels), *times)
    assert_as_judged(changes, start, weights[~absent], *times)


@pytest.mark.parametrize("memory", walks.MEMORIES)
@pytest.mark.parametrize("lengths", walks.LENGTHS)
def test_nothing_happens_in_random_walks(lengths: str, memory: float) -> None:
    """1,080 of them; of 14,400 none shows a change, of those that fall linearly over 20 increments 2 % a decay
    (benchmarks/results/phases.md)."""
    decays = 0
    for seed, (increments, weights) in enumerate(((20, 100), (40, 100), (60, 300))):
        changes, starts = walks.judged(20, increments, memory, lengths, weights, seed)
        assert not np.nan_to_num(changes).any()
        decays += np.count_nonzero(np.isfinite(starts))
    assert decays <= 4


def test_a_step_that_is_unknown_is_said_by_its_number() -> None:
    weights = path_of(LENGTHS["decay"])
    elapsed, _, numbers = even(weights)
    _, (start,) = found_in(trajectory_of(weights), elapsed, numbers * math.nan, numbers)
    assert start == pytest.approx(T - 12, abs=2)


def test_a_stack_gives_the_bits_of_each_alone() -> None:
    paths = [path_of(lengths, seed=seed) for seed in (0, 1) for lengths in LENGTHS.values()]
    paths += [repeated(paths[1], [20]), repeated(paths[2], [20]), repeated(paths[0], [3, 9])]
    changes, starts = found_in(trajectory_of(*paths), *even(paths[0]))
    for weights, of_stack, start in zip(paths, changes, starts, strict=True):
        (alone,), (start_alone,) = found_in(trajectory_of(weights), *even(weights))
        assert np.array_equal(alone, of_stack, equal_nan=True)
        assert np.array_equal(start_alone, start, equal_nan=True)


@settings(repeatable, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(1, 15), st.sampled_from([0.05, 0.4, 1.0, 3.0])), max_size=4),
    st.integers(0, 12),
    st.sampled_from([0.0, 0.5, 0.95]),
    st.sampled_from([1e-3, 0.02, 0.2]),
    st.integers(0, 99),
)
def test_made_up_phases(
    parts: list[tuple[int, float]], decay: int, memory: float, noise: float, seed: int
) -> None:
    lengths = np.array([size for count, size in parts for _ in range(count)] or [1.0])
    lengths *= np.minimum(1.0, np.arange(len(lengths), 0, -1) / (decay + 1))
    weights = path_of(lengths, seed, memory, noise)
    assume(not judge(weights, *even(weights)).doubtful)
    (changes,), (start,) = found_in(trajectory_of(weights), *even(weights))
    assert_as_judged(changes, start, weights, *even(weights))
