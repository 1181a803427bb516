"""Where trainers put their logs in a source, beside its checkpoints."""

from __future__ import annotations

import re
from typing import Any

from pipeline.checkpoint.layouts import ListFolder
from pipeline.errors import SourceNotFound
from pipeline.training.logs import is_log

_FOLDERS = re.compile(r"runs|logs?|lightning_logs|tensorboard|tb_logs|csv_logs", re.IGNORECASE)
"""transformers' `runs/<date and host>/`, Lightning's `lightning_logs/version_0/`, others' by habit."""
_DEPTH = 3
_MOST_FOLDERS = 64
"""That are looked into: each may be a request."""


def log_paths(list_folder: ListFolder[Any], start: str = "") -> list[str]:
    """Return the paths of logs in a folder, and in folders in it that are called as logs are."""
    paths: list[str] = []
    pending = [(start, 0)]
    for path, depth in pending:
        try:
            folder = list_folder(path)
        except SourceNotFound:
            continue  # no right to look: none of it was named
        above = f"{path}/" if path else ""
        paths += [above + name for name in folder.files if is_log(name)]
        inner = [name for name in folder.folders if depth or _FOLDERS.fullmatch(name)]
        if depth < _DEPTH and len(pending) + len(inner) <= _MOST_FOLDERS:
            pending += [(above + name, depth + 1) for name in inner]
    return sorted(paths)
