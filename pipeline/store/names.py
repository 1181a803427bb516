"""Whose a run's name is: the source and selection that the run of that name was made from."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RequestError, quoted
from pipeline.planning.plan import Plan
from pipeline.store.folder import Folder


def refuse_to_replace(folder: Folder, plans: Sequence[Plan]) -> None:
    """Refuse plans of which one would replace a run that was made from something else.

    A source that has grown is the same. An attempt that has left no row of `runs`, not even an
    estimate, has nothing to lose but tiles, and is not asked.

    Raises:
        RequestError: the run of that name is of another source or selection.
    """
    for plan in plans:
        row = _row(folder, plan.run)
        if row is None or row["plan"] == plan.digest:
            continue
        if different := "; ".join(_differences(row, plan)):
            raise RequestError(
                f"run {plan.run} of this store was made from something else: {different}",
                "keep both with --run NAME, or replace that one with --replace",
            )


def _row(folder: Folder, run: str) -> dict[str, Any] | None:
    """Return the row of `runs` that counts, as the views have it: of the greatest attempt."""
    found: list[dict[str, Any]] = []
    for path in folder.list(f"runs/run={run}"):
        # of a damaged file nothing can be read that could be lost
        with contextlib.suppress(pa.ArrowException, OSError):
            found += pq.read_table(pa.BufferReader(folder.read(path) or b"")).to_pylist()
    return max(found, key=lambda row: row["attempt"], default=None)


def _differences(row: dict[str, Any], plan: Plan) -> Iterator[str]:
    """Yield in which options the run of a row and a plan differ, if that run would be lost."""
    asked = json.loads(plan.selection)
    if row.get("selection") is None:  # written before selections were noted: its label is known
        stored, asked = {"source": row["source"]}, {"source": plan.source}
    else:
        stored = json.loads(row["selection"])
    for name in sorted(stored.keys() | asked.keys(), key=lambda name: (name != "source", name)):
        more = name not in asked if name == "sample" else name == "by_head" and name in asked
        if stored.get(name) != asked.get(name) and not more:
            yield f"{name} {_shown(stored.get(name))}, now {_shown(asked.get(name))}"


def _shown(value: Any) -> str:
    return "not given" if value is None else quoted(value)
