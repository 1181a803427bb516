"""Where the weights lie in what a trainer has saved: a state dict among dictionaries within dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.checkpoint.pickle_machine import Record
from pipeline.checkpoint.pickles import Loaded, TensorRecord, as_tensor
from pipeline.errors import FormatError, quoted

NESTED_UNDER = ("model", "state_dict", "model_state_dict", "module")
"""Where a state dict lies among what a trainer saves."""
_MOST_NESTED = 16


def state_dict(loaded: Loaded, where: str, key: str = "") -> dict[str, TensorRecord]:
    """Return the tensors of a state dict, which may lie under one of the usual keys.

    Args:
        key: where else it lies: keys joined by dots.

    Raises:
        FormatError: there is none, or a tensor is of a class of which nothing is known.
    """
    flat = _Flat(loaded, where)
    if key:
        records = next((f for f in map(flat.tensors, _at(loaded.value, key)) if f), {})
    else:
        records = _usual(loaded.value, flat)
    if not records:
        named = f" in a pickle that names {', '.join(map(quoted, loaded.unknown))}"
        what = f" under {quoted(key)}" if key else ""
        raise FormatError(
            f"{where}: expected a state dict{what}, found no tensors"
            + (named if loaded.unknown else ""),
            _where_else(loaded.value, flat),
        )
    for name, record in records.items():
        if record.unknown:
            raise FormatError(
                f"{where}: expected plain tensors, found {quoted(name)} of the class"
                f" {quoted(record.unknown)}",
                "nothing of it was executed; save the tensors as plain ones",
            )
    return records


def _usual(state: Any, flat: _Flat) -> dict[str, TensorRecord]:
    entries = entries_of(state)
    for key in NESTED_UNDER:
        if records := flat.paths(entries.get(key)):
            while all(len(path) > 1 and path[0] in NESTED_UNDER for path in records) and (
                len({path[0] for path in records}) == 1
            ):
                records = {path[1:]: record for path, record in records.items()}
            return {".".join(path): record for path, record in records.items()}
    return {
        name: record
        for name, value in entries.items()
        if type(name) is str and (record := as_tensor(value))
    }


def _where_else(state: Any, flat: _Flat) -> str:
    """Return a hint: the keys under which there are tensors."""
    keys = [
        key
        for key, value in entries_of(state).items()
        if type(key) is str and entries_of(value) and flat.paths(value)
    ]
    if keys:
        return (
            f"--state KEY says where it lies; tensors are under {', '.join(map(quoted, keys[:6]))}"
        )
    return f"a state dict may lie under {', '.join(map(repr, NESTED_UNDER))}, or where --state KEY says"


def _at(state: Any, key: str, depth: int = 0) -> list[Any]:
    """Return what lies under keys joined by dots, which may have dots themselves."""
    if not key:
        return [state]
    if depth == _MOST_NESTED:
        return []
    values: list[Any] = []
    parts = key.split(".")
    entries = entries_of(state)
    for count in range(len(parts), 0, -1):
        value = entries.get(".".join(parts[:count]))
        if value is not None:
            values += _at(value, ".".join(parts[count:]), depth + 1)
    return values


def entries_of(value: Any) -> Mapping[Any, Any]:
    """Return the entries of a dictionary, of whatever class."""
    if isinstance(value, Record):
        return value.entries or {}
    return value if isinstance(value, Mapping) else {}


class _Flat:
    """Lists the tensors below a value, however deep; of a graph that repeats itself no more than it
    is long."""

    def __init__(self, loaded: Loaded, where: str) -> None:
        self._left, self._where = max(loaded.length, 1000), where

    def tensors(self, value: Any) -> dict[str, TensorRecord]:
        """Return them by names joined by dots."""
        return {".".join(path): record for path, record in self.paths(value).items()}

    def paths(self, value: Any) -> dict[tuple[str, ...], TensorRecord]:
        """Return them by the keys that lead to them."""
        records: dict[tuple[str, ...], TensorRecord] = {}
        pending: list[tuple[tuple[str, ...], Any]] = [((), value)]
        while pending:
            path, inner = pending.pop()
            for key, entry in entries_of(inner).items():
                self._left -= 1
                if self._left < 0:
                    raise FormatError(f"{self._where}: expected nested dictionaries, found a cycle")
                if type(key) is not str:
                    continue
                if record := as_tensor(entry):
                    records[*path, key] = record
                elif len(path) < _MOST_NESTED and entries_of(entry):
                    pending.append(((*path, key), entry))
        return records
