"""Bytes in: where checkpoints are listed, and how ranges of their files are read.

Each kind of source is imported when one is opened: the Hub's client takes a quarter of a second, Arrow,
which reads manifests, a sixth.
"""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

from pipeline.checkpoint.reading import BY_TABLES, Reading
from pipeline.checkpoint.shards import may_be_weights
from pipeline.errors import SourceNotFound, quoted
from pipeline.sources.base import Source
from pipeline.sources.cache_folder import cache_folder
from pipeline.sources.directory import Directory
from pipeline.sources.nearby import nearest, series_around
from pipeline.sources.plain import HUB_NAME

_MANIFESTS = (".csv", ".jsonl", ".parquet")


def open_source(text: str, layout: str = "auto", reading: Reading = BY_TABLES) -> Source:
    """Return the source that a SOURCE argument names.

    An existing local path wins over a Hub repository of the same spelling, as in transformers;
    `hf://` always means the Hub.

    Args:
        layout: how a Hub repository exposes its checkpoints.
        reading: what the user says of names and files.

    Raises:
        SourceNotFound: neither a path here nor the name of a repository.
    """
    if text.startswith("hf://"):
        if match := HUB_NAME.fullmatch(text.removeprefix("hf://")):
            return _repository(match["name"], match["revision"], layout, reading)
        raise SourceNotFound(
            f"{quoted(text)} does not name a Hub repository", "hf://org/name or …@revision"
        )
    if "://" in text:
        from pipeline.sources.objects import ObjectStorage
        from pipeline.transport.object_client import SCHEMES

        if text.startswith(SCHEMES):
            return ObjectStorage(text, reading=reading)
    path = Path(text)
    try:
        if path.is_file() and path.suffix in _MANIFESTS:
            from pipeline.sources.manifest import Manifest

            # a manifest in a manifest would be no checkpoint
            return Manifest(path, partial(_open_one, reading, path.parent), reading)
        if path.is_dir():
            return cache_folder(path, reading) or Directory(path, reading)
        exists = path.exists()
    except (OSError, ValueError) as error:  # too long, a NUL in it, no right to look
        why = error.strerror if isinstance(error, OSError) else error
        raise SourceNotFound(f"no such directory: {quoted(text)}: {why}") from None
    if exists:
        raise SourceNotFound(
            f"{quoted(text)} is a file",
            series_around(text, reading) or "name the directory that holds the checkpoints",
        )
    match = HUB_NAME.fullmatch(text)
    if match and not match["revision"]:
        return _repository(match["name"], None, layout, reading)
    raise SourceNotFound(f"no such directory: {quoted(text)}", nearest(text))


def _repository(name: str, revision: str | None, layout: str, reading: Reading) -> Source:
    from pipeline.sources.hub import HubRepository

    return HubRepository(name, revision, layout, reading)


def _object(uri: str) -> Source | None:
    """Return a weight file on object storage as a source of its own; None: it is none."""
    from pipeline.sources.objects import ObjectStorage
    from pipeline.transport.object_client import SCHEMES

    folder, _, name = uri.rpartition("/")
    if not uri.startswith(SCHEMES) or not may_be_weights(name):
        return None
    file = ObjectStorage(folder, name)
    return file if file.whole() else None


def _open_one(reading: Reading, folder: Path, uri: str) -> Source:
    """Return the source that a manifest's row names; `folder` is the manifest's: paths begin there."""
    if Path(uri).suffix in _MANIFESTS:
        raise SourceNotFound(f"{quoted(uri)}: a manifest cannot list another one")
    if "://" in uri:
        return _object(uri) or open_source(uri, reading=reading)
    path = folder / uri
    with contextlib.suppress(OSError, ValueError):  # as above: a name that no file can have
        if path.is_file():
            return Directory(path, reading)
        if not path.is_dir() and (match := HUB_NAME.fullmatch(uri)) and not match["revision"]:
            return _repository(uri, None, "auto", reading)
    return open_source(str(path), reading=reading)
