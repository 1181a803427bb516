"""What every indicator, column, finding, view and function means: one table, `views/glossary.csv`.

The view `glossary`, the comments of the views and docs/schema.md are made from it.
"""

from __future__ import annotations

import csv
from dataclasses import astuple, dataclass, fields
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Term:
    """One row of the glossary."""

    name: str
    """Of a column that means something else in one view: `view.column`."""
    kind: str
    """`indicator`, `column`, `finding`, `view` or `function`."""
    meaning: str
    unit: str
    """Of views and functions what each row is of, of findings the severity."""
    formula: str
    """Empty where there is none."""
    source: str


@cache
def terms() -> tuple[Term, ...]:
    """Return all rows."""
    table = files("pipeline.store").joinpath("views/glossary.csv").read_text("utf-8")
    return tuple(Term(**row) for row in csv.DictReader(table.splitlines()))


def column(view: str, name: str) -> Term:
    """Return what a column of a view means.

    Raises:
        KeyError: the glossary does not have it.
    """
    columns = {term.name: term for term in terms() if term.kind == "column"}
    return columns.get(f"{view}.{name}") or columns[name]


def statement() -> str:
    """Return the SQL that makes the view `glossary`."""
    names = ", ".join(field.name for field in fields(Term))
    rows = ",\n".join(f"    ({', '.join(map(_literal, astuple(term)))})" for term in terms())
    return (
        "-- What everything means.\n"
        f"CREATE OR REPLACE VIEW glossary AS\nSELECT * FROM (VALUES\n{rows}\n) t({names});\n"
    )


def comment(name: str) -> str:
    """Return the SQL that says what a view or function is, or nothing of one that has no row."""
    for term in terms():
        if term.name == name and term.kind in ("view", "function"):
            what = "VIEW" if term.kind == "view" else "MACRO TABLE"
            return f'COMMENT ON {what} "{name}" IS {_literal(term.meaning)};\n'
    return ""


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
