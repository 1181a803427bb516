"""The same tensors in all checkpoints: which are comparable, and where each lies."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from pipeline.checkpoint.roles import Part, Role, by_head, parts, reason_to_leave_out, role, roles
from pipeline.checkpoint.safetensors import StoredTensor
from pipeline.checkpoint.shards import read_tensors, weight_files
from pipeline.errors import FormatError, NothingMatches, quoted
from pipeline.planning.learnt import Learnt
from pipeline.planning.request import Request
from pipeline.planning.select import Selected
from pipeline.sources.base import Candidate, File, Source

_WRAPPERS = re.compile(
    r"^(?:module\.)+|_orig_mod\.|^transformer\.(?=(?:h|wte|wpe|ln_f|word_emb)[._])"
)
_HEADERS_AT_ONCE = 16  # each is a round trip or two; the Hub's client shares one connection pool


@dataclass(frozen=True, slots=True)
class AlignedTensor:
    """One tensor that all checkpoints hold in the same shape."""

    name: str
    shape: tuple[int, ...]
    numel: int
    role: Role
    parts: tuple[Part, ...]
    dtypes: tuple[str, ...]
    """Stored format at each checkpoint."""
    files: tuple[int, ...]
    """Index into the plan's files, at each checkpoint."""
    starts: tuple[int, ...]
    """Absolute offset of the first byte in that file, at each checkpoint."""


@dataclass(frozen=True, slots=True)
class LeftOutTensor:
    """A tensor that is not analysed, and why."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    reason: str


@dataclass(frozen=True, slots=True)
class Alignment:
    files: tuple[File, ...]
    tensors: tuple[AlignedTensor, ...]
    """In the order in which the first checkpoint stores them."""
    left_out: tuple[LeftOutTensor, ...]
    bytes: tuple[int, ...]
    """Size of all weight files of each checkpoint."""


@dataclass(frozen=True, slots=True)
class _Contents:
    """What one checkpoint stores: tensor name → (index of its file, place in it)."""

    files: tuple[File, ...]
    tensors: dict[str, tuple[int, StoredTensor]]
    config: File | None


def align(source: Source, checkpoints: Sequence[Selected], request: Request) -> Alignment:
    """Read all headers and return the tensors that are comparable throughout.

    Raises:
        FormatError: a header or index is malformed, or a checkpoint holds no weights.
        NothingMatches: no tensor is left.
    """
    with Learnt() as learnt, ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
        contents = list(pool.map(lambda entry: _contents(source, entry, learnt), checkpoints))
        config = _config(source, contents[0].config, learnt)
    if any(entry.tensors.keys() != contents[0].tensors.keys() for entry in contents):
        contents = [replace(entry, tensors=_plain_names(entry.tensors)) for entry in contents]
    offsets = _running_sum([len(entry.files) for entry in contents])
    tensors: list[AlignedTensor] = []
    left_out: list[LeftOutTensor] = []
    tied = _tied(contents, config)
    names = _names_in_storage_order(contents)
    firsts = {
        name: next(entry.tensors[name][1] for entry in contents if name in entry.tensors)
        for name in names
    }
    known = roles({name: place.shape for name, place in firsts.items()})
    for name in names:
        stored = [entry.tensors.get(name) for entry in contents]
        first = firsts[name]
        reason = _reason(name, stored, checkpoints, request)
        if reason is None and name in tied:
            reason = f"tied to {tied[name]}"
        if reason is not None:
            left_out.append(LeftOutTensor(name, first.shape, first.dtype, known[name], reason))
            continue
        present = [found for found in stored if found is not None]
        tensors.append(
            AlignedTensor(
                name=name,
                shape=first.shape,
                numel=first.numel,
                role=known[name],
                parts=_parts(name, first, config, request),
                dtypes=tuple(place.dtype for _, place in present),
                files=tuple(o + file for o, (file, _) in zip(offsets, present, strict=True)),
                starts=tuple(place.start for _, place in present),
            )
        )
    if not tensors:
        raise _no_tensor(request, left_out)
    files = tuple(file for entry in contents for file in entry.files)
    sizes = tuple(sum(file.size for file in entry.files) for entry in contents)
    return Alignment(files, tuple(tensors), tuple(left_out), sizes)


def _parts(name: str, place: StoredTensor, config: dict, request: Request) -> tuple[Part, ...]:
    if place.order:  # where its rows lie is not where the layouts say
        return parts(name, place.shape, {})
    found = parts(name, place.shape, config)
    return by_head(found, place.numel, config) if request.by_head else found


def _files(source: Source, candidate: Candidate, learnt: Learnt) -> list[File]:
    if candidate.commit is None:
        return source.files(candidate)
    key = f"files {candidate.origin or source.label} {candidate.commit} {candidate.folder}"
    known = learnt.get(key)
    if known is not None:
        return [File(candidate, *fields) for fields in known]
    found = source.files(candidate)
    learnt.put(key, [(file.path, file.where, file.size, file.identity) for file in found])
    return found


def _tensors(source: Source, file: File, learnt: Learnt) -> dict[str, StoredTensor]:
    """Return a file's tensors; of a commit they are known by the content's hash."""
    key = f"tensors {file.identity}" if file.checkpoint.commit is not None else None
    known = learnt.get(key) if key else None
    if known is not None:
        return {
            name: StoredTensor(dtype, tuple(shape), start, stop, tuple(order))
            for name, dtype, shape, start, stop, order in known
        }
    found = read_tensors(
        lambda start, stop: source.read(file, start, stop), file.size, file.path, file.where
    )
    if key:
        rows = ((n, t.dtype, t.shape, t.start, t.stop, t.order) for n, t in found.items())
        learnt.put(key, list(rows))
    return found


def _text(source: Source, file: File, learnt: Learnt) -> bytes:
    """Return a small file's contents: an index or a configuration."""
    key = f"text {file.identity}" if file.checkpoint.commit is not None else None
    known = learnt.get(key) if key else None
    if known is not None:
        return known.encode()
    found = source.read(file, 0, file.size)
    if key:
        with contextlib.suppress(UnicodeDecodeError):
            learnt.put(key, found.decode())
    return found


