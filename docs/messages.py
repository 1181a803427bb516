"""The page of operations: every error that the sources can raise, under its class, with its cure."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import jobs
import pipeline
from docs.markdown import table
from pipeline.errors import HallmarksError

ROOT = Path(__file__).parent.parent
_ABOUT = """# Operations

Made from the classes of errors and from what the sources raise, by `make pages`.

An error is one line, `error: …`, that says what, where, expected and found, and a `hint: …` where a cure is known. No error leaves
a half-written file, and none loses what was finished: the same command resumes, with bit-identical results. `--debug` adds the
traceback. What nobody foresaw ends with the path of a log file, which is worth sending.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 2 | the request cannot be met, and nothing was written: the classes under `RequestError` |
| 3 | finished but incomplete: what failed is named, the rest counts; or `audit --strict` has errors |
| 1 | anything else; finished tiles are kept |
| 130 | interrupted by SIGINT or SIGTERM; finished tiles are kept |

`hallmarks status --store STORE` says how far every run is, and when its driver was last heard of, from any machine that sees the
store. What is wrong with the checkpoints themselves is not an error but a [finding](schema.md#findings).

`hallmarks average` writes to `DIR.partial`, which becomes DIR when all has been read back; after a kill rerun the same command to
resume. To give it up, remove `DIR.partial`.

Beside a training that still runs: [following.md](following.md).

In the tables `<…>` stands for a name or a number. Where a message has no cure of its own, that of its class counts.
"""
_INTERNAL = {"NotStarted"}
"""What the executor tells itself."""


def errors() -> dict[str, type[HallmarksError]]:
    """Return every class of error by name, bases first."""
    for package in (pipeline, jobs):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    classes = [HallmarksError]
    for each in classes:
        classes.extend(each.__subclasses__())
    return {each.__name__: each for each in classes}


def page() -> str:
    """Return the text of docs/operations.md."""
    classes = errors()
    sections = [_ABOUT]
    messages = sorted(set(raised(set(classes))))
    for name, kind in classes.items():
        rows = [
            (
                f"`{message}`",
                re.sub(r"([*_\[])", r"\\\1", hint.replace("<", "&lt;"))
                if hint != "…"
                else "its hint says",
            )
            for error, message, hint in messages
            if error == name and re.search(r"[a-z]", re.sub(r"<.*?>", "", message))
        ]
        if name in _INTERNAL or not rows:
            continue
        cause, _, cure = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")
        sections.append(
            f"## `{name}`\n\n{cause.partition(';')[0].rstrip('.')}. Exit code {kind.exit_code}.\n\n{cure}\n"
        )
        sections.append(table(("message", "cure"), rows))
    return "\n".join(sections)


def raised(names: set[str]) -> Iterator[tuple[str, str, str]]:
    """Yield class, message and hint of each error that the sources make, in the order of the sources."""
    for room in ("pipeline", "jobs"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                match node:
                    case ast.Call(func=ast.Name(id=name), args=[message, *hint]) if name in names:
                        yield name, _text(message), _text(hint[0]) if hint else ""
                    case _:
                        pass


def _text(node: ast.expr) -> str:
    """Return a text of the sources, with the names of what is put into it."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_text(part) for part in parts)
        case ast.FormattedValue(value=value):
            return f"<{_name(value)}>"
        case _:
            return "…"


def _name(node: ast.expr) -> str:
    """Return what an expression speaks of, as far as its code says: `quoted(self._path)` is a path."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_").replace("_", " ")
        case ast.Call(args=[value, *_]) | ast.Subscript(value=value) | ast.BinOp(left=value):
            return _name(value)
        case ast.Call(func=function):
            return _name(function)
        case _:
            return "…"
