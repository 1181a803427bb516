"""What a value of another's file may be: a text, a count, a shape. Anything else is a ValueError."""

from __future__ import annotations

from typing import Any

MAX_DIMENSIONS = 64
"""Far above any real tensor; bounds the work on a hostile shape."""


def text(value: Any) -> str:
    """Return a text that a table can hold: half of a surrogate pair is no character."""
    if not isinstance(value, str):
        raise ValueError("expected a text")
    value.encode()  # UnicodeEncodeError is a ValueError
    return value


def count(value: Any) -> int:
    """Return a whole number that fits into 63 bits."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("values that are not counts")
    return value


def counts(value: Any) -> tuple[int, ...]:
    """Return a shape, strides or offsets: as many counts as a tensor may have dimensions."""
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMENSIONS:
        raise ValueError("a shape that is none")
    return tuple(map(count, value))