def _contents(source: Source, checkpoint: Selected, learnt: Learnt) -> _Contents:
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
    tensors: dict[str, tuple[int, StoredTensor]] = {}
    for index, file in enumerate(files):
        header = _tensors(source, file, learnt)
        for name, place in header.items():
            if name in tensors:
                other = files[tensors[name][0]].path
                raise FormatError(f"{file.where}: tensor {quoted(name)} is also in {quoted(other)}")
            tensors[name] = (index, place)
    return _Contents(files, tensors, listing.get("config.json"))


def _plain_names(stored: dict[str, tuple[int, StoredTensor]]) -> dict:
    """Return the tensors under the names that the network gives them.

    Wrappers add `module.` (data parallel) and `_orig_mod.` (torch.compile); GPT-2 and BLOOM files
    have `transformer.` in front or not, by version. Names stay where that would make two equal.
    """
    renamed = {_WRAPPERS.sub("", name): place for name, place in stored.items()}
    return renamed if len(renamed) == len(stored) else stored


def _config(source: Source, file: File | None, learnt: Learnt) -> dict:
    """Return the contents of a `config.json`: it says how fused tensors are laid out."""
    if file is None or file.size > 1 << 20:
        return {}
    try:
        config = json.loads(_text(source, file, learnt))
    except (ValueError, RecursionError):
        raise FormatError(f"{file.where}: not valid JSON") from None
    return config if isinstance(config, dict) else {}


def _names_in_storage_order(contents: Sequence[_Contents]) -> list[str]:
    """Return all tensor names: neighbours in the first checkpoint's files are neighbours here.

    Neighbours in one tile are then read by one range.
    """
    order: dict[str, None] = {}
    for entry in contents:
        places = entry.tensors
        order.update(
            dict.fromkeys(sorted(places, key=lambda name: (places[name][0], places[name][1].start)))
        )
    return list(order)


def _reason(
    name: str,
    stored: Sequence[tuple[int, StoredTensor] | None],
    checkpoints: Sequence[Selected],
    request: Request,
) -> str | None:
    shapes = {found[1].shape for found in stored if found is not None}
    for found in stored:
        if found is not None:
            reason = reason_to_leave_out(name, found[1].dtype, found[1].shape)
            if reason is not None:
                return reason
    if any(re.search(pattern, name) for pattern in request.exclude):
        return "excluded by --exclude"
    if request.include and not any(re.search(pattern, name) for pattern in request.include):
        return "not matched by --include"
    absent = [c for c, found in zip(checkpoints, stored, strict=True) if found is None]
    if absent:
        return f"absent from {len(absent)} checkpoints, first {absent[0].candidate.name}"
    orders = {found[1].order for found in stored if found is not None}
    if (-1,) in orders:
        return "its elements do not lie side by side (a slice or an expanded tensor)"
    if len(orders) > 1 and len(shapes) == 1:
        return "stored transposed in some checkpoints and not in others"
    if len(shapes) > 1:
        first = stored[0][1].shape if stored[0] else ()
        other, changed = next(
            (checkpoint, found[1].shape)
            for checkpoint, found in zip(checkpoints, stored, strict=True)
            if found is not None and found[1].shape != first
        )
        return f"shape changed from {list(first)} to {list(changed)} at {other.candidate.name}"
    return None


def _tied(contents: Sequence[_Contents], config: dict) -> dict[str, str]:
    """Return which tensors are another one under a second name, and its first name.

    That is where all checkpoints store the two at one place, or where `config.json` says that the
    output head is the embedding and the two have one shape.
    """
    found: dict[str, str] = {}
    firsts: dict[tuple, str] = {}
    for name in _names_in_storage_order(contents):
        places = tuple(
            None if (entry := c.tensors.get(name)) is None else (entry[0], entry[1].start)
            for c in contents
        )
        first = firsts.setdefault((places, contents[0].tensors.get(name, (0, None))[1]), name)
        if first != name and None not in places:
            found[name] = first
    if config.get("tie_word_embeddings") is True:
        of = {role(name).component: name for name in contents[0].tensors if name.endswith("weight")}
        head, embedding = of.get("unembed"), of.get("embed")
        if head and embedding and head not in found and embedding not in found:
            shapes = {contents[0].tensors[name][1].shape for name in (head, embedding)}
            if len(shapes) == 1:
                found[head] = embedding
    return found


def _no_tensor(request: Request, left_out: Sequence[LeftOutTensor]) -> NothingMatches:
    shown = "; ".join(f"{quoted(entry.name, 60)}: {entry.reason}" for entry in left_out[:2])
    return NothingMatches(
        f"{request.source}: no tensor is left of {len(left_out)} ({shown})",
        "check --include and --exclude"
        if request.include or request.exclude
        else "are these checkpoints of the same network?",
    )


def _running_sum(counts: Sequence[int]) -> list[int]:
    sums, total = [], 0
    for count in counts:
        sums.append(total)
        total += count
    return sums
