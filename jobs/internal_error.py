"""Errors that nobody thought of: one line for the user, the traceback in a log that the line names."""

from __future__ import annotations

import os
import re
import tempfile
import traceback
from pathlib import Path

from pipeline.errors import quoted

_SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|KEY|PROXY|ENDPOINT")
_SECRETS = (
    (re.compile(r"//[^\s/@'\"]+@"), "//…@"),  # who asks, in a URL
    (re.compile(r"\?[\w.~%-]+=[^\s'\"]*"), "?…"),  # the signature of one
    (re.compile(r"(?i)(bearer|basic) [^\s'\"]+"), r"\1 …"),
    (re.compile(r"hf_\w{8,}"), "hf_…"),
)


def told(error: BaseException, store: str | None) -> tuple[str, str]:
    """Keep an error's traceback in a log; return the line that says so, and the hint that names it.

    Args:
        store: where the command keeps its results, if it does; the log lies beside a directory.
    """
    line = f"internal error: {type(error).__name__}: {quoted(without_secrets(str(error)), 300)}"
    log = _kept(traceback_of(error), store)
    return line, f"this is a bug; the traceback is in {log}" if log else "--debug shows where"


def traceback_of(error: BaseException) -> str:
    """Return an error's traceback without secrets."""
    return without_secrets("".join(traceback.format_exception(error)))


def without_secrets(text: str) -> str:
    """Return a text without what is secret in URLs, headers and this process's environment."""
    for name, value in os.environ.items():
        if _SECRET_NAMES.search(name.upper()) and len(value) >= 8:
            text = text.replace(value, "…")
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def _kept(text: str, store: str | None) -> Path | None:
    """Write a new file that nobody else can read, beside the store or with temporary files."""
    # not `resolve`, which follows links and fails where one leads in a circle
    beside = Path(os.path.abspath(store)) if store and "://" not in store else None  # noqa: PTH100
    places = [(beside.parent, beside.name)] if beside else []
    for folder, name in [*places, (Path(tempfile.gettempdir()), "hallmarks")]:
        try:
            number, path = tempfile.mkstemp(".log", f"{name}-error-", folder)
            with open(number, "w", errors="backslashreplace") as file:
                file.write(text)
        except OSError:
            continue
        return Path(path)
    return None
