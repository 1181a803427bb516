"""Networks that ranks of tensor parallelism hold in parts, each in a file of its own.

No file says how its tensors were divided; the training library knows it by the module. Here a tensor's
role, by its name, says which dimension ranks divide, and its shape must agree: rows of projections that
take what every rank has (Q, K, V, up, gate) and of the vocabulary; columns of those whose input is
divided (attention output, down); of norms every rank has a copy. A matrix that does not agree is refused.

Sources: `megatron/core/tensor_parallel/layers.py` of Megatron-LM; `tools/ckpts/convert_neox_to_hf.py` of
GPT-NeoX, which sums the biases behind a sum over ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from math import prod

from pipeline.checkpoint.chunks import Chunk, joined
from pipeline.checkpoint.dtypes import DTYPES
from pipeline.checkpoint.roles import Shape, reason_to_leave_out, roles
from pipeline.checkpoint.stored import Extent, StoredTensor
from pipeline.errors import FormatError, quoted

Held = tuple[int, StoredTensor]
"""Number of the file, as of `Extent`, and place in it."""

CONVERT = "convert the checkpoint to one part, as its training library does"
_BY_ROWS = frozenset(
    [
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_qkv",
        "cross_q",
        "cross_k",
        "cross_v",
        "mlp_up",
        "mlp_gate",
    ]
)
_BY_COLUMNS = frozenset({"attn_out", "cross_out", "mlp_down"})
_COPIED = frozenset({"position", "router"})


def together(ranks: Sequence[Mapping[str, Held]], where: str) -> dict[str, StoredTensor]:
    """Return the tensors of a network, given what each rank holds of it.

    Columns lie rank by rank (`StoredTensor.ranks`): a row of them is some kilobytes, and each
    would be a request. A vector of which it is not certain how ranks hold it is left out with its reason.

    Raises:
        FormatError: ranks hold different tensors, or it is not certain how they divide a matrix.
    """
    first, *others = ranks
    if not others:
        return {name: in_file(*held) for name, held in first.items()}
    for number, other in enumerate(others, 1):
        if odd := sorted(first.keys() ^ other.keys()):
            raise FormatError(
                f"{where}: expected the same tensors on every rank, found {quoted(odd[0])} on one of"
                f" ranks 0 and {number} alone",
                CONVERT,
            )
    divisions = _Divisions({name: held[1].shape for name, held in first.items()}, len(ranks))
    return {name: _joined(name, [rank[name] for rank in ranks], divisions, where) for name in first}


class _Division(Enum):
    """How ranks hold a tensor."""

    COPIES = auto()
    ROWS = auto()
    HALVES = auto()
    """Rows, of which each rank's are one half of the gate and one of the way up."""
    COLUMNS = auto()


class _Divisions:
    """How ranks divide the tensors of one network, by names and shapes."""

    def __init__(self, shapes: Mapping[str, Shape], count: int) -> None:
        self._shapes, self._count = shapes, count
        self._roles = roles(dict.fromkeys(shapes, ()))  # by names: shapes are of parts
        norms = Counter(
            shapes[name]
            for name, role in self._roles.items()
            if role.component == "norm" and len(shapes[name]) == 1
        )
        # of the network: those within attention are fewer, or shorter
        most = max(norms.values(), default=0)
        self._width = max((n for (n,), often in norms.items() if often == most), default=0)
        self._inner = {
            _parent(name): shapes[name][1]
            for name, role in self._roles.items()
            if role.component == "mlp_down" and len(shapes[name]) == 2
        }
        self._vocabularies = {
            shapes[name][0] * (count if self.of(name) is _Division.ROWS else 1)
            for name, role in self._roles.items()
            if role.component == "embed" and len(shapes[name]) == 2
        }
        # Megatron adds these biases once; GPT-NeoX, whose names are those of older ones, on each rank
        self._added_once = any("self_attention" in name for name in shapes)

    def of(self, name: str) -> _Division | None:
        """Return how ranks hold a tensor; None: it is not certain."""
        shape = self._shapes[name]
        if len(shape) == 2 and self._width:
            return self._of_matrix(name, *shape)
        return self._of_vector(name, *shape) if len(shape) == 1 else None

    def _of_matrix(self, name: str, rows: int, columns: int) -> _Division | None:
        role = self._roles[name]
        takes_all = columns == self._width
        match role.component:
            case "mlp_up" | "mlp_gate" if takes_all:
                inner = self._inner.get(_parent(name))
                return {inner: _Division.ROWS, 2 * (inner or 0): _Division.HALVES}.get(rows)
            case component if component in _BY_ROWS and takes_all:
                return _Division.ROWS
            case component if component in _BY_COLUMNS and rows == self._width:
                return _Division.COLUMNS
            case component if component in _COPIED and takes_all:
                return _Division.COPIES
            case "embed" if takes_all:
                return _Division.ROWS
            case "embed" if columns * self._count == self._width:
                return _Division.COLUMNS
            case "unembed" | "other" if takes_all and role.layer is None:
                return _Division.ROWS if rows * self._count in self._vocabularies else None
        return None

    def _of_vector(self, name: str, length: int) -> _Division | None:
        component = self._roles[name].component
        if component == "norm":
            return _Division.COPIES if length == self._width else None
        if component == "unembed" and length * self._count in self._vocabularies:
            return _Division.ROWS
        weight = f"{name.removesuffix('bias')}weight"
        if not name.endswith("bias") or self._shapes.get(weight, ())[:1] != (length,):
            return None
        division = self.of(weight)
        if division is _Division.COLUMNS:
            return _Division.COPIES if self._added_once else None
        return division


