"""What goes into the page: the runs of a store, by SQL over its views, as JSON holds it.

Everything that takes part is named in docs/decisions/report.md. Values of groups have eight digits,
those of straight paths five; arrays are packed (packing.py). Undefined values are null.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline.findings.finding import SEVERITIES
from pipeline.numerics.indicators import INDICATORS
from pipeline.numerics.straight_turns import SCALES
from pipeline.report.comparison import comparison
from pipeline.report.maps import KEYS, maps
from pipeline.report.packing import FloatArray, pack
from pipeline.report.parts import changes, widths, windows
from pipeline.report.paths import straight_values, walk
from pipeline.report.training import training
from pipeline.sources.base import IN_MEMORY
from pipeline.store.query import Store
from pipeline.version import VERSION

Json = dict[str, Any]
_Keys = tuple[Any, ...]

SIZE = 4_600_000
"""Characters that the groups of all runs may take: a page of 5 MB with all else."""
_LARGE = 1000
_SMALL = 160
"""Checkpoints of a map: of one that is drawn large, and of those there are many of."""
SCOPES = {
    "model": (True, _LARGE),
    "body": (True, _SMALL),
    "component": (True, _SMALL),
    "layer": (True, _SMALL),
    "layer_component": (False, _SMALL),
    "tensor": (False, _SMALL),
    "head": (False, _SMALL),
}
"""In the order in which they are taken: whether finely, and how many checkpoints a map has at most."""
COMPARED = ("model", "body", "component", "layer", "layer_component")
"""Scopes that are compared over settings, as many of them as fit."""
_MOST_COMPARED = 1_200_000
"""Characters that they may take of the page."""
_CURVES = (
    *("norm", "displacement", "increment", "path_length", "update_angle_deg"),
    *("update_angle_stderr_deg", "noise_floor_deg"),
)
_RANKS = 10
_STRAIGHT_TURNS = ", ".join(f"avg(straight_turn_{scale}_deg)" for scale in SCALES)


def content(
    store: Store, address: str, runs: Sequence[str], compared: Sequence[str] | None = None
) -> Json:
    """Return what a page about these runs shows.

    Args:
        address: of the store, as its user wrote it.
        runs: which are shown one by one.
        compared: whose indicators are compared over settings; default: the same.
    """
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    over_settings = _over_settings(store, runs if compared is None else compared)
    size = (SIZE - len(json.dumps(over_settings))) // max(1, len(runs))
    return {
        "version": VERSION,
        "made": made,
        "store": address,
        "indicators": list(INDICATORS),
        "meanings": dict(
            store.sql("SELECT name, meaning FROM glossary WHERE kind = 'indicator'").fetchall()
        ),
        "not_shown": len(runs if compared is None else compared) - len(runs),
        "comparison": over_settings,
        "runs": [
            _run(alone, address, run, size) | {"training": training(alone, run, len(runs))}
            for run in runs
            for alone in [Store(store.path, only=run)]  # in 1 s; among the files of 80 runs, 3 s
        ],
    }


def _over_settings(store: Store, runs: Sequence[str]) -> Json | None:
    """Return indicators for each combination of settings, null where the runs differ in none.

    Of each group, by `INDICATORS`: mean, standard error, null value and seeds of each combination.
    """
    compared = comparison(store, runs)
    if compared is None:
        return None
    groups: list[Json] = []
    left = _MOST_COMPARED
    for scope in COMPARED:
        by_keys: dict[_Keys, Json] = {}
        for (keys, indicator), figure in compared.of(store, scope).items():
            if indicator in INDICATORS:
                by_keys.setdefault(keys, {})[indicator] = [
                    [_short(value, digits) for value in values.tolist()]
                    for values, digits in (
                        (figure.mean, 6), (figure.stderr, 3), (figure.null_value, 5), (figure.seeds, 3),
                    )
                ]  # fmt: skip
        shown = [
            _named(scope, keys) | {"figures": [figures.get(name) for name in INDICATORS]}
            for keys, figures in by_keys.items()
        ]
        left -= len(json.dumps(shown))
        if left < 0 and groups:
            break
        groups += shown
    return {
        "settings": compared.names,
        "following": compared.following,
        "combinations": compared.combinations,
        "lines": [compared.lines(at) for at in range(len(compared.names))],
        "runs": compared.runs,
        "groups": groups,
    }


def _named(scope: str, keys: _Keys) -> Json:
    """Return what tells a group from the others: its scope and the keys that it has."""
    return {
        "scope": scope,
        **{name: key for name, key in zip(KEYS, keys, strict=True) if key is not None},
    }


def _run(store: Store, address: str, run: str, size: int) -> Json:
    facts = _records(
        store,
        "SELECT source, strftime(created_at AT TIME ZONE 'UTC', '%Y-%m-%d %H:%M UTC') AS created_at,"
        " version, checkpoints, tensors, parameters, fraction, bytes_total, bytes_read, seconds,"
        " device, complete, coalesce(followed, false) AS followed, settings, selection, statistics"
        " FROM attempts WHERE run = ?",
        [run],
    )[0]
    checkpoints = _columns(
        store,
        "SELECT name, source, commit, step, elapsed, tokens, dtype FROM checkpoints"
        " WHERE run = ? ORDER BY k",
        [run],
    )
    findings = _records(
        store,
        "SELECT severity, kind, k, tensor, message FROM findings WHERE run = ?"
        " ORDER BY list_position(?, severity), kind, k NULLS LAST, message",
        [run, list(SEVERITIES)],
    )
    facts["settings"] = settings_of(facts["settings"])
    facts["widths"] = widths(store, run)
    groups, left_out = _groups(store, run, facts, checkpoints, size)
    selection, statistics = facts.pop("selection"), facts.pop("statistics")
    several = list(dict.fromkeys(checkpoints["source"]))
    sources = several if len(several) > 1 else [facts["source"]]
    return {
        "run": run,
        **facts,
        "command": command(
            address, run, sources, selection, statistics, followed=facts["followed"]
        ),
        "checkpoint": checkpoints,
        "findings": findings,
        "changes": changes(store, run),
        "groups": groups,
        "left_out": left_out,
    }


def settings_of(text: str | None) -> Json | None:
    """Return hyperparameters as an object; what is none is not shown."""
    try:
        settings = json.loads(text or "null", parse_constant=str)
    except ValueError:
        return None
    return settings if isinstance(settings, dict) else None


def command(
    address: str,
    run: str,
    sources: Sequence[str],
    selection: str | None,
    statistics: Sequence[str] | None,
    *,
    followed: bool = False,
) -> str:
    """Return the command that makes a run, as a shell takes it, or the call, in Python.

    Args:
        sources: several of a joint run.
        selection: as the store has it, JSON of what is not the default.
    """
    chosen: Json = json.loads(selection or "{}")
    if str(chosen.get("source")).startswith(IN_MEMORY):
        return f"pipeline.follow.Sketcher(model, {address!r}, run={run!r})"
    verb = "follow" if followed else "analyze"
    words = ["hallmarks", verb, *sources, "--store", address, "--run", run]
    if len(sources) > 1:
        words.append("--joint")
    for name in ("revisions", "weights", "include", "exclude"):
        for pattern in chosen.get(name, ()):
            words += [f"--{name}", pattern]
    for name in ("names", "seeds", "steps", "layout", "state"):
        if name in chosen:
            words += [f"--{name}", chosen[name]]
    if chosen.get("by_head"):
        words.append("--by-head")
    for part in chosen.get("sample", "").split(", "):  # "budget 20,000,000, seed 0"
        name, _, value = part.partition(" ")
        words += [f"--{name}", value.replace(",", "")] if value else []
    if statistics and not followed:  # whose are not chosen
        words += ["--statistics", ",".join(statistics)]
    return shlex.join(words)


def _groups(
    store: Store, run: str, facts: Json, checkpoints: Json, size: int
) -> tuple[list[Json], list[Json]]:
    """Return the groups of all scopes that fit, and the scopes that do not."""
    taken: list[Json] = []
    left_out: list[Json] = []
    counts = dict(
        store.sql(
            "SELECT scope, count(*) FROM groups WHERE run = ? GROUP BY scope", [run]
        ).fetchall()
    )
    for scope, (fine, most) in SCOPES.items():
        if scope not in counts:
            continue
        groups, length = _scope(
            store, run, scope, facts, checkpoints, fine, most, counts[scope], size
        )
        if groups is None:
            left_out.append({"scope": scope, "groups": counts[scope], "size": length})
        else:
            taken += groups
            size -= length
    return taken, left_out


def _scope(
    store: Store,
    run: str,
    scope: str,
    facts: Json,
    checkpoints: Json,
    fine: bool,
    most: int,
    count: int,
    size: int,
) -> tuple[list[Json] | None, int]:
    """Return the groups of a scope, None if they do not fit, and the characters that they take."""
    sampled = facts["fraction"] < 1 or facts["followed"]
    curves: dict[_Keys, Json] | None = None
    groups: list[Json] = []
    total = 0
    drawn = maps(
        store,
        run,
        scope,
        count=len(checkpoints["source"]),
        sampled=sampled,
        fine=fine,
        most=most,
    )
    for keys, packed in drawn:
        if scope != "model" and not groups:
            expected = count * (len(json.dumps(packed)) + _FIGURES_SIZE)
            if expected > size:
                return None, expected
        if curves is None:
            curves = _figures(store, run, scope, checkpoints, fine)
            if fine and facts["widths"]:
                parts = (facts["widths"][0], len(checkpoints["source"]), packed["every"])
                for each, shown in windows(store, run, scope, *parts).items():
                    curves[each]["windows"] = shown
        group = {**_named(scope, keys), "maps": packed, **curves[keys]}
        groups.append(group)
        total += len(json.dumps(group))
    return sorted(groups, key=_order), total


_FIGURES_SIZE = 3000
"""Characters of a group's indicators and curves, about."""


