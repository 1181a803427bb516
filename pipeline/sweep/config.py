"""The configuration of a sweep, checked as a whole: all that is wrong with it is told at once.

name = "momentum"
seeds = 5              # 0 to 4; or a list of them
[fixed]                # settings of every training; what is not stated has its default
network = "mlp"
[grid]                 # what is varied: all combinations. [[grid]], repeatedly: of each, one after the other
momentum = [0.0, 0.9]
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipeline.errors import RequestError, quoted
from pipeline.planning.request import check_run_name
from pipeline.sweep.grid import Sweep, Values, as_word, combinations, run_name, size, sweep_of
from pipeline.sweep.settings import KEYS, conflicts, mistake

MOST_RUNS = 10_000
"""Of one sweep: of a second each they take three hours on one core."""

_LONGEST_FILE = 1 << 20
_LARGEST = 2**63
"""TOML's integers have 64 bits; Python would read any, and cannot print the largest."""
_TABLES = ("name", "seeds", "fixed", "grid")
_SHOWN = 20
"""Mistakes that are told: a file of another kind has thousands."""


class ConfigError(RequestError):
    """A configuration of a sweep is wrong: each mistake with its key and what is allowed.

    Correct what the messages name; `docs/sweeps.md` lists the settings.
    """

    def __init__(self, message: str, hint: str = "", mistakes: Sequence[str] = ()) -> None:
        super().__init__(message, hint)
        self.mistakes = tuple(mistakes)


def read_sweep(config: str) -> Sweep:
    """Return the sweep that a file states.

    Raises:
        ConfigError: it cannot be carried out; nothing was written.
    """
    where = quoted(config)
    try:
        with Path(config).open("rb") as file:
            data = file.read(_LONGEST_FILE + 1)
    except (OSError, ValueError) as error:  # a NUL in its name
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{where}: {why}", "name a TOML file") from None
    if len(data) > _LONGEST_FILE:
        raise ConfigError(f"{where}: expected at most 1 MiB")
    try:
        content = tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: expected UTF-8") from None
    except (ValueError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"{where}: not valid TOML: {quoted(why)}") from None
    return checked(content, where)


def checked(content: Mapping[str, Any], where: str) -> Sweep:
    """Return the sweep that a configuration states.

    Args:
        where: the file, for people.

    Raises:
        ConfigError: with all that is wrong.
    """
    name, seeds, fixed, grids, wrong = _parts(content)
    if not wrong:
        count = size(grids) * len(seeds)
        if count > MOST_RUNS:
            wrong = [
                f"{count:,} runs ({size(grids):,} combinations, {len(seeds):,} seeds):"
                f" expected at most {MOST_RUNS:,}"
            ]
        else:
            wrong = [*_together(name, seeds, fixed, grids)]
    if wrong:
        more = [f"and {len(wrong) - _SHOWN:,} more"] if len(wrong) > _SHOWN else []
        told = [f"{where}: {each}" for each in wrong[:_SHOWN] + more]
        raise ConfigError("; ".join([told[0], *wrong[1:_SHOWN], *more]), mistakes=told)
    return sweep_of(name, seeds, fixed, grids)


def _parts(
    content: Mapping[str, Any],
) -> tuple[str, Sequence[int], Mapping[str, Any], Sequence[Values], list[str]]:
    """Return what the file states, and what is wrong with each part by itself."""
    wrong: list[str] = []
    for key in content:
        if key not in _TABLES:
            near = get_close_matches(key, _TABLES, 1)
            setting = " (a setting: it stands in [fixed] or [grid])" if key in KEYS else ""
            meant = f" (is {near[0]} meant?)" if near and not setting else setting
            wrong.append(f"{quoted(key)}: not known{meant}; expected {', '.join(_TABLES)}")
    name, seeds = content.get("name"), content.get("seeds")
    wrong += [*_wrong_name(name), *_wrong_seeds(seeds)]
    fixed, grids = content.get("fixed", {}), content.get("grid", {})
    wrong += _wrong_fixed(fixed)
    grids = grids if isinstance(grids, list) else [grids]
    for grid in grids:
        wrong += _wrong_grid(grid, fixed if isinstance(fixed, dict) else {})
    if wrong:
        return "", [], {}, [], wrong
    assert isinstance(name, str)
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds or ())
    plain = [
        {key: [KEYS[key].allowed.plain(each) for each in values] for key, values in grid.items()}
        for grid in grids
    ]
    return name, numbers, fixed, plain, []


