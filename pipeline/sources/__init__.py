"""Bytes in: where checkpoints are listed, and how ranges of their files are read."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import SourceNotFound, quoted
from pipeline.sources.base import Source
from pipeline.sources.directory import Directory
from pipeline.sources.hub import REPOSITORY_NAME, HubRepository


def open_source(text: str) -> Source:
    """Return the source that a SOURCE argument names.

    An existing local path wins over a Hub repository of the same spelling, as in transformers;
    `hf://` always means the Hub.

    Raises:
        SourceNotFound: neither a path here nor the name of a repository.
    """
    if text.startswith("hf://"):
        name = text.removeprefix("hf://")
        if REPOSITORY_NAME.fullmatch(name):
            return HubRepository(name)
        raise SourceNotFound(f"{quoted(text)} does not name a Hub repository", "hf://org/name")
    path = Path(text)
    if path.is_dir():
        return Directory(path)
    if path.exists():
        raise SourceNotFound(
            f"{quoted(text)} is a file", "name the directory that holds the checkpoints"
        )
    if not text.startswith((".", "/", "~")) and REPOSITORY_NAME.fullmatch(text):
        return HubRepository(text)
    raise SourceNotFound(f"no such directory: {quoted(text)}", "a Hub repository is org/name")
