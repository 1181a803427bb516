"""The prompt of `hallmarks sql`: queries one after the other, with a history and completion.

A line is a query as soon as it is a whole one; what is not is continued, up to an empty line.
"""

from __future__ import annotations

import contextlib
import re
import readline
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import duckdb

from jobs.console import refuse
from pipeline.errors import HallmarksError, Interrupted
from pipeline.planning.plan_cache import cache_file
from pipeline.store.glossary import column, terms
from pipeline.store.query import Store, views

_HISTORY = "sql-history"
_LINES_KEPT = 1_000
_WORDS = (
    *("SELECT", "FROM", "WHERE", "ORDER BY", "GROUP BY", "LIMIT", "JOIN", "USING", "DESCRIBE"),
    *(".help", ".views", ".quit"),
)
_HELP = """\
A query is run when it is whole; an empty line runs what has been typed. Tab completes.
.views     what there is to ask, and what each row is of
.views X   the columns of a view, or what an indicator means
.quit      leave (Ctrl-D, too); Ctrl-C drops the line, or stops a query"""


def converse(store: Store, answer: Callable[[str], None]) -> None:
    """Ask for queries and answer them until there are no more."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ends a query, not the command
    terminated: list[int] = []

    def terminate(number: int, frame: FrameType | None) -> None:
        del frame
        terminated.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    history = cache_file().with_name(_HISTORY)
    _remember(history)
    candidates = _candidates(store)
    readline.set_completer_delims(" \t\n,()'\"=<>*+;")
    readline.set_completer(lambda text, number: _completed(candidates, text, number))
    readline.parse_and_bind("tab: complete")
    print("queries over the store; .help for help")
    while not terminated:
        try:
            typed = _typed()
            if typed in (".quit", ".exit"):
                break
            if typed.startswith("."):
                _command(typed)
            elif typed:
                answer(typed)
        except KeyboardInterrupt:
            print("^C")
        except EOFError:
            print()
            break
        except HallmarksError as error:
            refuse(error)
    _save(history)
    if terminated:
        raise Interrupted(signal.Signals(terminated[0]).name)


def _typed() -> str:
    """Return the next query, of one or several lines, or a command."""
    lines = [input("sql> ").strip()]
    while lines[-1] and not lines[0].startswith(".") and _goes_on("\n".join(lines)):
        lines.append(input("...> ").strip())
    return "\n".join(lines).strip()


def _goes_on(text: str) -> bool:
    """Return whether a query is not whole yet: what is wrong with it is wrong at its end."""
    if text.endswith(";"):
        return False
    try:
        duckdb.extract_statements(text)
    except duckdb.Error as error:
        said = str(error)
        near = re.search(r'at or near "(.*?)"', said)
        if near is not None:
            return text.endswith(near[1]) or text.count("(") > text.count(")")
        return any(words in said for words in ("end of input", "unterminated", "without selection"))
    return False


def _command(typed: str) -> None:
    command, _, name = typed.partition(" ")
    name = name.strip()
    if command == ".help":
        print(_HELP)
    elif command == ".views":
        lines = _described(name) if name else _overview()
        print("\n".join(lines or [f"nothing is called {name!a}"]))
    else:
        print(f"no command {command!a}; .help for help")


def _overview() -> list[str]:
    views = [f"{term.name:<14}{term.meaning}" for term in terms() if term.kind == "view"]
    return [*views, *(term.meaning for term in terms() if term.kind == "function")]


def _described(name: str) -> list[str]:
    lines = [f"{term.name} ({term.kind}): {term.meaning}" for term in terms() if term.name == name]
    columns = views().get(name, [])
    return lines + [f"  {each:<26}{column(name, each).meaning}" for each, _ in columns]


def _candidates(store: Store) -> list[str]:
    """Return what can be completed: all words of the glossary, and the names in the store."""
    words = {term.name.rpartition(".")[2] for term in terms()}
    for query in ("SELECT run FROM runs", "SELECT DISTINCT scope FROM groups"):
        words |= {str(value) for (value,) in store.sql(query).fetchall()}
    roles = store.sql("SELECT DISTINCT component FROM groups WHERE component IS NOT NULL")
    return sorted({*words, *(role for (role,) in roles.fetchall()), *_WORDS})


def _completed(candidates: list[str], text: str, number: int) -> str | None:
    fitting = [word for word in candidates if word.lower().startswith(text.lower())]
    return fitting[number] if number < len(fitting) else None


def _remember(history: Path) -> None:
    with contextlib.suppress(OSError):  # there is none yet
        readline.read_history_file(history)
    readline.set_history_length(_LINES_KEPT)


def _save(history: Path) -> None:
    with contextlib.suppress(OSError):  # a home that cannot be written has no history
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(history)
