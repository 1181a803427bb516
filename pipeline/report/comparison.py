"""Indicators for each combination of the settings in which runs differ, over seeds.

The page and the pictures draw the same: SQL's `over_seeds`, of all runs that are shown.

Shapes: C = combinations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.report.maps import KEYS
from pipeline.report.packing import FloatArray
from pipeline.store.query import Store
from pipeline.training.settings import of_text

Keys = tuple[Any, ...]

MOST_RUNS = 8
"""That are shown one by one. Each takes a second, and what one after the other shows beyond as many, their
means over seeds say at once."""
_SEED = re.compile(r"(^|[._])seed$")
"""As `over_seeds` has it."""
_SIZES = ("checkpoints", "parameters")
"""What tells rows of the same settings apart: of such runs no mean is taken."""


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """One indicator of one group; (C,) each, NaN where no run has a value."""

    mean: FloatArray
    stderr: FloatArray
    """NaN where there is one seed."""
    null_value: FloatArray
    seeds: FloatArray


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs that differ in settings."""

    names: tuple[str, ...]
    """Of the settings in which they differ, in the order in which runs state them; of sizes besides, where the
    same settings have several."""
    following: tuple[str, ...]
    """Other numbers in which they differ, which follow from those: as steps do from the batch size."""
    combinations: tuple[tuple[Any, ...], ...]
    """(C,) what each of these settings is; None where it is not stated."""
    runs: str | None
    """As `over_seeds` takes them; None: all of the store."""
    _rows: Mapping[Keys, int] = field(repr=False)
    """Number of each combination, by what the store calls it."""

    def lines(self, axis: int) -> int:
        """Return the setting that tells lines apart over another one; that one where there is no other.

        It is the one with which most combinations are in a chart, in the fewest charts.
        """
        others = [at for at in range(len(self.names)) if at != axis]

        def drawn(line: int) -> tuple[int, int]:
            charts = self.charts(axis, line)
            return sum(map(len, charts)), -len(charts)

        return max(others, key=drawn, default=axis)

    def charts(self, axis: int, line: int) -> list[list[int]]:
        """Return the combinations of each chart over a setting: they differ in it and what tells lines apart.

        What no other combination stands beside is in none.
        """
        charts: dict[str, list[int]] = {}
        for number, values in enumerate(self.combinations):
            rest = [each for at, each in enumerate(values) if at not in (axis, line)]
            charts.setdefault(json.dumps(rest), []).append(number)
        return [
            chart
            for chart in charts.values()
            if len({as_text(self.combinations[number][axis]) for number in chart}) > 1
        ]

    def said(self, number: int, settings: Sequence[int]) -> str:
        """Return what some of its settings, by their numbers, are in a combination: `lr 0.1, width 8`."""
        values = self.combinations[number]
        return ", ".join(f"{self.names[at]} {as_text(values[at])}" for at in settings)

    def of(self, store: Store, scope: str) -> dict[tuple[Keys, str], OverSeeds]:
        """Return the indicators of the groups of a scope, by the keys of the group and the indicator."""
        table = store.table(
            f"SELECT {', '.join(KEYS)}, indicator, list([settings, checkpoints::VARCHAR, parameters::VARCHAR]) AS at,"
            " list(mean) AS mean, list(stderr) AS stderr, list(null_value) AS null_value,"
            f" list(seeds) AS seeds FROM {_macro('NULL', scope, self.runs)} GROUP BY ALL"
        )
        over_seeds: dict[tuple[Keys, str], OverSeeds] = {}
        for row in table.to_pylist():
            places = [self._rows[tuple(each)] for each in row["at"]]
            columns: list[FloatArray] = []
            for name in ("mean", "stderr", "null_value", "seeds"):
                values = np.full(len(self.combinations), np.nan)
                values[places] = np.array(row[name], float)
                columns.append(values)
            over_seeds[tuple(row[key] for key in KEYS), row["indicator"]] = OverSeeds(*columns)
        return over_seeds


