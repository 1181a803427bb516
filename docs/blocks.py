"""The blocks of a page that are executed, and whether they print what the page says.

    ```console   commands after `$ `, each with what it prints
    ```sql       a query over the store `hallmarks-store`; its answer is the ```text block behind it, as a
                 terminal shows it
    ```pycon     Python at its prompt

Blocks of a page follow on one another, in one folder. Blocks of any other kind are not executed.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.tables import Screen, write
from pipeline.errors import QueryError
from pipeline.store.query import Store

STORE = "hallmarks-store"
_FENCED = re.compile(
    r"^```(?P<kind>console|sql|pycon)\n(?P<text>.*?)^```\n(?:\n```text\n(?P<answer>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
_SCREEN = Screen(width=110, rows=40)
_LIMIT_S = 300
_NUMBER = re.compile(r"(?<![\w.])(-?[\d,]*\d(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w]|\.\d)")
_MACHINES = re.compile(r"\b[\d.]+ s\b|(?<=on )cpu\b[\w ]*|(?<=budget )[\d.]+\w+")
"""What differs from one machine to the next: times, the processor, and how much memory there is."""


@dataclass(frozen=True, slots=True)
class Block:
    """Something to execute, and what it is said to print."""

    kind: str
    code: str
    expected: str
    line: int
    """Of the page, from 1: where it begins."""


def blocks(text: str) -> list[Block]:
    """Return everything in a page that is executed, in order: each command is a block of its own."""
    return [block for match in _FENCED.finditer(text) for block in _parts(text, match)]


def _parts(text: str, match: re.Match[str]) -> Iterator[Block]:
    line, kind, inside = text.count("\n", 0, match.start()) + 1, match["kind"], match["text"]
    if kind == "console":
        for command in re.finditer(r"^\$ .*?(?=^\$ |\Z)", inside, re.MULTILINE | re.DOTALL):
            code, expected = _command(command[0])
            yield Block(kind, code, expected, line)
    else:
        yield Block(kind, inside, inside if kind == "pycon" else match["answer"] or "", line)


def _command(text: str) -> tuple[str, str]:
    """Divide what follows a prompt into the command, which may have several lines, and what it prints."""
    lines = text.removeprefix("$ ").splitlines(keepends=True)
    for number in range(1, len(lines) + 1):
        code = "".join(lines[:number])
        # a command goes on behind a backslash, or while a quotation is open
        if not code.endswith("\\\n") and code.count('"') % 2 == 0:
            return code.rstrip("\n"), "".join(lines[number:])
    raise ValueError(f"a command without an end: {text!r}")


class Session:
    """Executes blocks one after the other, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store: Store | None = None
        self._names: dict[str, Any] = {}

    def printed(self, block: Block) -> str:
        """Execute a block and return what it prints; of Python, the session with what it prints."""
        with contextlib.chdir(self._folder):
            match block.kind:
                case "console":
                    return _run(block.code)
                case "sql":
                    return self._answer(block.code)
                case _:
                    return self._python(block.code)

    def _answer(self, query: str) -> str:
        self._store = self._store or Store(STORE)
        with contextlib.redirect_stdout(io.StringIO()) as output:
            try:
                columns, rows = self._store.rows(query)
                write("table", columns, rows, _SCREEN)
            except QueryError as error:
                print(f"error: {error.message}")
        return output.getvalue()

    def _python(self, code: str) -> str:
        lines: list[str] = []
        for example in doctest.DocTestParser().get_examples(code):
            lines += _prompted(example.source)
            with contextlib.redirect_stdout(io.StringIO()) as output:
                try:
                    exec(compile(example.source, "<page>", "single"), self._names)
                except Exception as error:
                    print(f"{type(error).__qualname__}: {error}")
            lines += output.getvalue().splitlines()
        return "\n".join(lines) + "\n"


def _prompted(source: str) -> list[str]:
    first, *rest = source.splitlines()
    return [f">>> {first}", *(f"... {line}" for line in rest)]


def _run(command: str) -> str:
    """Return what a command prints, as a shell runs it; of one that fails, the error, too."""
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=_LIMIT_S,
        env=os.environ | {"PATH": beside, "COLUMNS": str(_SCREEN.width)},
    )  # fmt: skip
    return done.stdout + (done.stderr if done.returncode else "")


def same(expected: str, printed: str, relative: float = 0.0) -> bool:
    """Return whether a page shows what was printed.

    Spaces at line ends, times and what else is a machine's do not count. Numbers may differ by one in
    the last place that is shown, whole ones not at all.

    Args:
        relative: by how much all numbers may differ besides, and the order of the lines with them.
    """
    texts = [_masked(text).splitlines() for text in (expected, printed)]
    lines = map(sorted, texts) if relative else texts
    wanted, given = (_NUMBER.split("\n".join(each)) for each in lines)
    if len(wanted) != len(given):
        return False
    for place, (one, other) in enumerate(zip(wanted, given, strict=True)):
        if place % 2 == 0:
            if _spaced(one) != _spaced(other):
                return False
        elif not _close(one, other, relative):
            return False
    return True


def _masked(text: str) -> str:
    """Return a text without what is a machine's."""
    return _MACHINES.sub("…", text).strip()


def _spaced(text: str) -> list[str]:
    return re.sub(r"─+", "─", text).split()


def _close(one: str, other: str, relative: float) -> bool:
    if one == other:
        return True
    first, second = (float(number.replace(",", "")) for number in (one, other))
    _, point, decimals = re.split("e", one)[0].partition(".")
    last = 10.0 ** -len(decimals) if point and "e" not in one else 0.0
    return abs(first - second) <= max(
        1.001 * last, relative * abs(first), 1e-5 * abs(first) * bool(point)
    )


def updated(text: str, session: Session) -> str:
    """Return a page with what its blocks print now; what still is the same stays as it stands."""

    def replaced(match: re.Match[str]) -> str:
        printed = [(block, session.printed(block)) for block in _parts(text, match)]
        if all(_masked(block.expected) == _masked(output) for block, output in printed):
            return match[0]
        return _fenced(match["kind"], printed)

    return _FENCED.sub(replaced, text)


def _fenced(kind: str, printed: list[tuple[Block, str]]) -> str:
    match kind:
        case "console":
            inside = "".join(f"$ {block.code}\n{output}" for block, output in printed)
            return f"```console\n{inside}```\n"
        case "sql":
            [(block, output)] = printed
            return f"```sql\n{block.code}```\n\n```text\n{output}```\n"
        case _:
            [(_, output)] = printed
            return f"```pycon\n{output}```\n"
