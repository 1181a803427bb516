"""Whose a run's name is: the source and selection that the run of that name was made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.errors import RequestError, quoted
from pipeline.planning.plan import Plan
from pipeline.store.contents import contents
from pipeline.store.folder import Folder


def refuse_to_replace(folder: Folder, plans: Sequence[Plan]) -> None:
    """Refuse plans of which one would replace a run that was made from something else.

    A source that has grown is the same. An attempt that has left no row of `runs`, not even an
    estimate, has nothing to lose but tiles, and is not asked; nor is a row that nobody can read.

    Raises:
        RequestError: the run of that name is of another source or selection.
    """
    rows = {row["run"]: row for row in contents(folder).rows.to_pylist()}
    for plan in plans:
        row = rows.get(plan.run)
        if row is None or row["plan"] == plan.digest:
            continue
        stored, asked = json.loads(row["selection"] or "{}"), json.loads(plan.selection)
        if different := "; ".join(_differences(stored, asked)):
            raise RequestError(
                f"run {plan.run} of this store was made from something else: {different}",
                "keep both with --run NAME, or replace that one with --replace",
            )


def _differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    """Yield in what two selections differ, if something of the stored one would be lost."""
    for name in sorted(stored.keys() | asked.keys(), key=lambda name: (name != "source", name)):
        more = name not in asked if name == "sample" else name == "by_head" and name in asked
        if stored.get(name) != asked.get(name) and not more:
            yield f"{name} {_shown(stored.get(name))}, now {_shown(asked.get(name))}"


def _shown(value: Any) -> str:
    return "not given" if value is None else quoted(value)
