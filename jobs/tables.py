"""Rows of an answer as text: a table, CSV, JSON or Markdown, written as they come.

On a terminal a table is for people: figures are rounded, key columns without a value are left out, and
rows that are too wide for it are shown one record a block. Elsewhere it holds everything.
"""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from typing import Any

from rich.cells import cell_len

from pipeline.errors import printable
from pipeline.store.query import Rows

Row = Sequence[Any]
_KEYS = frozenset({"scope", "stack", "layer", "component", "tensor", "head", "expert"})
_MEASURED = 1_000
"""Rows that decide how wide the columns of a table in a file or pipe are: later ones may stick out."""
_WIDEST = 100
"""Characters that a column of such a table is padded to at most: a finding's evidence may be long."""
_GAP = "  "
_NUMBERS = (int, float, bool)
_QUOTED = re.compile(r'[,"\r\n]')
_CHARACTERS_AT_ONCE = 1 << 16
_SHORT = 200
"""Characters of a text that is remembered."""


@dataclass(frozen=True, slots=True)
class Screen:
    """What a table on a terminal has room for."""

    width: int
    """In characters."""
    rows: int
    """That are shown at most."""


def write(form: str, columns: list[str], rows: Rows, screen: Screen | None) -> int:
    """Write an answer on standard output and return how many rows it has.

    Args:
        form: `table`, `csv`, `json` or `markdown`.
        screen: the terminal that a table is for, or None.
    """
    output, more = _Gathered(), 0
    if form != "table":
        _FORMATS[form](columns, rows, output)
    elif screen is None:
        _table(columns, rows, output)
    else:
        _for_people(columns, rows, screen, output)
        output.flush()
        shown = rows.number
        if (more := rows.count_rest()) > 0:
            print(f"… {shown:,} of {shown + more:,} rows; --format csv for all")
    output.flush()
    return rows.number


