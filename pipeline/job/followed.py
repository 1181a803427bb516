"""What `follow` had estimated of a run, and how far that was off what `analyze` finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RequestError, quoted
from pipeline.planning.plan import Plan
from pipeline.store.attempts import counting
from pipeline.store.folder import Folder
from pipeline.store.query import Store
from pipeline.store.records import has_records

_PAIRS = """SELECT ci.name, cj.name, s.cosine, s.cosine_stderr, s.relative_cosine, s.relative_cosine_stderr
FROM similarity s
JOIN checkpoints ci ON ci.run = s.run AND ci.k = s.i
JOIN checkpoints cj ON cj.run = s.run AND cj.k = s.j
WHERE s.run = ? AND s.scope = 'model' AND s.i < s.j ORDER BY s.i, s.j"""
_INDICATORS = "SELECT indicator, value, stderr FROM indicators WHERE run = ? AND scope = 'model'"
_FIGURES = ("cosine", "relative_cosine")


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of a whole model, by what they are of."""

    pairs: dict[tuple[str, str], tuple[float | None, ...]]
    """Names of two checkpoints → cosine and its standard error, relative cosine and its."""
    indicators: dict[str, tuple[float | None, float | None]]
    """Value and standard error."""


@dataclass(frozen=True, slots=True)
class Estimated:
    """What was followed of one run."""

    checkpoints: tuple[str, ...]
    figures: Figures


def estimated(folder: Folder, run: str) -> Estimated | None:
    """Return what was followed; None if the run of that name is none that was."""
    if not has_records(folder, run) or not counting(folder, run):
        return None
    store = Store(folder.root, only=run)
    if (True,) not in store.sql("SELECT followed FROM runs WHERE run = ?", [run]).fetchall():
        return None
    names = store.sql("SELECT name FROM checkpoints WHERE run = ? ORDER BY k", [run]).fetchall()
    return Estimated(tuple(name for (name,) in names), _figures(store, run))


def refuse_to_lose(plan: Plan, followed: Estimated | None) -> None:
    """Refuse a plan that lacks checkpoints of which estimates are all that there is.

    Raises:
        RequestError: there are such.
    """
    names = {checkpoint.name for checkpoint in plan.checkpoints}
    gone = [] if followed is None else [n for n in followed.checkpoints if n not in names]
    if gone:
        shown = ", ".join(quoted(name, 40) for name in gone[:3]) + (", …" if len(gone) > 3 else "")
        raise RequestError(
            f"run {plan.run} of this store was followed: {len(gone)} of its checkpoints are not in"
            f" the source any more ({shown}), and their figures would be lost",
            "keep both with --run NAME, or replace it with --replace",
        )


def compared(followed: Estimated, folder: Folder, run: str) -> dict[str, Any]:
    """Return how far estimates were off what the store has now, as `analyze --json` prints it.

    For each figure the largest difference, in standard errors too, and the share of differences that
    are less than 1.96 of these.
    """
    exact = _figures(Store(folder.root, only=run), run)
    pairs = [pair for pair in followed.figures.pairs if pair in exact.pairs]
    off: dict[str, Any] = {"checkpoints": len(followed.checkpoints)}
    for number, name in enumerate(_FIGURES):
        was = _column([followed.figures.pairs[pair][2 * number] for pair in pairs])
        stderr = _column([followed.figures.pairs[pair][2 * number + 1] for pair in pairs])
        now = _column([exact.pairs[pair][2 * number] for pair in pairs])
        off[name] = _off(np.abs(was - now), stderr)
    indicators: dict[str, Any] = {}
    for name, (was, stderr) in followed.figures.indicators.items():
        now = exact.indicators.get(name, (None, None))[0]
        if was is not None and now is not None:
            indicators[name] = {"was": was, "stderr": stderr, "is": now}
    return off | {"indicators": indicators}


def _figures(store: Store, run: str) -> Figures:
    return Figures(
        {(i, j): tuple(rest) for i, j, *rest in store.sql(_PAIRS, [run]).fetchall()},
        {name: (value, error) for name, value, error in store.sql(_INDICATORS, [run]).fetchall()},
    )


def _column(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _off(
    differences: NDArray[np.float64], errors: NDArray[np.float64]
) -> dict[str, float | None] | None:
    known = ~np.isnan(differences)
    if not known.any():
        return None
    by_error = differences[known & (errors > 0)] / errors[known & (errors > 0)]
    return {
        "largest": float(differences[known].max()),
        "rms": float(np.sqrt(np.mean(differences[known] ** 2))),
        "largest_in_stderr": float(by_error.max()) if by_error.size else None,
        "within_1.96_stderr": float(np.mean(by_error < 1.96)) if by_error.size else None,
    }
