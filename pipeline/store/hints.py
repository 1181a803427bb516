"""Why a query may have found nothing: words in it that the store does not know."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from pipeline.errors import quoted
from pipeline.store.glossary import terms
from pipeline.store.query import Store

_VALUES = {
    "run": "SELECT run FROM runs",
    "indicator": "SELECT name FROM glossary WHERE kind = 'indicator'",
    "scope": "SELECT DISTINCT scope FROM groups",
    "component": "SELECT DISTINCT component FROM groups WHERE component IS NOT NULL",
    "tensor": "SELECT DISTINCT tensor FROM groups WHERE tensor IS NOT NULL",
    "severity": "SELECT unnest(['error', 'warning', 'info'])",
    "basis": "SELECT unnest(['trajectory', 'relative', 'centered', 'increments'])",
}
"""Columns whose values are known, and how they are asked for."""
_NAMED = 12
"""Values that are named where none is like the one that was asked for."""
_TEXT = r"'((?:[^']|'')*)'"
_COMPARED = re.compile(rf"\b({'|'.join(_VALUES)})\s*:?={{1,2}}>?\s*{_TEXT}", re.IGNORECASE)
_LISTED = re.compile(rf"\b({'|'.join(_VALUES)})\s+IN\s*\(([^()]*)\)", re.IGNORECASE)
_CALL = re.compile(r'\b(\w+)"?\s*\(([^()]*)\)')
_PARAMETERS = {
    term.name: re.findall(r"\w+", term.meaning.partition("(")[2].partition(")")[0])
    for term in terms()
    if term.kind == "function"
}


def unknown_words(store: Store, query: str) -> Iterator[str]:
    """Yield a line for each text in a query that its column, or parameter, never is."""
    for kind, word in dict.fromkeys(_words(query)):
        known = [str(value) for (value,) in store.sql(_VALUES[kind]).fetchall()]
        if word not in known:
            yield f"no {kind} {quoted(word)}{instead(word, known)}"


def instead(word: str, known: list[str]) -> str:
    """Return what was probably meant, or what there is, as the end of a sentence."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), by_lower, 1)
    if near:
        return f"; did you mean {quoted(by_lower[near[0]])}?"
    if not known:
        return "; there is none"
    named = ", ".join(sorted(known)[:_NAMED])
    return f"; there are: {named}" + (", …" if len(known) > _NAMED else "")


def _words(query: str) -> Iterator[tuple[str, str]]:
    """Yield the columns, or parameters, that a query compares with a text, and the text."""
    for kind, text in _COMPARED.findall(query):
        yield kind.lower(), _unquoted(text)
    for kind, texts in _LISTED.findall(query):
        for text in re.findall(_TEXT, texts):
            yield kind.lower(), _unquoted(text)
    for function, arguments in _CALL.findall(query):
        names = (
            name.removesuffix("_a").removesuffix("_b")
            for name in _PARAMETERS.get(function.lower(), ())
        )
        for name, argument in zip(names, arguments.split(","), strict=False):
            match = re.fullmatch(rf"\s*{_TEXT}\s*", argument)
            if match and name in _VALUES:
                yield name, _unquoted(match[1])


def _unquoted(text: str) -> str:
    return text.replace("''", "'")