def _order(group: Json) -> tuple[Any, ...]:
    """In the order of depth; numbers before names where some have none."""
    return tuple((key in group, group.get(key, 0)) for key in KEYS)


def _figures(
    store: Store, run: str, scope: str, checkpoints: Json, fine: bool
) -> dict[_Keys, Json]:
    """Return what beside maps is shown of each group of a scope, by its keys."""
    path = store.table(
        f"SELECT {', '.join(KEYS)},"
        + ", ".join(f"list({name} ORDER BY k) AS {name}" for name in _CURVES)
        + f", [{_STRAIGHT_TURNS}] AS straight_turns"
        + " FROM path WHERE run = ? AND scope = ? GROUP BY ALL",
        [run, scope],
    ).to_pylist()
    figures: dict[_Keys, Json] = {}
    for row in path:
        keys = tuple(row[key] for key in KEYS)
        curves = {name: np.array(row[name], float) for name in _CURVES}
        straight = _straight(curves, checkpoints)
        figures[keys] = {
            "curves": {
                name: pack(values, 4 if fine else 2)
                for name, values in curves.items()
                if name != "update_angle_stderr_deg" or np.any(values > 0)
            },
            "straight": [_short(straight.get(name), 5) for name in INDICATORS],
            "straight_turns": [_short(value, 5) for value in row["straight_turns"]],
        }
        if fine:
            figures[keys] |= _walk(curves["increment"], checkpoints)
    _add_indicators(store, run, scope, figures)
    _add_remaining(store, run, scope, figures)
    if fine:
        _add_components(store, run, scope, figures)
    return figures


