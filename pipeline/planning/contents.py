"""What one checkpoint stores: its weight files, the tensors in them, its configuration.

Read from heads of files, and from what earlier plans have kept of commits.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipeline.checkpoint.file_kinds import (
    NOT_UNDERSTOOD,
    PARTS_OF_DISTRIBUTED,
    TRAINER_STATE,
    UNREAD_WEIGHTS,
    FileKind,
    file_kind,
)
from pipeline.checkpoint.formats import Format, read_header
from pipeline.checkpoint.layouts import listed, weights_folder
from pipeline.checkpoint.reading import BY_TABLES, Reading
from pipeline.checkpoint.scales import with_scales
from pipeline.checkpoint.shards import chosen_files, weight_files_in, weight_suffix
from pipeline.checkpoint.stored import Extent, StoredTensor
from pipeline.checkpoint.weight_file import WeightFile
from pipeline.errors import FormatError, quoted
from pipeline.planning.plan_cache import PlanCache
from pipeline.planning.select import Selected
from pipeline.sources.base import Candidate, File, Source
from pipeline.training.logs import is_log

HEADERS_AT_ONCE = 16
"""Each is a round trip or two; the Hub's client shares one connection pool."""


@dataclass(frozen=True, slots=True)
class Contents:
    """The weights of one checkpoint."""

    files: tuple[File, ...]
    tensors: dict[str, tuple[int, StoredTensor]]
    """By name: index of the file, place in it."""
    config: File | None
    unread: Mapping[str, FileKind] = field(default_factory=dict)
    """Its files that are not read as weights, by path, and what they are."""
    logs: tuple[File, ...] = ()
    """Those of them in which trainers log."""


def read_contents(
    source: Source, checkpoint: Selected, cache: PlanCache, reading: Reading = BY_TABLES
) -> Contents:
    """Return what a checkpoint stores.

    Args:
        reading: what the user says of names and files.

    Raises:
        FormatError: a header or index is malformed, or there are no weights.
    """
    candidate = checkpoint.candidate
    where = (
        f"{source.label}@{candidate.name}"
        if candidate.commit
        else f"{source.label}/{candidate.name}"
    )
    listing = {file.path: file for file in files_of(source, candidate, cache, reading)}

    def read_text(path: str) -> bytes:
        if path not in listing:
            raise FormatError(f"{where}: expected {quoted(path)}, found no such file")
        return _text(source, listing[path], cache)

    if reading.weights:
        chosen = [p for p in listing if candidate.is_file or reading.are_weights(p)]
        weights, base = chosen_files(chosen, read_text, where), ""
    else:
        base = weights_folder(listed(dict.fromkeys(listing)), "") or ""
        weights = weight_files_in(base, listing, read_text, where)
    absent = [path for path in weights.paths if path not in listing]
    if absent:
        raise FormatError(
            f"{where}: shard {quoted(absent[0])} is absent",
            "the upload or download is incomplete: fetch it again, or leave the checkpoint out",
        )
    if not weights.paths:
        raise FormatError(
            f"{where}: expected weight files, found none among {len(listing)} files",
            "say which they are with --weights GLOB, or leave this checkpoint out with --revisions",
        )
    files = tuple(listing[path] for path in weights.paths)
    tensors: dict[str, tuple[int, StoredTensor]] = {}
    for index, unit in enumerate(weights.units(files)):
        state = candidate.state or reading.state
        for name, tensor in _tensors(source, unit, weights.format, cache, state).items():
            if name in tensors:
                other = files[tensors[name][0]].path
                raise FormatError(
                    f"{unit[0].where}: tensor {quoted(name)} is also in {quoted(other)}",
                    "say which file counts with --weights GLOB",
                )
            tensors[name] = (index, tensor)
    beside = sorted(listing.keys() - {*weights.paths})
    unread = {path: _unread_kind(path, weights.format) for path in beside}
    logs = tuple(listing[path] for path in unread if is_log(path))
    return Contents(files, with_scales(tensors), _config(listing, base), unread, logs)


def _unread_kind(path: str, format: Format | None) -> FileKind:
    if format and format.without_weights and format.without_weights.fullmatch(path):
        return TRAINER_STATE
    if kind := file_kind(path):
        return kind if kind.what != PARTS_OF_DISTRIBUTED else UNREAD_WEIGHTS
    return UNREAD_WEIGHTS if weight_suffix(path) else NOT_UNDERSTOOD


