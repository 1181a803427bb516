"""How much each checkpoint counts in a combination: from words or a file to numbers that add up to 1.

The words are those of the function `average_weights` of the views.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RequestError, quoted
from pipeline.planning.options import text
from pipeline.planning.select import Selected

_LONGEST_FILE = 1 << 20
_OFF_AT_MOST = 1e-6
"""How far a sum may be from 1: weights are written with a few digits. It is divided out."""
_FORMS = "last:M, ema:DECAY, warmdown:M or a .csv file with the columns weight and name, step or k"

Stated = str | os.PathLike[str] | Sequence[float]


def weights_of(stated: Any, checkpoints: Sequence[Selected]) -> NDArray[np.float64]:
    """Return (N,) the weight of each checkpoint; they add up to 1.

    `last:M`: the mean of the last M. `ema:DECAY`: DECAY times as much with each checkpoint further
    back. `warmdown:M`: what a linear fall of the learning rate to 0 over the last M increments would
    have made of them: an increment counts with the weights of all checkpoints from it on
    (arXiv 2507.17634, theorem of the merged checkpoint), so that a rate averaged over each increment's
    time gives each checkpoint half the time between its neighbours.

    Args:
        stated: words, the path of a file, or a number for each checkpoint.

    Raises:
        RequestError: it is none of these, or does not add up to 1.
    """
    if not isinstance(stated, str | os.PathLike):
        numbers = _numbers(stated, len(checkpoints))
    else:
        words = text("--weights", stated)
        kind, separator, number = words.partition(":")
        by_name = {"last": _last, "ema": _ema, "warmdown": _warmdown}
        if separator and kind in by_name:
            numbers = by_name[kind](number, checkpoints)
        else:
            numbers = _of_file(words, checkpoints)
    total = math.fsum(numbers)
    if abs(total - 1) > _OFF_AT_MOST:
        raise RequestError(f"--weights: expected weights that add up to 1, found {total:.9g}")
    return numbers / total


def _numbers(stated: Any, count: int) -> NDArray[np.float64]:
    try:
        numbers = np.array([float(each) for each in stated])
    except (TypeError, ValueError, OverflowError):
        raise RequestError(f"--weights: expected {_FORMS}, found {quoted(stated)}") from None
    if len(numbers) != count:
        raise RequestError(
            f"--weights: expected {count} weights, one for each checkpoint, found {len(numbers)}"
        )
    if not np.isfinite(numbers).all():
        raise RequestError("--weights: expected numbers, found NaN or infinity")
    return numbers


def _whole(kind: str, number: str, most: int) -> int:
    try:
        value = int(number)
    except ValueError:
        value = 0
    if not 1 <= value <= most:
        words = quoted(f"{kind}:{number}")
        raise RequestError(f"--weights: expected {kind}:M, M from 1 to {most}, found {words}")
    return value


def _last(number: str, checkpoints: Sequence[Selected]) -> NDArray[np.float64]:
    count = _whole("last", number, len(checkpoints))
    numbers = np.zeros(len(checkpoints))
    numbers[-count:] = 1 / count
    return numbers


def _ema(number: str, checkpoints: Sequence[Selected]) -> NDArray[np.float64]:
    try:
        decay = float(number)
    except ValueError:
        decay = math.nan
    if not 0 <= decay < 1:
        words = quoted(f"ema:{number}")
        raise RequestError(f"--weights: expected ema:DECAY, from 0 to below 1, found {words}")
    numbers = decay ** np.arange(len(checkpoints) - 1.0, -1.0, -1.0)
    return numbers / numbers.sum()


def _warmdown(number: str, checkpoints: Sequence[Selected]) -> NDArray[np.float64]:
    count = _whole("warmdown", number, len(checkpoints) - 1)
    times = np.array([math.nan if c.elapsed is None else c.elapsed for c in checkpoints])
    if np.isnan(times).any():
        times = np.arange(len(checkpoints), dtype=np.float64)
    during = times[-count - 1 :]
    numbers = np.zeros(len(checkpoints))
    numbers[-count - 1 :] = np.append(during[1:], during[-1]) - np.append(during[0], during[:-1])
    return numbers / numbers.sum()


def _of_file(name: str, checkpoints: Sequence[Selected]) -> NDArray[np.float64]:
    """Return the weights that a table states; checkpoints that it does not name have none."""
    where = f"--weights {quoted(name)}"
    if not name.endswith(".csv"):
        raise RequestError(f"--weights: expected {_FORMS}, found {quoted(name)}")
    try:
        with Path(name).open("rb") as file:
            data = file.read(_LONGEST_FILE + 1)
        if len(data) > _LONGEST_FILE:
            raise RequestError(f"{where}: expected at most 1 MiB")
        rows = list(csv.DictReader(data.decode("utf-8-sig").splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{where}: {getattr(error, 'strerror', None) or error}") from None
    columns = [column for column in ("name", "step", "k") if rows and column in rows[0]]
    if not columns or "weight" not in rows[0]:
        raise RequestError(f"{where}: expected the columns weight and name, step or k")
    known = {
        tuple(_told(k, each)[column] for column in columns): k for k, each in enumerate(checkpoints)
    }
    numbers, taken = np.zeros(len(checkpoints)), set[int]()
    for line, row in enumerate(rows, 2):
        given = tuple((row[column] or "").strip() for column in columns)
        k = known.get(given)
        shown = ", ".join(f"{c} {quoted(value)}" for c, value in zip(columns, given, strict=True))
        if k is None:
            raise RequestError(
                f"{where}, line {line}: no checkpoint with {shown}",
                "hallmarks plan SOURCE lists the checkpoints",
            )
        if k in taken:
            raise RequestError(f"{where}, line {line}: {shown} is there twice")
        taken.add(k)
        try:
            numbers[k] = float(row["weight"])
        except (TypeError, ValueError):
            numbers[k] = math.nan
        if not math.isfinite(numbers[k]):
            raise RequestError(
                f"{where}, line {line}: expected a number as weight, found {quoted(row['weight'])}"
            )
    return numbers


def _told(k: int, checkpoint: Selected) -> dict[str, str]:
    step = checkpoint.position.step
    name = checkpoint.candidate.name
    return {"name": name, "step": "" if step is None else str(step), "k": str(k)}