def _straight(curves: dict[str, FloatArray], checkpoints: Json) -> dict[str, float]:
    if _several(checkpoints):
        return {}
    elapsed, steps = (np.array(checkpoints[name], float) for name in ("elapsed", "step"))
    return straight_values(curves["norm"], curves["increment"], elapsed, steps)


def _walk(increments: FloatArray, checkpoints: Json) -> Json:
    """Return the spectrum and the coordinates of a random walk with these steps."""
    if _several(checkpoints) or not np.isfinite(increments[1:]).all() or not increments[1:].any():
        return {}
    shares, coordinates = walk(increments[1:], _RANKS)
    return {
        "walk": {
            "shares": list(map(_short, shares.tolist())),
            "pc1": pack(coordinates[:, 0], 2),
            "pc2": pack(coordinates[:, 1], 2),
        }
    }


def _several(checkpoints: Json) -> bool:
    return len(set(checkpoints["source"])) > 1


def _add_indicators(store: Store, run: str, scope: str, figures: dict[_Keys, Json]) -> None:
    """Add value, standard error, null value and whether they differ: a list each, by `INDICATORS`."""
    columns = ("value", "stderr", "null_value", "differs_from_null")
    place = "list_position(?, indicator)"
    for row in store.table(
        f"SELECT {', '.join(KEYS)}, list(indicator ORDER BY {place}) AS indicator,"
        + ", ".join(f"list({name} ORDER BY {place}) AS {name}" for name in columns)
        + " FROM indicators WHERE run = ? AND scope = ? AND list_contains(?, indicator) GROUP BY ALL",
        [*[list(INDICATORS)] * 5, run, scope, list(INDICATORS)],
    ).to_pylist():
        by_name = {
            name: [_short(row[column][at]) for column in columns]
            for at, name in enumerate(row["indicator"])
        }
        rows = [by_name.get(name, [None] * len(columns)) for name in INDICATORS]
        keys = tuple(row[key] for key in KEYS)
        figures[keys] |= dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))


