"""What one checkpoint stores: its weight files, the tensors in them, its configuration.

Read from heads of files, and from what earlier plans have learnt of commits.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoint.distributed import METADATA, read_distributed
from pipeline.checkpoint.safetensors import Run, StoredTensor
from pipeline.checkpoint.shards import read_tensors, weight_files
from pipeline.errors import FormatError, quoted
from pipeline.planning.plan_cache import Learnt
from pipeline.planning.select import Selected
from pipeline.sources.base import Candidate, File, Source

MAX_TEXT_BYTES = 100_000_000
"""Of an index, as of a header: 300 bytes a tensor make 300,000 tensors."""


@dataclass(frozen=True, slots=True)
class Contents:
    """The weights of one checkpoint."""

    files: tuple[File, ...]
    tensors: dict[str, tuple[int, StoredTensor]]
    """By name: index of the file, place in it."""
    config: File | None


def read_contents(source: Source, checkpoint: Selected, learnt: Learnt) -> Contents:
    """Return what a checkpoint stores.

    Raises:
        FormatError: a header or index is malformed, or there are no weights.
    """
    candidate = checkpoint.candidate
    where = (
        f"{source.label}@{candidate.name}"
        if candidate.commit
        else f"{source.label}/{candidate.name}"
    )
    listing = {file.path: file for file in _files(source, candidate, learnt)}
    names = weight_files(listing.keys(), lambda path: _text(source, listing[path], learnt), where)
    if not names:
        raise FormatError(
            f"{where}: expected weight files, found none among {len(listing)} files",
            "leave this checkpoint out with --revisions or --steps",
        )
    files = tuple(listing[name] for name in names)
    if names[0].endswith(METADATA):
        return Contents(
            files, _distributed(source, files, learnt, where), listing.get("config.json")
        )
    tensors: dict[str, tuple[int, StoredTensor]] = {}
    for index, file in enumerate(files):
        header = _tensors(source, file, learnt)
        for name, place in header.items():
            if name in tensors:
                other = files[tensors[name][0]].path
                raise FormatError(f"{file.where}: tensor {quoted(name)} is also in {quoted(other)}")
            tensors[name] = (index, place)
    return Contents(files, tensors, listing.get("config.json"))


def _distributed(
    source: Source, files: tuple[File, ...], learnt: Learnt, where: str
) -> dict[str, tuple[int, StoredTensor]]:
    key = _key("distributed", *files)
    found = _known_tensors(key, learnt)
    if found is None:
        if files[0].size > MAX_TEXT_BYTES:
            raise FormatError(f"{files[0].where}: {files[0].size:,} bytes are too many")
        found = read_distributed(
            source.read(files[0], 0, files[0].size),
            [(file.path, file.size) for file in files],
            lambda number, start, stop: source.read(files[number], start, stop),
            where,
        )
        _learn_tensors(key, found, learnt)
    return {name: (0, place) for name, place in found.items()}


def read_config(source: Source, file: File | None, learnt: Learnt) -> dict[str, Any]:
    """Return the contents of a `config.json`: it says how fused tensors are laid out."""
    if file is None or file.size > 1 << 20:
        return {}
    try:
        config = json.loads(_text(source, file, learnt))
    except (ValueError, RecursionError):
        raise FormatError(f"{file.where}: not valid JSON") from None
    return config if isinstance(config, dict) else {}


def _files(source: Source, candidate: Candidate, learnt: Learnt) -> list[File]:
    if not candidate.repository:
        return source.files(candidate)
    key = f"files {candidate.repository} {candidate.commit} {candidate.folder}"
    known = learnt.get(key)
    if known is not None:
        return [File(candidate, *fields) for fields in known]
    found = source.files(candidate)
    learnt.put(key, [(file.path, file.where, file.size, file.identity) for file in found])
    return found


def _tensors(source: Source, file: File, learnt: Learnt) -> dict[str, StoredTensor]:
    """Return a file's tensors."""
    key = _key("tensors", file)
    found = _known_tensors(key, learnt)
    if found is None:
        found = read_tensors(
            lambda start, stop: source.read(file, start, stop), file.size, file.path, file.where
        )
        _learn_tensors(key, found, learnt)
    return found


def _key(kind: str, *files: File) -> str | None:
    """Return under what something of a checkpoint's files is kept; None: it is not.

    By the hashes of contents, but within one repository of one endpoint: another could state a hash
    for what it does not belong to, and what it serves is learnt before any hash is checked.
    """
    repository = files[0].checkpoint.repository
    return " ".join([kind, repository, *(file.identity for file in files)]) if repository else None


def _known_tensors(key: str | None, learnt: Learnt) -> dict[str, StoredTensor] | None:
    known = learnt.get(key) if key else None
    if known is None:
        return None
    return {
        name: StoredTensor(
            dtype, tuple(shape), start, stop, tuple(order), tuple(Run(*run) for run in runs)
        )
        for name, dtype, shape, start, stop, order, runs in known
    }


def _learn_tensors(key: str | None, found: dict[str, StoredTensor], learnt: Learnt) -> None:
    if key:
        rows = ((n, t.dtype, t.shape, t.start, t.stop, t.order, t.runs) for n, t in found.items())
        learnt.put(key, list(rows))


def _text(source: Source, file: File, learnt: Learnt) -> bytes:
    """Return a small file's contents: an index or a configuration."""
    key = _key("text", file)
    known = learnt.get(key) if key else None
    if known is not None:
        return known.encode()
    if file.size > MAX_TEXT_BYTES:
        raise FormatError(
            f"{file.where}: expected at most {MAX_TEXT_BYTES:,} bytes, found {file.size:,}"
        )
    found = source.read(file, 0, file.size)
    if key:
        with contextlib.suppress(UnicodeDecodeError):
            learnt.put(key, found.decode())
    return found
