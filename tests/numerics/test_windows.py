"""Parts of a path are paths of their own: against the same weights, cut out, in the slow reference."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.numerics.indicators import INDICATORS
from pipeline.numerics.trajectory import Trajectory
from pipeline.numerics.windows import When, of_sub_path, of_windows, offered
from tests import reference
from tests.numerics.examples import EXAMPLES, P, start, walk
from tests.numerics.test_indicators import assert_figures, schedule
from tests.numerics.test_trajectory import trajectory_of
from tests.reference import Matrix

CHANGING = ("walk", "copies", "oscillating", "decaying, small steps", "shrinking")


def by_name(values: Matrix) -> dict[str, float]:
    return dict(zip(INDICATORS, values.tolist(), strict=True))


def expected_of(weights: Matrix, when: When) -> tuple[dict[str, float], dict[str, float]]:
    """The indicators of a path, and of the walk with its step lengths."""
    walked = reference.orthogonal_walk(weights)
    return reference.indicators(weights, *when), reference.indicators(walked, *when)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if not name.startswith("long")])
def test_sub_paths(name: str) -> None:
    weights = EXAMPLES[name]()
    count, trajectory = len(weights), trajectory_of(weights)
    when = When(*schedule(count))
    spans = {(0, count - 1), (count // 4, count - 1), (count // 3, count // 3 + 6), (0, 5)}
    for first, last in sorted(span for span in spans if span[1] < count):
        values, nulls = of_sub_path(trajectory, when, first, last)
        if last - first + 1 < 6:
            assert np.isnan(values).all() and np.isnan(nulls).all()
        else:
            truth, null = expected_of(weights[first : last + 1], when.of(first, last - first + 1))
            assert_figures(by_name(values[0]), truth)
            assert_figures(by_name(nulls[0]), null)


@pytest.mark.parametrize("width", [5, 12, 40])
@pytest.mark.parametrize("name", CHANGING)
def test_windows(name: str, width: int) -> None:
    weights = EXAMPLES[name]()
    when = When(*schedule(40))
    values, nulls = of_windows(trajectory_of(weights), when, width, np.array([0]))
    assert values.shape == nulls.shape == (1, 41 - width, len(offered(width)))
    for first in range(0, 41 - width, 7):
        found = dict(zip(offered(width), values[0, first].tolist(), strict=True))
        walked = dict(zip(offered(width), nulls[0, first].tolist(), strict=True))
        truths = expected_of(weights[first : first + width], when.of(first, width))
        for values_of, truth in zip((found, walked), truths, strict=True):
            others = {name: float(value) for name, value in truth.items()}
            assert_figures(others | values_of, truth)


def test_what_is_offered_grows_with_the_width() -> None:
    assert len(offered(5)) == len(offered(11)) == 6 < len(offered(12)) == len(offered(99))
    assert not offered(4)
    assert set(offered(12)) <= set(INDICATORS)


def test_groups_side_by_side_are_each_alone() -> None:
    """To the bit, in whatever order they are asked for, and in however large a stack."""
    several = [EXAMPLES[name]() for name in CHANGING]
    increments = np.concatenate([reference.increment_gram(each)[np.newaxis] for each in several])
    labels = np.stack([reference.labels(each) for each in several])
    together = Trajectory.from_increments(increments, labels)
    when, groups = When(*schedule(40)), np.array([3, 0, 4, 0])
    for width in (5, 12):
        found = of_windows(together, when, width, groups)
        for row, group in enumerate(groups):
            alone = of_windows(trajectory_of(several[group]), when, width, np.array([0]))
            for values, expected in zip(found, alone, strict=True):
                np.testing.assert_array_equal(values[row], expected[0])
    found = of_sub_path(together, when, 7, 20, groups)
    everywhere = of_sub_path(together, when, 7, 20)
    for values, expected in zip(found, everywhere, strict=True):
        np.testing.assert_array_equal(values, expected[groups])


def test_a_norm_or_distance_is_the_same_in_every_part() -> None:
    whole = trajectory_of(EXAMPLES["copies"]())
    part = whole.sub_paths(np.array([0]), np.array([5]), 20)
    for name in ("dots", "squared_distances", "onward_dots"):
        inside = getattr(whole, name)[:, 5:25, 5:25]
        np.testing.assert_array_equal(getattr(part, name), inside)
    np.testing.assert_array_equal(part.increments[:, 1:, 1:], whole.increments[:, 6:25, 6:25])
    assert whole.same[0, [20, 21]].tolist() == [3, 0]
    assert part.same[0, [15, 16]].tolist() == [4, 16]  # of 9, too; of none that is in the part


def test_a_part_that_begins_with_zeros_after_a_long_way() -> None:
    """What the way there left of its norm is rounding: in the part alone it would look like a length."""
    weights = np.vstack([100 * walk(4, 0.5), np.zeros((1, P)), walk(7, 0.1, seed=3)])
    when = When(*schedule(len(weights)))
    values, nulls = of_sub_path(trajectory_of(weights), when, 4, 11)
    truth, null = expected_of(weights[4:], when.of(4, 8))
    assert np.isnan(truth["norm_ratio"])
    assert_figures(by_name(values[0]), truth)
    assert_figures(by_name(nulls[0]), null)


def test_a_change_shows_where_it_is() -> None:
    """From a walk to a straight line at checkpoint 20: windows before and after tell them apart."""
    rng = start(11)
    moves = np.vstack([rng.normal(size=(20, P)), np.tile(rng.normal(size=P), (19, 1))])
    weights = np.cumsum(np.vstack([rng.normal(size=P), moves]), axis=0)
    values, nulls = of_windows(trajectory_of(weights), When(*schedule(40)), 8, np.array([0]))
    straightness = values[0, :, offered(8).index("straightness")]
    walked = nulls[0, :, offered(8).index("straightness")]
    assert np.abs(straightness[:13] - walked[:13]).max() < 0.15
    np.testing.assert_allclose(straightness[20:], 1.0)
