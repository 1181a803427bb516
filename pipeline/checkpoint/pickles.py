"""What a PyTorch pickle says of its tensors, read without executing any of it.

It runs in a world that holds nothing but the names below, each bound to a plain record of ours: no
class of torch, no function of Python is reachable. A name outside the list is an error that tells it.

`torch.load(weights_only=True)` is not used: it was bypassed twice (CVE-2025-32434,
CVE-2026-24747), and it reads storages, one by one.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.checkpoint import outside
from pipeline.checkpoint.dtypes import DTYPES
from pipeline.checkpoint.pickle_machine import Machine, Maker, OrderedRecord, Record, Refused
from pipeline.errors import FormatError, quoted


class StorageType(NamedTuple):
    """A class of storages; `dtype` None: bytes, typed by the tensors that lie in it."""

    dtype: str | None


class Storage(NamedTuple):
    """The bytes that one or several tensors lie in."""

    key: str
    dtype: str | None
    numel: int


class TensorRecord(NamedTuple):
    """One tensor as its pickle describes it. Offsets and strides count elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_STORAGES = {dtype.storage: dtype.name for dtype in DTYPES.values() if dtype.storage}
_DTYPES = {dtype.torch: dtype.name for dtype in DTYPES.values() if dtype.torch}


def _dict(*arguments: Any) -> OrderedRecord:
    """Return an ordered dictionary of pairs, as Python 2 has pickled it, or of nothing."""
    made = OrderedRecord()
    for pair in arguments[0] if arguments else ():
        key, value = pair
        made[outside.text(key)] = value
    return made


def _size(lengths: Any = ()) -> tuple[int, ...]:
    return outside.counts(lengths)


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *_: Any, dtype: str | None = None
) -> TensorRecord:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    kind = dtype or storage.dtype
    if kind is None:
        raise ValueError("a tensor without a dtype")
    shape, strides = outside.counts(shape), outside.counts(strides)
    if len(shape) != len(strides) or math.prod(shape) >= 2**63:
        raise ValueError("a tensor whose shape and strides do not fit")
    return TensorRecord(storage, kind, outside.count(offset), shape, strides)


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, dtype: Any,
    *_: Any,
) -> TensorRecord:  # fmt: skip
    del requires_grad, hooks
    if not isinstance(dtype, str):
        raise ValueError("a tensor without a dtype")
    return _tensor(storage, offset, shape, strides, dtype=dtype)


def _parameter(data: Any, *_: Any) -> TensorRecord:
    if not isinstance(data, TensorRecord):
        raise ValueError("a parameter without a tensor")
    return data


def _path(*parts: Any) -> str:
    if not all(isinstance(part, str) for part in parts) or sum(map(len, parts)) > _MOST_PATH:
        raise ValueError("a path of what is no text")
    return "/".join(parts)


def _itself(value: Any = None) -> Any:
    return value


