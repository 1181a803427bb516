"""What trajectories show at each checkpoint: the columns of the view `path`.

Undefined values are NaN here and NULL in the view. Angles are degrees.

Shapes: G = groups in the stack, K = checkpoints that are present, N = all checkpoints of the run.

Source: docs/method.md, sections "One sufficient statistic" and "Indicators".
"""

import numpy as np

from pipeline.numerics import straight_turns
from pipeline.numerics.stack import BoolArray, FloatArray, diagonal
from pipeline.numerics.trajectory import Trajectory, angles_between, apex_angles

COLUMNS = (
    *("norm", "displacement", "increment", "path_length"),
    *("update_angle_deg", "update_angle_stderr_deg"),
    *("angle_to_first_deg", "angle_to_last_deg"),
    *("apex_angle_next_deg", "apex_angle_last_deg"),
    *straight_turns.COLUMNS,
)
"""Those of the view; the standard error comes from replicates."""

_ANGLES = ("update_angle_deg", "update_angle_stderr_deg", straight_turns.COLUMNS[0])
_ACROSS_GAP_BEFORE = ("increment", *_ANGLES)
_ACROSS_GAP_AFTER = ("apex_angle_next_deg", *_ANGLES)


def path(trajectory: Trajectory, straight: FloatArray) -> dict[str, FloatArray]:
    """Column name to (G, K) values, in the order of the view.

    Args:
        trajectory: K checkpoints of each of G groups.
        straight: (G, 2, H, K), as `straight_turns` takes it.
    """
    k = np.arange(trajectory.same.shape[1])
    increment = np.sqrt(diagonal(trajectory.increments))
    increment[:, :1] = 0.0
    path_length = np.cumsum(increment, axis=1)
    increment[:, :1] = np.nan
    return {
        "norm": np.sqrt(diagonal(trajectory.dots)),
        "displacement": np.sqrt(diagonal(trajectory.relative_dots)),
        "increment": increment,
        "path_length": path_length,
        "update_angle_deg": update_angles(trajectory),
        "angle_to_first_deg": angles_between(trajectory, np.zeros_like(k), k),
        "angle_to_last_deg": angles_between(trajectory, k, np.full_like(k, k.size - 1)),
        "apex_angle_next_deg": apex_angles_next(trajectory),
        "apex_angle_last_deg": apex_angles_last(trajectory),
        **straight_turns.straight_turns(trajectory, straight),
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
    along the chord, as the indicators do.

    Args:
        columns: Column name to (G, K) values.
        absent: (N,), false K times.
    """
    if not absent.any():
        return columns
    after_gap = np.append(False, absent[:-1])[: absent.size]
    before_gap = np.append(absent[1:], False)[: absent.size]
    spread: dict[str, FloatArray] = {}
    for name, values in columns.items():
        column = np.full((len(values), absent.size), np.nan)
        column[:, ~absent] = values
        if name in _ACROSS_GAP_BEFORE:
            column[:, after_gap] = np.nan
        if name in _ACROSS_GAP_AFTER:
            column[:, before_gap] = np.nan
        spread[name] = column
    return spread


def _undefined(trajectory: Trajectory) -> FloatArray:
    """(G, K) new columns of NaN."""
    return np.full(trajectory.same.shape, np.nan)


def _neighbouring_lengths(trajectory: Trajectory) -> FloatArray:
    """(G, K - 2) length of the increment into k times that out of it, k = 1 ... K - 2."""
    lengths = np.sqrt(diagonal(trajectory.increments))
    return lengths[:, 1:-1] * lengths[:, 2:]
