"""What lies near a SOURCE that is not there, or is not what was meant: for the hint of its error."""

from __future__ import annotations

import difflib
import glob
import os
import re
from itertools import islice
from pathlib import Path

from pipeline.checkpoint.reading import BY_TABLES, Reading
from pipeline.errors import quoted

_MOST_NAMES = 10_000
"""Of a folder that are looked at."""
_PAGE = re.compile(r"(?:https?://[^/]+|huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")
"""Of a repository, as a browser shows its address."""
_LEVELS = 3
"""From a file of a checkpoint to the folder of the series, as in `demo/step100/actor/model.safetensors`."""


def nearest(text: str) -> str:
    """Return what to name instead of a path that does not exist."""
    path = Path(text)
    if text.startswith("file://"):
        return "a directory is named by its path, without file://"
    if page := _PAGE.match(text):
        return f"a Hub repository is org/name, perhaps {quoted(page[1])}"
    if "://" in text:
        return "URLs of sources begin with hf://, s3://, gs:// or az://"
    if text.startswith("~") or (glob.has_magic(text) and _matches(text)):
        return "patterns and ~ are for the shell: leave out the quotes"
    above = next(folder for folder in path.parents if folder == folder.parent or folder.is_dir())
    name = path.relative_to(above).parts[0]
    if close := _like(name, above):
        return f"did you mean {quoted(close)}?"
    hint = f"{quoted(above.resolve())} is there, but has no {quoted(name)} in it"
    may_be_repository = not path.is_absolute() and not text.startswith(".")
    return hint + ("; a Hub repository is org/name" if may_be_repository else "")


def nearest_to_repository(name: str) -> str:
    """Return the same of the path that a repository's name may have been meant for; mostly empty."""
    path = Path(name)
    if not path.parent.is_dir():
        return ""
    if close := _like(path.name, path.parent):
        return f" Or did you mean the directory {quoted(close)}?"
    return f" The directory {quoted(path.parent)} has no {quoted(path.name)} in it."


def series_around(text: str, reading: Reading = BY_TABLES) -> str:
    """Return what to name instead of a single checkpoint, or a file of one; empty: nobody knows."""
    scheme, separator, place = text.rstrip("/").partition("://")
    if scheme == "hf":
        name, _, revision = place.partition("@")
        return f"name the repository, {quoted(f'hf://{name}')}" if revision else ""
    if separator:
        above = place.rpartition("/")[0]
        return (
            f"name what holds the series, perhaps {quoted(f'{scheme}://{above}')}" if above else ""
        )
    part = Path(text).absolute()
    for folder in part.parents[:_LEVELS]:
        count = sum(reading.position(name).is_known for name in _names(folder))
        if count > 1 and reading.position(part.name).is_known:
            shown = folder if Path(text).is_absolute() else os.path.relpath(folder)
            return f"{quoted(shown)} holds {count:,} of them: name that"
        part = folder
    return ""


def _like(name: str, folder: Path) -> Path | None:
    """Return the path in a folder whose name is most like one that is not there."""
    close = difflib.get_close_matches(name, _names(folder), 1)
    return folder / close[0] if close else None


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in islice(entries, _MOST_NAMES)]
    except OSError:
        return []


def _matches(pattern: str) -> bool:
    try:
        return next(glob.iglob(pattern), None) is not None  # noqa: PTH207 - as a shell reads it
    except (OSError, ValueError, re.error):
        return False
