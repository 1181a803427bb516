"""What is written of a combination of checkpoints, and what is read for it. Headers alone are read here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.averaging.weights import weights_of
from pipeline.checkpoint.chunks import by_rows
from pipeline.checkpoint.dtypes import DTYPES, WEIGHT_DTYPES
from pipeline.checkpoint.roles import Role, reason_to_leave_out
from pipeline.checkpoint.safetensors import head_of
from pipeline.checkpoint.shards import weight_suffix
from pipeline.checkpoint.stored import MAX_EXTENTS, StoredTensor
from pipeline.errors import FormatError, RequestError, quoted
from pipeline.planning.align import AlignedTensor, distinct_files, unwanted
from pipeline.planning.choose import choose
from pipeline.planning.contents import Contents, files_of, read_all
from pipeline.planning.plan_cache import PlanCache
from pipeline.planning.request import Request
from pipeline.planning.select import Selected
from pipeline.planning.tiles import TensorRange
from pipeline.sources import open_source
from pipeline.sources.base import File, Source
from pipeline.sources.plain import is_plain
from pipeline.statistics.pieces import PIECE, bounds

FORMATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""What a combination can be stored in."""
BYTES = "INT8"
"""As what the bytes are read of a tensor that is copied: its elements are not looked at."""
_FORM = 1
"""Raised when what is written of a request changes."""
_NUMBERED = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.safetensors")
_COPIED_KINDS, _CODE = ("tokenizer", "configuration"), "text or code"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Written:
    """One tensor of the checkpoint that is written."""

    name: str
    dtype: str
    """As safetensors calls it."""
    shape: tuple[int, ...]
    file: int
    """Which of the files it is in."""
    start: int
    """Absolute offset of its first byte there."""
    num_bytes: int
    read: AlignedTensor
    """Where its elements lie at each weighted checkpoint; of a copied one its bytes."""
    is_copied: bool
    """It is no weight, or not to be averaged: the last weighted checkpoint's bytes."""

    @property
    def itemsize(self) -> int:
        """Bytes that each of the elements that are read becomes."""
        return 1 if self.is_copied else DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class AveragePlan:
    """Everything that decides what is written."""

    source: str
    uri: str
    checkpoints: tuple[Selected, ...]
    """Those that have a weight, in order."""
    weights: tuple[float, ...]
    files: tuple[File, ...] = field(repr=False)
    """What is read."""
    tensors: tuple[AlignedTensor, ...] = field(repr=False)
    """What is read of `written`, in its order."""
    written: tuple[Written, ...] = field(repr=False)
    """File by file, in the order in which they lie there."""
    paths: tuple[str, ...]
    """Of the files of weights."""
    heads: tuple[bytes, ...] = field(repr=False)
    """What each of them begins with."""
    index: str
    """Path of the index; empty: there is one file."""
    beside: tuple[File, ...] = field(repr=False)
    """Configuration and tokenizer, to be copied."""
    unlike: tuple[str, ...]
    """Copied tensors that have another shape or format at some checkpoints, or are not in them."""
    dtype: str | None
    """The format that was asked for."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each file of weights."""
        sizes = [len(head) for head in self.heads]
        for each in self.written:
            sizes[each.file] += each.num_bytes
        return tuple(sizes)

    @property
    def bytes_to_read(self) -> int:
        """Bytes of weights, over all checkpoints."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    def pieces(self) -> Iterator[tuple[int, int, int]]:
        """Yield (tensor, first element, one past the last) in the order in which they are written."""
        for number, tensor in enumerate(self.tensors):
            for first, stop in bounds(0, tensor.numel, PIECE):
                yield number, first, stop

    def ranges(self, done: int) -> tuple[TensorRange, ...]:
        """Return what is left to read after so many pieces."""
        ranges = []
        for number, tensor in enumerate(self.tensors):
            first = min(tensor.numel, done * PIECE)
            done = max(0, done - -(-tensor.numel // PIECE))
            if first < tensor.numel:
                ranges.append(TensorRange(number, first, tensor.numel))
        return tuple(ranges)

    @property
    def request(self) -> dict[str, Any]:
        """What was asked for, for people; the record of it lies beside what is written."""
        return {
            "source": self.source,
            "checkpoints": [
                {
                    "name": each.candidate.name,
                    "commit": each.candidate.commit,
                    "step": each.position.step,
                    "weight": weight,
                }
                for each, weight in zip(self.checkpoints, self.weights, strict=True)
            ],
            "dtype": self.dtype,
            "digest": self.digest,
        }

    @property
    def digest(self) -> str:
        """Of all that decides what is written; what is in files by their identities."""
        digest = hashlib.sha256()
        for value in (
            [_FORM, PIECE, self.uri, [weight.hex() for weight in self.weights]],
            [[c.candidate.name, c.candidate.commit] for c in self.checkpoints],
            [[file.path, file.size, file.identity] for file in (*self.files, *self.beside)],
            [
                [t.name, t.shape, t.dtypes, t.files, t.starts, [*t.scattered.items()]]
                for t in self.tensors
            ],
            [[*self.paths], self.index, self.dtype, [head.hex() for head in self.heads]],
        ):
            digest.update(json.dumps(value).encode() + b"\n")
        return digest.hexdigest()[:32]


def make_average_plan(
    request: Request, weights: Any, dtype: str | None
) -> tuple[AveragePlan, Source]:
    """Return what would be written, and the source that it is read from.

    Args:
        weights: as `weights_of` reads them.
        dtype: of `FORMATS`; None: that of each tensor at the last checkpoint with a weight.

    Raises:
        RequestError: nothing can be planned, or tensors do not align.
    """
    if request.seeds == "all":
        raise RequestError("average is of one run", "name it with --seeds NAME")
    source = open_source(request.source, request.layout, request.reading)
    selected = choose(source, request).checkpoints
    numbers = weights_of(weights, selected)
    kept = [k for k in range(len(selected)) if numbers[k]]
    checkpoints = tuple(selected[k] for k in kept)
    contents: list[Contents] = []
    for each in read_all(source, checkpoints, request.reading):
        if isinstance(each, FormatError):
            raise each
        contents.append(each)
    return _planned(
        source, request, checkpoints, tuple(float(numbers[k]) for k in kept), contents, dtype
    ), source


def _planned(
    source: Source,
    request: Request,
    checkpoints: tuple[Selected, ...],
    weights: tuple[float, ...],
    contents: Sequence[Contents],
    dtype: str | None,
) -> AveragePlan:
    names = [checkpoint.candidate.name for checkpoint in checkpoints]
    last = contents[-1]
    _refuse_codes(contents, names)
    _refuse_missing(contents, names, request)
    files, numbers = distinct_files(contents)
    paths: dict[str, list[tuple[str, AlignedTensor, bool]]] = {}
    unlike: list[str] = []
    for name, (file, place) in last.tensors.items():
        held = [each.tensors.get(name) for each in contents]
        is_copied = bool(_kept(name, place, request))
        if is_copied and any(not each or _kind(each[1]) != _kind(place) for each in held):
            unlike.append(name)
            held = [(file, place)] * len(held)
            of = [numbers[-1]] * len(held)
        else:
            of = numbers
        present = [each for each in held if each is not None]
        for (_, each), checkpoint in zip(present, names, strict=True):
            _refuse(name, each, place, checkpoint, is_copied)
        read = _aligned(name, present, of, is_copied)
        path = _path(last.files[file].path, checkpoints[-1].candidate.is_file)
        paths.setdefault(path, []).append((name, read, is_copied))
    written: list[Written] = []
    heads: list[bytes] = []
    for number, of_file in enumerate(paths.values()):
        head, of_head = _laid_out(number, of_file, last, dtype)
        heads.append(head)
        written += of_head
    for path in paths:
        _check_plain(path, source)
    return AveragePlan(
        source=source.label,
        uri=source.uri,
        checkpoints=checkpoints,
        weights=weights,
        files=files,
        tensors=tuple(each.read for each in written),
        written=tuple(written),
        paths=tuple(paths),
        heads=tuple(heads),
        index=_index([*paths]) if len(paths) > 1 else "",
        beside=_beside(source, checkpoints[-1], last, request),
        unlike=tuple(unlike),
        dtype=dtype,
    )


def _refuse_missing(contents: Sequence[Contents], names: Sequence[str], request: Request) -> None:
    """Refuse tensors that are averaged and are not in all checkpoints.

    Raises:
        RequestError: names them.
    """
    for k, each in enumerate(contents):
        for held, other in ((contents[-1], k), (each, len(contents) - 1)):
            lacking = [
                name
                for name, (_, place) in held.tensors.items()
                if name not in contents[other].tensors and not _kept(name, place, request)
            ]
            if lacking:
                shown = ", ".join(quoted(name) for name in lacking[:_SHOWN])
                more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
                where = names[k] if held is each else names[-1]
                raise RequestError(
                    f"{where} holds {shown}{more}, which {names[other]} does not",
                    "--exclude REGEX takes tensors from the last checkpoint as they are; --steps or"
                    " --revisions leave a checkpoint out",
                )


def _refuse_codes(contents: Sequence[Contents], names: Sequence[str]) -> None:
    """Refuse codes that are weights only with their scales: sums of them are none of their codes."""
    for each, checkpoint in zip(contents, names, strict=True):
        for name, (_, place) in each.tensors.items():
            if place.scales or place.lost:
                raise RequestError(
                    f"{checkpoint}: tensor {quoted(name)} is quantized, or stored in a form that is not"
                    " averaged",
                    "average the checkpoints that it was made from",
                )


def _kept(name: str, place: StoredTensor, request: Request) -> str | None:
    """Return why a tensor is not averaged, or None if it is."""
    return reason_to_leave_out(name, place.dtype, place.shape) or unwanted(name, request)


def _kind(place: StoredTensor) -> tuple[str, tuple[int, ...]]:
    return place.dtype, place.shape


def _refuse(
    name: str, place: StoredTensor, last: StoredTensor, checkpoint: str, is_copied: bool
) -> None:
    where = f"{checkpoint}: tensor {quoted(name)}"
    if place.unreadable:
        raise RequestError(f"{where} cannot be read: {place.unreadable}")
    if place.order:
        raise RequestError(
            f"{where} is stored transposed, or as a slice",
            "save it with .contiguous()",
        )
    if not is_copied and place.shape != last.shape:
        raise RequestError(
            f"{where}: expected the shape {list(last.shape)} of the last checkpoint, found"
            f" {list(place.shape)}",
            "--exclude REGEX takes tensors from the last checkpoint as they are",
        )
    if not is_copied and place.dtype not in WEIGHT_DTYPES:
        raise RequestError(f"{where}: expected weights, found {place.dtype}")


def _aligned(
    name: str,
    held: Sequence[tuple[int, StoredTensor]],
    numbers: Sequence[Sequence[int]],
    is_copied: bool,
) -> AlignedTensor:
    """Return where a tensor lies at each checkpoint; of a copied one where its bytes do."""
    present = [
        (file, place if place.ranks == 1 else by_rows(place, name, MAX_EXTENTS))
        for file, place in held
    ]
    first = present[0][1]
    size = DTYPES[first.dtype].bits
    if is_copied and first.numel * size % 8:
        raise RequestError(f"tensor {quoted(name)}: {first.numel} elements of {first.dtype}")
    numel = first.numel * size // 8 if is_copied else first.numel
    scale = size // 8 if is_copied else 1
    return AlignedTensor(
        name=name,
        shape=first.shape,
        numel=numel,
        role=Role(None, None, "other", None, "weight"),
        parts=(),
        dtypes=tuple(BYTES if is_copied else place.dtype for _, place in present),
        files=tuple(of[file] for of, (file, _) in zip(numbers, present, strict=True)),
        starts=tuple(place.start for _, place in present),
        scattered={
            k: tuple(
                e._replace(first=e.first * scale, file=of[file + e.file]) for e in place.extents
            )
            for k, (of, (file, place)) in enumerate(zip(numbers, present, strict=True))
            if place.extents
        },
    )


def _laid_out(
    number: int,
    tensors: Sequence[tuple[str, AlignedTensor, bool]],
    last: Contents,
    dtype: str | None,
) -> tuple[bytes, list[Written]]:
    """Return the head of a safetensors file, and its tensors, wider elements first so that all are aligned."""
    formats = {
        name: last.tensors[name][1].dtype if is_copied else dtype or last.tensors[name][1].dtype
        for name, _, is_copied in tensors
    }
    ordered = sorted(tensors, key=lambda each: -DTYPES[formats[each[0]]].bits)
    sizes = [
        read.numel * (1 if is_copied else DTYPES[formats[name]].itemsize)
        for name, read, is_copied in ordered
    ]
    head, starts = head_of(
        [
            (name, formats[name], read.shape, size)
            for (name, read, _), size in zip(ordered, sizes, strict=True)
        ],
        {"format": "pt"},
    )
    written = [
        Written(name, formats[name], read.shape, number, len(head) + start, size, read, is_copied)
        for (name, read, is_copied), start, size in zip(ordered, starts, sizes, strict=True)
    ]
    return head, written


def _path(path: str, is_alone: bool) -> str:
    """Return what a file of weights is called as safetensors: as it is, or as transformers would.

    One that is a checkpoint alone has the usual name; those of formats that divide tensors among files
    become one.
    """
    if is_alone:
        return "model.safetensors"
    folder, slash, name = path.rpartition("/")
    suffix = weight_suffix(name)
    if suffix == ".safetensors":
        return path
    name = name.removeprefix("pytorch_").removesuffix(suffix) if suffix else "model"
    return f"{folder}{slash}{name}.safetensors"


def _index(paths: Sequence[str]) -> str:
    """Return the path of the index of several files."""
    folder, slash, name = paths[0].rpartition("/")
    match = _NUMBERED.fullmatch(name)
    return f"{folder}{slash}{match['stem'] if match else 'model'}.safetensors.index.json"


def _beside(
    source: Source, checkpoint: Selected, contents: Contents, request: Request
) -> tuple[File, ...]:
    """Return the files of a checkpoint that a network is made with: configuration, tokenizer, code."""
    wanted = {
        path
        for path, kind in contents.unread.items()
        if kind.what in _COPIED_KINDS or (kind.what == _CODE and path.endswith(".py"))
    }
    with PlanCache() as cache:
        listed = files_of(source, checkpoint.candidate, cache, request.reading)
    files = tuple(file for file in listed if file.path in wanted)
    for file in files:
        _check_plain(file.path, source)
    return files


def _check_plain(path: str, source: Source) -> None:
    if not is_plain(path):
        raise FormatError(f"{source.label}: {quoted(path)} is no name for a file", "rename it")
