"""Roles that a user states, in TOML: what the tables do not know, or know wrongly.

    [[role]]
    name = 'blocks\\.(?P<layer>\\d+)\\.token_mixer\\.proj_in\\.'   # searched in names
    component = "attn_qkv"
    fused = {q = 8, k = 2, v = 2}                             # rows, in these shares

`layer`, `stack` and `expert` are stated as values, or as groups of the pattern. `fused` gives what rows
follow each other, equally (a list) or by shares; `groups = 4` repeats that, `columns = true` divides
columns. The first table whose pattern is found in a name is the one that counts.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.checkpoint.components import COMPONENTS
from pipeline.checkpoint.parts import LABELS, Fused
from pipeline.checkpoint.roles import Role
from pipeline.errors import RequestError, quoted

_KEYS = ("name", "component", "layer", "stack", "expert", "fused", "groups", "columns")
_MOST = 1 << 12  # units of a fused tensor


@dataclass(frozen=True, slots=True)
class StatedRole:
    """What is stated of the tensors that a pattern is found in."""

    pattern: re.Pattern[str]
    values: tuple[tuple[str, str | int], ...]
    """Fields of a role."""
    fused: Fused | None

    def of(self, name: str, role: Role) -> Role | None:
        """Return a tensor's role as it is stated, or None where nothing is."""
        match = self.pattern.search(name)
        if match is None:
            return None
        groups: dict[str, Any] = {
            field: value if field == "stack" else int(value)
            for field, value in match.groupdict().items()
            if value is not None
        }
        return replace(role, **dict(self.values), **groups)


@dataclass(frozen=True, slots=True)
class StatedRoles:
    """All that one file states."""

    text: str
    """The file, which decides figures."""
    roles: tuple[StatedRole, ...]

    def applied(self, known: Mapping[str, Role]) -> dict[str, Role]:
        """Return the roles of all tensors.

        Raises:
            RequestError: a pattern is found in no name, or what it captures is no number.
        """
        applied = dict(known)
        unused = dict.fromkeys(self.roles)
        for name, role in known.items():
            for each in self.roles:
                try:
                    stated = each.of(name, role)
                except ValueError:
                    raise RequestError(
                        f"--roles: {quoted(each.pattern.pattern)} captures no number in {quoted(name)}",
                        r"groups layer and expert must be digits, e.g. (?P<layer>\d{1,4})",
                    ) from None
                if stated is not None:
                    applied[name] = stated
                    unused.pop(each, None)
                    break
        for each in unused:
            raise RequestError(
                f"--roles: {quoted(each.pattern.pattern)} matches no tensor, or only such as an"
                " earlier pattern matches",
                "hallmarks plan SOURCE --json lists the names of all tensors",
            )
        return applied

    def fused(self, name: str) -> Fused | None:
        """Return how a tensor is stated to be fused."""
        return next((each.fused for each in self.roles if each.pattern.search(name)), None)


def parse(text: str) -> StatedRoles:
    """Return what a file states.

    Raises:
        RequestError: it is no TOML, or states what there is not.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RequestError(f"--roles: not valid TOML: {quoted(str(error))}") from None
    tables = document.get("role")
    if set(document) != {"role"} or not isinstance(tables, list) or not tables:
        raise RequestError(
            "--roles: expected tables [[role]] and nothing else",
            """for example [[role]] name = 'token_mixer' component = "attn_qkv", on lines of their own""",
        )
    return StatedRoles(text, tuple(_read(number, table) for number, table in enumerate(tables, 1)))


def _read(number: int, table: Any) -> StatedRole:
    def wrong(expected: str, value: Any) -> RequestError:
        return RequestError(f"--roles: table {number}: expected {expected}, found {quoted(value)}")

    if not isinstance(table, dict):
        raise wrong("a table", table)
    for key in table:
        if key not in _KEYS:
            raise wrong(f"{', '.join(_KEYS[:-1])} or {_KEYS[-1]}", key)
    pattern = _pattern(table.get("name"), wrong)
    values: list[tuple[str, str | int]] = []
    for field in ("component", "stack", "layer", "expert"):
        if field not in table:
            continue
        value = table[field]
        if field == "component" and value not in COMPONENTS:
            raise wrong(f"component one of {', '.join(COMPONENTS)}", value)
        if field == "stack" and not (isinstance(value, str) and value):
            raise wrong("stack a text", value)
        if field in ("layer", "expert") and not (type(value) is int and 0 <= value < 10**9):
            raise wrong(f"{field} a whole number", value)
        if field in pattern.groupindex:
            raise wrong(f"{field} as a value or as a group, not both", value)
        values.append((field, value))
    fused = _fused(table, wrong)
    if not values and fused is None and not pattern.groupindex:
        raise wrong("component, layer, stack, expert or fused", table)
    return StatedRole(pattern, tuple(values), fused)


def _pattern(value: Any, wrong: Any) -> re.Pattern[str]:
    if not isinstance(value, str) or not value:
        raise wrong("name, a regular expression", value)
    try:
        pattern = re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise wrong("name, a regular expression", f"{value}: {error}") from None
    for group in pattern.groupindex:
        if group not in ("layer", "stack", "expert"):
            raise wrong("groups layer, stack and expert", group)
    return pattern


def _fused(table: Mapping[str, Any], wrong: Any) -> Fused | None:
    stated, groups, columns = (
        table.get("fused"),
        table.get("groups", 1),
        table.get("columns", False),
    )
    if stated is None:
        return None
    units = dict.fromkeys(stated, 1) if isinstance(stated, list) else stated
    if not isinstance(units, dict) or len(units) < 2 or not {*units} <= {*LABELS}:
        raise wrong(f"fused of {', '.join(LABELS)}", stated)
    if len({LABELS[label] for label in units}) > 1:
        raise wrong("fused of attention or of an MLP", stated)
    if not all(type(count) is int and 0 < count <= _MOST for count in (*units.values(), groups)):
        raise wrong("shares and groups as whole numbers", stated)
    if not isinstance(columns, bool):
        raise wrong("columns true or false", columns)
    return Fused(groups, tuple(units.items()), columns)