def _add_remaining(store: Store, run: str, scope: str, figures: dict[_Keys, Json]) -> None:
    """Add what was left of the way when its direction was final."""
    for *keys, remaining in store.sql(
        f"SELECT {', '.join(KEYS)}, remaining FROM redundancy WHERE run = ? AND scope = ?",
        [run, scope],
    ).fetchall():
        figures[tuple(keys)]["remaining"] = _short(remaining, 5)


def _add_components(store: Store, run: str, scope: str, figures: dict[_Keys, Json]) -> None:
    """Add the largest shares of the centered spectrum, and the first two coordinates."""
    keys = ", ".join(KEYS)
    for row in store.table(
        f"SELECT {keys}, list(share ORDER BY rank) AS shares FROM spectrum WHERE run = ?"
        " AND scope = ? AND basis = 'centered' AND rank <= ? GROUP BY ALL",
        [run, scope, _RANKS],
    ).to_pylist():
        figures[tuple(row[key] for key in KEYS)]["shares"] = list(map(_short, row["shares"]))
    for row in store.table(
        f"SELECT {keys}, list(pc1 ORDER BY k) AS pc1, list(pc2 ORDER BY k) AS pc2 FROM projection"
        " WHERE run = ? AND scope = ? GROUP BY ALL",
        [run, scope],
    ).to_pylist():
        group = figures[tuple(row[key] for key in KEYS)]
        for name in ("pc1", "pc2"):
            group[name] = pack(np.array(row[name], float), 2)


def _short(value: Any, digits: int = 8) -> Any:
    """Return a number with so many digits, None where it is undefined."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _records(store: Store, query: str, parameters: list[Any]) -> list[Json]:
    return store.table(query, parameters).to_pylist()


def _columns(store: Store, query: str, parameters: list[Any]) -> Json:
    return store.table(query, parameters).to_pydict()