def _config(listing: Mapping[str, File], base: str) -> File | None:
    """Return the configuration: beside the weights, above them, or where verl puts it."""
    folders = [base, *(base.rsplit("/", up)[0] for up in range(1, base.count("/") + 1)), ""]
    folders.append(f"{base}/huggingface" if base else "huggingface")
    paths = (f"{folder}/config.json" if folder else "config.json" for folder in folders)
    return next((listing[path] for path in paths if path in listing), None)


def read_all(
    source: Source, checkpoints: Sequence[Selected], reading: Reading = BY_TABLES
) -> list[Contents | FormatError]:
    """Return what each checkpoint stores, or why it cannot be read."""

    def read(checkpoint: Selected) -> Contents | FormatError:
        try:
            return read_contents(source, checkpoint, cache, reading)
        except FormatError as error:
            return error

    with PlanCache() as cache, ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        return list(pool.map(read, checkpoints))


def read_config(source: Source, file: File | None, cache: PlanCache) -> dict[str, Any]:
    """Return the contents of a `config.json`: it says how fused tensors are laid out."""
    if file is None or file.size > 1 << 20:
        return {}
    try:
        config = json.loads(_text(source, file, cache))
    except (ValueError, RecursionError):
        raise FormatError(f"{file.where}: not valid JSON") from None
    return config if isinstance(config, dict) else {}


def files_of(
    source: Source, candidate: Candidate, cache: PlanCache, reading: Reading = BY_TABLES
) -> list[File]:
    """Return the files of a checkpoint; of a commit as an earlier plan has kept them."""
    if not candidate.repository:
        return source.files(candidate)
    # how names are read says which folders in it are checkpoints of their own
    place = [candidate.repository, candidate.commit, candidate.path, reading.names]
    key = json.dumps(["files", *place])
    known = cache.get(key)
    if known is not None:
        return [File(candidate, *fields) for fields in known]
    files = source.files(candidate)
    cache.put(key, [(file.path, file.where, file.size, file.identity) for file in files])
    return files


def _tensors(
    source: Source, files: tuple[File, ...], format: Format | None, cache: PlanCache, state: str
) -> dict[str, StoredTensor]:
    """Return the tensors that the header of the first of the files speaks of."""
    key = _key(f"tensors {state}".rstrip(), *files)
    known = _known_tensors(key, cache)
    if known is not None:
        return known
    first, *others = (_weight_file(source, file) for file in files)
    for each in (first, *others):
        each.state = state
    first.others = tuple(others)
    tensors = format.read(first) if format else read_header(first)
    if key:
        rows = (
            (n, t.dtype, t.shape, t.start, t.stop, t.order, t.extents, t.unreadable, t.lost,
             t.ranks)
            for n, t in tensors.items()
        )  # fmt: skip
        cache.put(key, list(rows))
    return tensors


def _weight_file(source: Source, file: File) -> WeightFile:
    return WeightFile(
        file.path, file.size, file.where, lambda start, stop: source.read(file, start, stop)
    )


def _key(kind: str, *files: File) -> str | None:
    """Return under what something of a checkpoint's files is kept; None: it is not.

    By their paths, which say what files are, and the hashes of contents; but within one repository
    of one endpoint: another could state a hash for what it does not belong to, and what it serves is
    kept before any hash is checked.
    """
    repository = files[0].checkpoint.repository
    told = [(file.path, file.identity) for file in files]
    return json.dumps([kind, repository, *told]) if repository else None


def _known_tensors(key: str | None, cache: PlanCache) -> dict[str, StoredTensor] | None:
    known = cache.get(key) if key else None
    if known is None:
        return None
    return {
        name: StoredTensor(
            dtype,
            tuple(shape),
            start,
            stop,
            tuple(order),
            tuple(Extent(*e) for e in extents),
            *rest,
        )
        for name, dtype, shape, start, stop, order, extents, *rest in known
    }


def _text(source: Source, file: File, cache: PlanCache) -> bytes:
    """Return a small file's contents: an index or a configuration."""
    key = _key("text", file)
    known = cache.get(key) if key else None
    if known is not None:
        return known.encode()
    data = _weight_file(source, file).whole()
    if key:
        with contextlib.suppress(UnicodeDecodeError):
            cache.put(key, data.decode())
    return data
