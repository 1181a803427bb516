"""Whose a run's name is: the source and selection that the run of that name was made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RequestError, quoted
from pipeline.planning.plan import Plan
from pipeline.store.folder import Folder

_OF_A_SAMPLE = {"fraction", "budget", "seed"}


def refuse_to_replace(folder: Folder, plans: Sequence[Plan]) -> None:
    """Refuse plans of which one would replace a run that was made from something else.

    A source that has grown is the same. An attempt that has left no row of `runs`, not even an
    estimate, has nothing to lose but tiles, and is not asked.

    Raises:
        RequestError: the run of that name is of another source or selection.
    """
    for plan in plans:
        for row in _rows(folder, plan.run):
            different = [] if row["plan"] == plan.digest else list(_differences(row, plan))
            if different:
                raise RequestError(
                    f"run {plan.run} of this store was made from something else:"
                    f" {'; '.join(different)}",
                    "keep both with --run NAME, or replace that one with --replace",
                )


def _rows(folder: Folder, run: str) -> Iterator[dict[str, Any]]:
    for path in folder.list(f"runs/run={run}"):
        try:
            rows = pq.read_table(pa.BufferReader(folder.read(path) or b"")).to_pylist()
        except (pa.ArrowException, OSError):
            continue  # damaged: nobody can read that run, and written again it is whole
        yield from ({"plan": None, "source": None, "selection": None} | row for row in rows)


def _differences(row: dict[str, Any], plan: Plan) -> Iterator[str]:
    """Yield in which options the run of a row and a plan differ, if that run would be lost."""
    asked = json.loads(plan.selection)
    if row["selection"] is None:  # written before selections were noted: its label is known
        stored, asked = {"source": row["source"]}, {"source": plan.source}
    else:
        stored = json.loads(row["selection"])
    whole = not asked.keys() & _OF_A_SAMPLE
    for name in sorted(stored.keys() | asked.keys(), key=lambda name: (name != "source", name)):
        more = (whole and name in _OF_A_SAMPLE) or (name == "by_head" and name in asked)
        if stored.get(name) != asked.get(name) and not more:
            yield f"{name} {_shown(stored.get(name))}, now {_shown(asked.get(name))}"


def _shown(value: Any) -> str:
    return "not given" if value is None else quoted(value)