_DCP = "torch.distributed.checkpoint"
_DCP_RECORDS = (
    "Metadata MetadataIndex TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata"
    " TensorProperties StorageMeta"
)
TENSOR_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Maker(_dict),
    ("torch", "Size"): Maker(_size),
    ("torch._utils", "_rebuild_tensor"): Maker(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Maker(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Maker(_typed_tensor),
    ("torch._utils", "_rebuild_parameter"): Maker(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Maker(_parameter),
    ("torch.storage", "UntypedStorage"): StorageType(None),
    **{("torch", name): StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}
"""Everything a file of tensors may name. Source: `torch/_utils.py` and `torch/storage.py` of torch
2.13."""
METADATA_NAMES: dict[tuple[str, str], Any] = {
    ("torch", "Size"): Maker(_size),
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
    **{(f"{_DCP}.metadata", name): Record for name in _DCP_RECORDS.split()},
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"): Maker(_itself),
    (f"{_DCP}.filesystem", "_StorageInfo"): Record,
    ("torch.serialization", "_get_layout"): Maker(_itself),
    ("pathlib", "PosixPath"): Maker(_path),
    ("pathlib._local", "PosixPath"): Maker(_path),
}
"""Everything the metadata of a distributed checkpoint may name. Source:
`torch/distributed/checkpoint/metadata.py` of torch 2.13, and what it pickles."""

NESTED_UNDER = ("model", "state_dict", "model_state_dict", "module")
_MOST_NESTED = 3
_MOST_PATH = 4096  # characters, as of a system's


def _storage(pid: Any) -> Storage:
    """Return the storage of a persistent id.

    That is ("storage", class, key, location, numel) and, in the oldest files, a view on another one.
    """
    if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
        raise ValueError("a persistent id that is no storage")
    _, kind, key, _, numel, *view = pid
    if view and view[0] is not None:
        raise ValueError("a storage that is a view on another one")
    if not isinstance(kind, StorageType):
        raise ValueError("a storage that is not described as one")
    return Storage(outside.text(key), kind.dtype, outside.count(numel))


def load(
    stream: io.BytesIO, where: str, names: Mapping[tuple[str, str], Any] = TENSOR_NAMES
) -> Any:
    """Return the next pickle of a stream, as plain containers and records.

    Where it fails, the stream is left behind what was looked at: at its end if that was too short.

    Args:
        names: all that it may name.

    Raises:
        FormatError: it names anything but tensors and their containers, or is malformed.
    """
    length = len(stream.getbuffer()) - stream.tell()
    try:
        return Machine(names, _storage, length).run(stream)
    except Refused as error:
        raise FormatError(
            f"{where}: expected a file of tensors, found a pickle that names {quoted(error)}",
            "nothing of it was executed; save the model's state_dict alone",
        ) from None
    except Exception as error:  # a malformed program may fail in any way
        what = quoted(f"{type(error).__name__}: {error}", 120)
        raise FormatError(f"{where}: not a readable pickle: {what}") from None


def state_dict(state: Any, where: str) -> dict[str, TensorRecord]:
    """Return the tensors of a state dict, which may lie under one of the usual keys.

    Raises:
        FormatError: there is none.
    """
    for _ in range(_MOST_NESTED):
        if not isinstance(state, Mapping):
            break
        tensors = {
            name: value
            for name, value in state.items()
            if isinstance(name, str) and isinstance(value, TensorRecord)
        }
        nested = next(
            (state[key] for key in NESTED_UNDER if isinstance(state.get(key), Mapping)), None
        )
        if nested is None:
            if tensors:
                return tensors
            break
        state = nested
    raise FormatError(
        f"{where}: expected a state dict, found no tensors",
        "a state dict may lie under 'model', 'state_dict', 'model_state_dict' or 'module'",
    )


def element_span(record: TensorRecord) -> int:
    """Return how many elements lie between a tensor's first and its last, both included."""
    if 0 in record.shape:
        return 0
    steps = zip(record.shape, record.strides, strict=True)
    return 1 + sum((length - 1) * stride for length, stride in steps)


def extents(record: TensorRecord, most: int) -> list[tuple[int, int]] | None:
    """Return (first element, offset) of each extent of a tensor with gaps or repetitions.

    Offsets count elements from the tensor's first. None if extents would be single elements, or
    more than `most`.
    """
    length, dimension = 1, len(record.shape)
    while dimension and record.strides[dimension - 1] == length:
        dimension -= 1
        length *= record.shape[dimension]
    count = math.prod(record.shape[:dimension])
    if length == 1 or count > most:
        return None
    offsets = [0]
    for size, stride in zip(record.shape[:dimension], record.strides[:dimension], strict=True):
        offsets = [offset + n * stride for offset in offsets for n in range(size)]
    return [(number * length, offset) for number, offset in enumerate(offsets)]


def storage_order(record: TensorRecord) -> tuple[int, ...] | None:
    """Return the dimensions by descending stride if the elements fill their extent, else None.

    A transposed tensor is one whose elements lie in another order; one with gaps or repetitions
    (a slice, an expanded tensor) has no order.
    """
    if 0 in record.shape:
        return ()
    dimensions = [d for d, length in enumerate(record.shape) if length > 1]
    order = sorted(dimensions, key=lambda d: -record.strides[d])
    expected = 1
    for dimension in reversed(order):
        if record.strides[dimension] != expected:
            return None
        expected *= record.shape[dimension]
    return tuple(order)