class _Gathered:
    """Writes many small texts as few large ones: a call of standard output's takes a microsecond."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._length = 0

    def write(self, text: str) -> None:
        self._texts.append(text)
        self._length += len(text)
        if self._length >= _CHARACTERS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        sys.stdout.write("".join(self._texts))
        self._texts, self._length = [], 0


def _table(columns: list[str], rows: Iterator[Row], output: _Gathered) -> None:
    first = list(islice(rows, _MEASURED))
    right = _numeric(columns, first)
    texts = [list(map(_text, row)) for row in first]
    names = list(map(printable, columns))
    widths = [min(width, _WIDEST) for width in _widths(names, texts)]
    line = _aligned(widths, right)
    output.write(line(names) + line(["─" * width for width in widths]))
    for cells in chain(texts, (list(map(_text, row)) for row in rows)):
        output.write(line(cells))


def _for_people(columns: list[str], rows: Iterator[Row], screen: Screen, output: _Gathered) -> None:
    shown = list(islice(rows, screen.rows))
    kept = [
        place
        for place, name in enumerate(columns)
        if name not in _KEYS or any(row[place] is not None for row in shown)
    ]
    kept = kept if kept and shown else list(range(len(columns)))
    names = [printable(columns[place]) for place in kept]
    values = [[row[place] for place in kept] for row in shown]
    texts = [list(map(_rounded, row)) for row in values]
    widths = _widths(names, texts)
    if sum(widths) + len(_GAP) * (len(widths) - 1) <= screen.width:
        line = _aligned(widths, _numeric(names, values))
        output.write(line(names) + line(["─" * width for width in widths]))
        for cells in texts:
            output.write(line(cells))
        return
    longest = max(map(cell_len, names))
    for number, row in enumerate(texts):
        output.write("\n" * (number > 0))
        for name, text in zip(names, row, strict=True):
            margin = longest + len(_GAP)
            for line in between_words(_padded(name, margin) + text, screen.width, margin):
                output.write(line.rstrip() + "\n")


def between_words(text: str, width: int, margin: int) -> list[str]:
    """Return the lines of a text that is broken between words, and goes on `margin` characters in."""
    start, rest = text[:margin], text[margin:]
    lines = textwrap.wrap(
        rest, max(1, width - margin), break_long_words=False, break_on_hyphens=False
    )
    first, *others = lines or [""]
    return [start + first, *(" " * margin + line for line in others)]


def table_lines(names: list[str], rows: list[list[str]], right: list[bool]) -> Iterator[str]:
    """Yield the lines of a small table of texts.

    Args:
        right: of each column whether it is set to the right.
    """
    widths = _widths(names, rows)
    line = _aligned(widths, right)
    for cells in (names, ["─" * width for width in widths], *rows):
        yield line(cells).rstrip()


def _aligned(widths: list[int], right: list[bool]) -> Callable[[list[str]], str]:
    """Return what makes a line of cells, numbers to the right."""

    def line(cells: list[str]) -> str:
        padded = map(_padded, cells, widths, right)
        return _GAP.join(padded).rstrip() + "\n"

    return line


def _padded(text: str, width: int, right: bool = False) -> str:
    space = " " * (width - cell_len(text))
    return space + text if right else text + space


def _widths(names: list[str], texts: list[list[str]]) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(names, *texts, strict=True)]


def _numeric(columns: list[str], rows: list[Any]) -> list[bool]:
    """Return of each column whether all its values are numbers."""
    return [
        all(isinstance(row[place], int | float | None) for row in rows)
        for place in range(len(columns))
    ]


def _csv(columns: list[str], rows: Rows, output: _Gathered) -> None:
    is_alone = len(columns) == 1
    output.write(",".join(_quoted(printable(name), is_alone) for name in columns) + "\n")
    for values in rows.columns():
        fields = (_fields(column, is_alone) for column in values)
        lines = [",".join(line) for line in zip(*fields, strict=True)]
        output.write("\n".join([*lines, ""]))


def _fields(column: Row, is_alone: bool) -> list[str]:
    """Return a column as CSV has it; a text, or a number without fraction, mostly comes again."""
    kinds = set(map(type, column)) - {type(None)}
    if kinds == {float}:
        return [repr(value) if value is not None else _quoted("", is_alone) for value in column]
    if kinds in ({str}, {int}):
        fields = {value: _quoted(_text(value), is_alone) for value in set(column)}
        return [fields[value] for value in column]
    return [_quoted(_text(value), is_alone) for value in column]


def _quoted(text: str, is_alone: bool) -> str:
    """Return a text as RFC 4180 has it; an empty line would be no row, so an empty field alone is quoted."""
    if _QUOTED.search(text) or (is_alone and not text):
        return '"' + text.replace('"', '""') + '"'
    return text


def _json(columns: list[str], rows: Iterator[Row], output: _Gathered) -> None:
    names, encode = _apart(columns), json.JSONEncoder(default=str).encode
    start = "["
    for row in rows:
        record = dict(zip(names, map(_finite, row), strict=True))
        output.write(start + encode(record))
        start = ", "
    output.write("[]\n" if start == "[" else "]\n")


def _markdown(columns: list[str], rows: Iterator[Row], output: _Gathered) -> None:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |\n"

    def escaped(value: Any) -> str:
        text = _text(value)
        return text if type(value) in _NUMBERS else _kept(_escaped, text)

    output.write(line(map(escaped, columns)) + line("---" for _ in columns))
    for row in rows:
        output.write(line(map(escaped, row)))


def _escaped(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    return re.sub(r"[\\|<]|\](?=\()", r"\\\g<0>", text)


def _text(value: Any) -> str:
    if value is None:
        return ""
    text = str(value)
    return text if type(value) in _NUMBERS else _kept(printable, text)


def _kept(made: Callable[[str], str], text: str) -> str:
    """Return what is made of a text: most are names, and come again and again."""
    return _made_before(made, text) if len(text) <= _SHORT else made(text)


@lru_cache(maxsize=4_096)
def _made_before(made: Callable[[str], str], text: str) -> str:
    return made(text)


def _rounded(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else _text(value)


def _apart(names: list[str]) -> list[str]:
    """Return different names: of several that are the same, later ones get a number."""
    distinct: list[str] = []
    for name in names:
        candidates = (f"{name}_{number}" if number else name for number in range(len(names) + 1))
        distinct.append(next(each for each in candidates if each not in distinct))
    return distinct


def _finite(value: Any) -> Any:
    """Return a value as JSON has it, which knows no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if type(value) in (list, tuple):  # an interval is a tuple, too
        return [_finite(each) for each in value]
    return value


_FORMATS = {"csv": _csv, "json": _json, "markdown": _markdown}
