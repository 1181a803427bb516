"""The page of views, functions, indicators and findings, from the glossary and the views."""

from __future__ import annotations

from docs.markdown import table
from pipeline.store.glossary import Term, column, terms
from pipeline.store.query import views

_ABOUT = """# Views, functions and words

Made from `pipeline/store/views/glossary.csv` by `make pages`; `hallmarks sql "FROM glossary"`
gives the same. Undefined values are NULL, angles are degrees, `k`, `i` and `j` number the checkpoints of a run
from 0. θ_k are the weights at checkpoint k, Δ_k = θ_k − θ_{k−1}, D_k = θ_k − θ_0, T is the last checkpoint,
λ the eigenvalues of H G H.
"""


def page() -> str:
    """Return the text of docs/schema.md."""
    sections = [_ABOUT, "## Views\n"]
    for view, columns in views().items():
        about = _term("view", view)
        rows = [(name, kind, column(view, name)) for name, kind in columns]
        sections.append(
            f"### `{view}`\n\n{about.meaning.capitalize()}. A row for each {about.unit}.\n"
        )
        lines = [
            (f"`{name}`", kind.lower(), term.meaning, term.unit, term.formula)
            for name, kind, term in rows
        ]
        sections.append(table(("column", "type", "meaning", "unit", "formula"), lines))
    functions = [
        (f"`{call}`", gives, term.unit, term.formula)
        for term in _of("function")
        for call, _, gives in [term.meaning.partition(": ")]
    ]
    sections.append(
        "## Functions\n\nTables that are asked for by name, as in `FROM top('mds', 5)`.\n"
    )
    sections.append(table(("function", "gives", "a row for each", "formula"), functions))
    indicators = [(f"`{t.name}`", t.meaning, t.unit, t.formula, t.source) for t in _of("indicator")]
    sections.append("## Indicators\n")
    sections.append(table(("indicator", "meaning", "unit", "formula", "source"), indicators))
    findings = [(f"`{t.name}`", t.unit, t.meaning) for t in _of("finding")]
    sections.append("## Findings\n")
    sections.append(table(("kind", "severity", "meaning"), findings))
    return "\n".join(sections)


def _of(kind: str) -> list[Term]:
    return [term for term in terms() if term.kind == kind]


def _term(kind: str, name: str) -> Term:
    return next(term for term in _of(kind) if term.name == name)