def _wrong_name(name: Any) -> Iterator[str]:
    expected = "name: expected letters, digits, '.', '_' and '-', with which names of runs begin"
    if name is None:
        yield f"{expected}, found none"
        return
    try:
        if not isinstance(name, str):
            raise RequestError("")
        check_run_name(name)
    except RequestError:
        yield f"{expected}, found {_shown(name)}"


def _wrong_seeds(seeds: Any) -> Iterator[str]:
    expected = "seeds: expected how many, 1 or more, or a list of different ones"
    if seeds is None:
        yield f"{expected}, found none"
    elif isinstance(seeds, list):
        yield from filter(None, (_wrong_value("seed", each) for each in seeds))
        if not seeds or _repeated(seeds):
            yield f"{expected}, found {_shown(seeds)}"
    elif isinstance(seeds, bool) or not isinstance(seeds, int) or not 1 <= seeds <= MOST_RUNS:
        yield f"{expected}, found {_shown(seeds)}"


def _wrong_fixed(fixed: Any) -> Iterator[str]:
    if not isinstance(fixed, dict):
        yield f"fixed: expected a table of settings, found {_shown(fixed)}"
        return
    for key, value in fixed.items():
        if key == "seed":
            yield "[fixed] seed: expected above the tables, as seeds"
        elif isinstance(value, list) and key in KEYS:
            yield f"[fixed] {key}: expected one value, found a list; what is varied stands in [grid]"
        elif wrong := _wrong_value(key, value):
            yield f"[fixed] {wrong}"


def _wrong_grid(grid: Any, fixed: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(grid, dict):
        yield f"grid: expected a table of lists, found {_shown(grid)}"
        return
    for key, values in grid.items():
        if key == "seed":
            yield "[grid] seed: expected above the tables, as seeds"
        elif key not in KEYS:
            yield f"[grid] {mistake(key, None)}"
        elif key in fixed:
            yield f"[grid] {key}: expected once, found in [fixed] too"
        elif not isinstance(values, list) or not values:
            yield f"[grid] {key}: expected a list of values, found {_shown(values)}"
        else:
            wrong = [*filter(None, (_wrong_value(key, value) for value in values))]
            yield from (f"[grid] {each}" for each in wrong)
            if not wrong and (twice := _repeated(values)):
                yield f"[grid] {key}: expected different values, found {_shown(twice[0])} twice"


def _wrong_value(key: str, value: Any) -> str | None:
    if isinstance(value, int) and abs(value) >= _LARGEST and key in KEYS:
        return f"{key}: expected {KEYS[key].allowed}, found a number of {value.bit_length():,} bits"
    return mistake(key, value if isinstance(value, int | float) else _short(value))


def _short(value: Any) -> Any:
    """Return a value that can be shown: a table or list within may hold anything."""
    return value if isinstance(value, str) else _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "a table"
    return f"a number of {value.bit_length():,} bits" if _is_huge(value) else quoted(value)


def _is_huge(value: Any) -> bool:
    return isinstance(value, int) and abs(value) >= _LARGEST


def _repeated(values: Sequence[Any]) -> list[Any]:
    """Return the values that stand before themselves; values are few, and not all can be hashed."""
    return [value for place, value in enumerate(values) if value in values[:place]]


def _together(
    name: str, seeds: Sequence[int], fixed: Mapping[str, Any], grids: Sequence[Values]
) -> Iterator[str]:
    """Yield what is wrong with combinations of settings each of which is right."""
    told = set[str]()
    names: set[str] = set()
    for varied in combinations(grids):
        for each in conflicts({**fixed, **varied}):
            if each not in told:
                told.add(each)
                yield each
        longest = run_name(name, varied, max(seeds))
        if longest in names:
            stated = ", ".join(f"{key} {as_word(value)}" for key, value in varied.items())
            yield f"grid: expected different combinations, found twice {stated or 'the same'}"
        names.add(longest)
        try:
            check_run_name(longest)
        except RequestError:
            yield f"name: expected a shorter one: a run would be called {quoted(longest, 300)}"
            return
