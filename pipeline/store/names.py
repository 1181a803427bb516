"""Whose a run's name is: the source and selection that the run of that name was made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RequestError, quoted
from pipeline.planning.options import Windows
from pipeline.planning.plan import Plan
from pipeline.store.attempts import counting, row_path
from pipeline.store.folder import Folder
from pipeline.training.settings import Settings, of_text


def refuse_to_replace(folder: Folder, plans: Sequence[Plan]) -> None:
    """Refuse plans of which one would replace a run that was made from something else.

    A source that has grown is the same. An attempt that has left no row of `runs`, not even an
    estimate, has nothing to lose but tiles, and is not asked; nor is a row that nobody can read.

    Raises:
        RequestError: the run of that name is of another source or selection.
    """
    for plan in plans:
        row = _row(folder, plan.run)
        if row is not None and row["plan"] != plan.digest:
            _refuse_another(plan.run, row, plan.selection)


def refuse_to_follow(folder: Folder, run: str, selection: str) -> None:
    """Refuse to write estimates in place of exact figures, or of a run of something else.

    Args:
        selection: which source and which of its weights are to be followed, as JSON.

    Raises:
        RequestError: the run of that name is one of the two.
    """
    row = _row(folder, run, None)
    if row is None:
        return
    _refuse_another(run, row, selection)
    if row["final"] and not row.get("followed"):
        raise RequestError(
            f"run {run} of this store was made by analyze: its figures are exact, and following would"
            " put estimates in their place",
            "keep both with --run NAME, or replace it with --replace; analyze reads what is new, too",
        )


def _refuse_another(run: str, row: Mapping[str, Any], selection: str) -> None:
    stored, asked = _selection(row["selection"]), _selection(selection)
    if different := "; ".join(_differences(stored, asked)):
        raise RequestError(
            f"run {run} of this store was made from something else: {different}",
            "keep both with --run NAME, or replace that one with --replace",
        )


def stored_statistics(folder: Folder, plan: Plan) -> tuple[str, ...]:
    """Return the statistics on request that the store has of this very plan, if it has the run."""
    row = _row(folder, plan.run, ("plan", "statistics")) or {}
    names = row.get("statistics") or ()
    stored = replace(plan, statistics_asked=()).having(names)
    return tuple(names) if row.get("plan") == stored.digest else ()


def stored_spectra(folder: Folder, plan: Plan) -> int:
    """Return of how many checkpoints the store has spectra, of what this plan reads."""
    row = _row(folder, plan.run, ("plan", "spectra")) or {}
    same = str(row.get("plan", "")).partition("-")[0] == plan.content
    count = row.get("spectra")
    return count if same and isinstance(count, int) and count > 1 else 0


def stored_windows(folder: Folder, plan: Plan) -> Windows | None:
    """Return the windows that the store has of this very plan, if it has the run."""
    row = _row(folder, plan.run, ("plan", "windows")) or {}
    try:
        return Windows.of(row["windows"]) if row.get("plan") == plan.digest else None
    except (TypeError, ValueError):  # what somebody else has written
        return None


def stored_settings(folder: Folder, run: str) -> tuple[Settings, bool] | None:
    """Return the settings of a run, and whether its figures are final and of all its tiles; None if the
    store has no such run."""
    row = _row(folder, run, ("settings", "final", "complete"))
    return None if row is None else (of_text(row["settings"]), row["final"] and row["complete"])


def _row(
    folder: Folder, run: str, columns: Sequence[str] | None = ("plan", "selection")
) -> dict[str, Any] | None:
    """Return a run's row, if there is one that can be read; of the other runs nothing is asked."""
    attempt = counting(folder, run)
    data = folder.read(row_path(run, attempt)) if attempt else None
    try:
        return pq.read_table(
            pa.BufferReader(data or b""), columns=columns and list(columns)
        ).to_pylist()[0]
    except (pa.ArrowException, OSError, LookupError):
        return None


def _selection(text: str | None) -> Mapping[str, Any]:
    """Return what a selection states: nothing, if a row holds something else than was written."""
    try:
        selection = json.loads(text or "")
    except (ValueError, RecursionError):
        return {}
    return selection if isinstance(selection, dict) else {}


def _differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    """Yield in what two selections differ, if something of the stored one would be lost."""
    for name in sorted(stored.keys() | asked.keys(), key=lambda name: (name != "source", name)):
        more = name not in asked if name == "sample" else name == "by_head" and name in asked
        if stored.get(name) != asked.get(name) and not more:
            shown = name if name.isidentifier() else quoted(name)
            yield f"{shown} {_shown(stored.get(name))}, now {_shown(asked.get(name))}"


def _shown(value: Any) -> str:
    return "not given" if value is None else quoted(value)
