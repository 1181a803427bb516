"""What trajectories show at each checkpoint: the columns of the view `path`.

Undefined values are NaN here and NULL in the view. Angles are degrees.

Shapes: G = groups in the stack, K = checkpoints that are present, N = all checkpoints of the run.

Source: docs/method.md, sections "One sufficient statistic" and "Indicators".
"""

import numpy as np

from pipeline.numerics import straight_turns
from pipeline.numerics.balance import radial_increments
from pipeline.numerics.chord import chord_columns
from pipeline.numerics.stack import BoolArray, FloatArray, diagonal, ratio
from pipeline.numerics.trajectory import Trajectory, angles_between, apex_angles
from pipeline.numerics.turns import SCALES, turns

COLUMNS = (
    *("norm", "displacement", "increment", "path_length"),
    *("update_angle_deg", "update_angle_stderr_deg"),
    *("angle_to_first_deg", "angle_to_last_deg"),
    *("apex_angle_next_deg", "apex_angle_last_deg"),
    *(f"turn_{scale}_deg" for scale in SCALES),
    *straight_turns.COLUMNS.values(),
    *("radial_increment", "angular_speed_deg", "remaining", "along_end", "off_end"),
)
"""Those of the view; the standard error comes from replicates."""

_NEIGHBOURS = {
    **dict.fromkeys(("increment", "radial_increment", "angular_speed_deg"), (1, 0)),
    **dict.fromkeys(("update_angle_deg", "update_angle_stderr_deg"), (1, 1)),
    **{f"turn_{scale}_deg": (scale, scale) for scale in SCALES},
    **{name: (scale, scale) for scale, name in straight_turns.COLUMNS.items()},
    "apex_angle_next_deg": (0, 1),
}
"""How many checkpoints before and after k a column needs, none of which may be absent."""


def path(
    trajectory: Trajectory, elapsed: FloatArray, straight: FloatArray
) -> dict[str, FloatArray]:
    """Column name to (G, K) values, in the order of the view.

    Args:
        trajectory: K checkpoints of each of G groups.
        elapsed: (K,), training time in steps, NaN where unknown.
        straight: (G, 2, H, K), as `straight_turns` takes it.
    """
    k = np.arange(trajectory.same.shape[1])
    increment = np.sqrt(diagonal(trajectory.increments))
    increment[:, :1] = 0.0
    path_length = np.cumsum(increment, axis=1)
    update_angle, of_scales = update_angles(trajectory), turns(trajectory)
    increment[:, :1] = np.nan
    return {
        "norm": np.sqrt(diagonal(trajectory.dots)),
        "displacement": np.sqrt(diagonal(trajectory.relative_dots)),
        "increment": increment,
        "path_length": path_length,
        "update_angle_deg": update_angle,
        "angle_to_first_deg": angles_between(trajectory, np.zeros_like(k), k),
        "angle_to_last_deg": angles_between(trajectory, k, np.full_like(k, k.size - 1)),
        "apex_angle_next_deg": apex_angles_next(trajectory),
        "apex_angle_last_deg": apex_angles_last(trajectory),
        **{f"turn_{scale}_deg": angles for scale, angles in of_scales.items()},
        **straight_turns.straight_turns({1: update_angle, **of_scales}, straight),
        "radial_increment": _of_increments(radial_increments(trajectory)),
        "angular_speed_deg": _of_increments(_angular_speeds(trajectory, elapsed)),
        **chord_columns(trajectory),
    }


def update_angles(trajectory: Trajectory) -> FloatArray:
    """(G, K) angle of the increments into and out of k; NaN at both ends and beside a zero one."""
    cosine = _undefined(trajectory)
    lengths = _neighbouring_lengths(trajectory)
    between = np.diagonal(trajectory.increments, 1, 1, 2)[:, 1:]
    np.divide(between, lengths, out=cosine[:, 1:-1], where=lengths > 0)
    return np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))


def apex_angles_next(trajectory: Trajectory) -> FloatArray:
    """(G, K) angle of checkpoints k and k+1 seen from the first; NaN at both ends."""
    angles = _undefined(trajectory)
    k = np.arange(1, angles.shape[1] - 1)
    angles[:, 1:-1] = apex_angles(trajectory, k, k + 1)
    return angles


def apex_angles_last(trajectory: Trajectory) -> FloatArray:
    """(G, K) angle of checkpoint k and the last seen from the first; NaN at both ends."""
    angles = _undefined(trajectory)
    k = np.arange(1, angles.shape[1] - 1)
    angles[:, 1:-1] = apex_angles(trajectory, k, np.full_like(k, angles.shape[1] - 1))
    return angles


def with_absent(columns: dict[str, FloatArray], absent: BoolArray) -> dict[str, FloatArray]:
    """The columns of `path` for all N checkpoints, NaN at the absent ones.

    What needs an absent neighbour is NaN too: the increment after it, and the angles of
    increments and neighbouring displacements on both sides. Path lengths go on across the gap
    along the chord, as the indicators do. A turn needs all checkpoints that
    it spans.

    Args:
        columns: Column name to (G, K) values.
        absent: (N,), false K times.
    """
    if not absent.any():
        return columns
    number = np.append(0, np.cumsum(absent))
    k = np.arange(absent.size)
    spread: dict[str, FloatArray] = {}
    for name, values in columns.items():
        column = np.full((len(values), absent.size), np.nan)
        column[:, ~absent] = values
        before, after = _NEIGHBOURS.get(name, (0, 0))
        first, last = np.maximum(k - before, 0), np.minimum(k + after, absent.size - 1)
        column[:, number[last + 1] > number[first]] = np.nan
        spread[name] = column
    return spread


def _angular_speeds(trajectory: Trajectory, elapsed: FloatArray) -> FloatArray:
    """(G, K - 1) angle between neighbours over the root of the time between them, degrees."""
    k = np.arange(1, elapsed.size)
    angles = angles_between(trajectory, k - 1, k)
    return ratio(angles, np.sqrt(np.maximum(np.diff(elapsed), 0.0)))


def _of_increments(values: FloatArray) -> FloatArray:
    """(G, K) columns of values, (G, K - 1), of the increment into each checkpoint but the first."""
    return np.pad(values, ((0, 0), (1, 0)), constant_values=np.nan)


def _undefined(trajectory: Trajectory) -> FloatArray:
    """(G, K) new columns of NaN."""
    return np.full(trajectory.same.shape, np.nan)


def _neighbouring_lengths(trajectory: Trajectory) -> FloatArray:
    """(G, K - 2) length of the increment into k times that out of it, k = 1 ... K - 2."""
    lengths = np.sqrt(diagonal(trajectory.increments))
    return lengths[:, 1:-1] * lengths[:, 2:]