def comparison(store: Store, runs: Sequence[str]) -> Comparison | None:
    """Return in which settings runs differ; None where there are no two combinations of them."""
    every = {run for (run,) in store.sql("SELECT run FROM runs").fetchall()} == set(runs)
    named = None if every else ",".join(runs)
    rows = store.sql(
        "SELECT DISTINCT settings, checkpoints::VARCHAR, parameters::VARCHAR, checkpoints, parameters"
        f" FROM {_macro('NULL', 'model', named)}"
    ).fetchall()
    if len(rows) < 2:
        return None
    stated = [of_text(settings) for settings, *_ in rows]
    sizes = [
        at
        for at in range(len(_SIZES))
        if any(
            one[0] == other[0] and one[3 + at] != other[3 + at] for one in rows for other in rows
        )
    ]
    every_name = [name for settings in stated for name in settings]
    names = sorted(dict.fromkeys(every_name), key=_order(store).index)
    columns = {name: [settings.get(name) for settings in stated] for name in names}
    columns |= {_SIZES[at]: [row[3 + at] for row in rows] for at in sizes}
    following = _following(columns)
    kept = [name for name in columns if name not in following]
    combinations = list(zip(*(columns[name] for name in kept), strict=True))
    order = sorted(range(len(rows)), key=lambda at: list(map(place, combinations[at])))
    return Comparison(
        tuple(kept),
        tuple(name for name in columns if name in following),
        tuple(combinations[at] for at in order),
        named,
        {tuple(rows[at][:3]): number for number, at in enumerate(order)},
    )


def _order(store: Store) -> list[str]:
    """Return the names of all settings, in the order in which runs state them."""
    answer = store.sql("SELECT settings FROM runs WHERE settings IS NOT NULL ORDER BY run")
    return list(dict.fromkeys(name for (text,) in answer.fetchall() for name in of_text(text)))


def _following(columns: Mapping[str, Sequence[Any]]) -> set[str]:
    """Return the settings that others determine: numbers without which the combinations are as many.

    Those with most values first: a number of weights follows from width and depth, but so does, of these
    three, the width from the others. Then those that are stated last.
    """
    texts = {name: list(map(json.dumps, values)) for name, values in columns.items()}
    numbers = [
        name for name, values in columns.items() if all(place(value)[0] != 1 for value in values)
    ]
    left = dict(texts)
    count = len(set(zip(*texts.values(), strict=True)))
    numbers.sort(key=lambda name: (len(set(texts[name])), list(texts).index(name)), reverse=True)
    for name in numbers:
        others = [values for other, values in left.items() if other != name]
        if others and len(set(zip(*others, strict=True))) == count:
            del left[name]
    return set(texts) - set(left)


def place(value: Any) -> tuple[int, float, str]:
    """Return what settings are sorted by: numbers by size before anything else, what is not stated last."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, value, ""
    return (2, 0.0, "") if value is None else (1, 0.0, as_text(value))


def as_text(value: Any) -> str:
    """Return a setting as it is read: a text without quotation marks, a number in few digits."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else json.dumps(value)


def shown_one_by_one(store: Store, runs: Sequence[str]) -> list[str]:
    """Return all runs; of more than `MOST_RUNS` as many, of different settings if there are such."""
    if len(runs) <= MOST_RUNS:
        return list(runs)
    first: dict[str, str] = {}
    for run, settings in store.sql("SELECT run, settings FROM runs ORDER BY run").fetchall():
        seedless = {k: v for k, v in of_text(settings).items() if not _SEED.search(k)}
        if run in runs:
            first.setdefault(json.dumps(seedless, sort_keys=True), run)
    chosen = list(first.values()) if len(first) > 1 else list(runs)
    count = min(len(chosen), MOST_RUNS)
    return [chosen[round(at * (len(chosen) - 1) / (count - 1))] for at in range(count)]


def _macro(indicator: str, scope: str, runs: str | None) -> str:
    chosen = "" if runs is None else f", runs := '{runs}'"  # whose names have no quotation marks
    return f"over_seeds({indicator}, scope := '{scope}'{chosen})"