def _parent(name: str) -> str:
    """Return the module that holds the module of a parameter."""
    return name.rpartition(".")[0].rpartition(".")[0]


def _joined(name: str, held: Sequence[Held], divisions: _Divisions, where: str) -> StoredTensor:
    """Return a tensor, given what each rank holds of it."""
    number, first = held[0]
    if first.unreadable or reason_to_leave_out(name, first.dtype, first.shape):
        return in_file(number, first)
    division = divisions.of(name)
    for rank, (_, tensor) in enumerate(held):
        if (tensor.shape, tensor.dtype) != (first.shape, first.dtype):
            raise FormatError(
                f"{where}: {quoted(name)}: expected {list(first.shape)} {first.dtype} on every rank,"
                f" found {list(tensor.shape)} {tensor.dtype} on rank {rank}"
            )
    if division is _Division.COPIES:
        return in_file(number, first)
    if len(first.shape) > 1 and (division is None or DTYPES[first.dtype].itemsize == 1):
        raise FormatError(
            f"{where}: {quoted(name)}: ranks hold {list(first.shape)} {first.dtype} each, and neither"
            " its name nor its shape says how they divide it",
            CONVERT,
        )
    if division is None:
        why = "whether ranks hold copies, parts or summands of it is not certain"
        return replace(first, unreadable=why, lost=True)
    if any(tensor.order or len(tensor.extents) > 1 for _, tensor in held):
        why = "ranks hold it transposed, or as slices of others"
        return replace(first, unreadable=why, lost=True)
    return _divided(held, division, f"{where}: {quoted(name)}")


def _divided(held: Sequence[Held], division: _Division, where: str) -> StoredTensor:
    _, first = held[0]
    count, size = len(held), DTYPES[first.dtype].itemsize
    rows, *others = first.shape
    if division is _Division.COLUMNS:
        shape = (rows, others[0] * count)
        extents = tuple(
            Extent(rank * first.numel, number, tensor.start)
            for rank, (number, tensor) in enumerate(held)
        )
        stop = first.start + count * first.numel * size
        return StoredTensor(first.dtype, shape, first.start, stop, (), extents, ranks=count)
    pieces = 2 if division is _Division.HALVES else 1
    length = rows // pieces
    chunks = [
        Chunk(
            ((piece * count + rank) * length, *(0 for _ in others)),
            (length, *others),
            number,
            tensor.start + piece * length * prod(others) * size,
        )
        for piece in range(pieces)
        for rank, (number, tensor) in enumerate(held)
    ]
    return joined((rows * count, *others), first.dtype, chunks, where, len(chunks))


def in_file(number: int, tensor: StoredTensor) -> StoredTensor:
    """Return a tensor of the file with this number, as it is listed with the first."""
    if not number or tensor.unreadable:
        return tensor
    extents = tensor.extents or (Extent(0, 0, tensor.start),)
    return replace(tensor, extents=tuple(e._replace(file=number) for e in extents))
