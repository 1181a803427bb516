"""What a PyTorch pickle says of its tensors, read without executing any of it.

It runs in a world that holds nothing but the names below, each bound to a function or value of ours: no
class of torch, no function of Python is reachable. Whatever else it names is remembered by name, and
what it would make of that is a record: people keep configurations, dates and arrays beside weights.

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
from pipeline.checkpoint.pickle_machine import (
    Machine,
    Maker,
    Named,
    OrderedRecord,
    Record,
    Refused,
)
from pipeline.errors import FormatError, printable, quoted


class StorageType(NamedTuple):
    """A class of storages; `dtype` empty: bytes, typed by the tensors that lie in it."""

    dtype: str
    itemsize: int


class Storage(NamedTuple):
    """The bytes that one or several tensors lie in."""

    key: str
    dtype: str
    itemsize: int
    numel: int
    first: int = 0
    """Where it begins in a larger one, in elements."""


class Split(NamedTuple):
    """How a tensor is divided among ranks: this is one's part of it."""

    dimension: int
    shape: tuple[int, ...]
    """Of the whole."""


class TensorRecord(NamedTuple):
    """One tensor as its pickle describes it. Offsets and strides count elements."""

    storage: Storage | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    unreadable: str = ""
    """Why its values are no weights, if they are not."""
    split: Split | None = None
    """None: it is whole."""
    unknown: str = ""
    """The class that it needs, if nothing is known of that."""


_STORAGES = {dtype.storage: dtype for dtype in DTYPES.values() if dtype.storage}
_DTYPES = {dtype.torch: dtype.name for dtype in DTYPES.values() if dtype.torch}
# Of other storages no tensor is read, but what lies behind them in an old file.
_OTHER_STORAGES = {
    "ComplexDoubleStorage": 16, "QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4,
    "QUInt4x2Storage": 1, "QUInt2x4Storage": 1,
}  # fmt: skip


def _dict(*arguments: Any) -> OrderedRecord:
    """Return an ordered dictionary of pairs, as Python 2 has pickled it, or of nothing."""
    made = OrderedRecord()
    for pair in arguments[0] if arguments else ():
        key, value = pair
        if type(key) is str:  # nothing is found by another
            made[key] = value
    return made


def _no_entries(*_: Any) -> OrderedRecord:
    """Return what a dictionary with a default, or one of counts, is before its entries are set."""
    return OrderedRecord()


def _size(lengths: Any = ()) -> tuple[int, ...]:
    return outside.counts(lengths)


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *_: Any, dtype: Any = None
) -> TensorRecord:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    kind = _shown(dtype) if isinstance(dtype, Named) else dtype or storage.dtype
    if not isinstance(kind, str) or not kind:
        raise ValueError("a tensor without a dtype")
    shape, strides = outside.counts(shape), outside.counts(strides)
    if len(shape) != len(strides) or math.prod(shape) >= 2**63:
        raise ValueError("a tensor whose shape and strides do not fit")
    unreadable = "" if kind in DTYPES else f"not a weight: stored as {kind}"
    offset = storage.first + outside.count(offset)
    return TensorRecord(storage, kind, offset, shape, strides, unreadable)


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, dtype: Any,
    *_: Any,
) -> TensorRecord:  # fmt: skip
    del requires_grad, hooks
    if not isinstance(dtype, str):
        raise ValueError("a tensor without a dtype")
    return _tensor(storage, offset, shape, strides, dtype=dtype)


def _without_values(why: str, shape: Any, dtype: Any = "", unknown: str = "") -> TensorRecord:
    shape = outside.counts(shape)
    kind = _shown(dtype) if isinstance(dtype, Named) else dtype
    if not isinstance(kind, str):
        raise ValueError("a tensor without a dtype")
    return TensorRecord(None, kind, 0, shape, (), why, None, unknown)


def _quantized(storage: Any, offset: Any, shape: Any, *_: Any) -> TensorRecord:
    del offset
    return _without_values("quantized by torch", shape, getattr(storage, "dtype", ""))


def _sparse(layout: Any, data: Any) -> TensorRecord:
    """Return a sparse tensor: its shape comes after its indices (one or two tensors) and its values."""
    del layout
    parts = data if type(data) is tuple else ()
    shape = next((p for p in parts if not isinstance(p, TensorRecord)), None)
    kinds = [part.dtype for part in parts if isinstance(part, TensorRecord)]
    return _without_values("sparse", shape, kinds[-1] if kinds else "")


def _meta(dtype: Any, shape: Any, *_: Any) -> TensorRecord:
    return _without_values("on the meta device: it has no values", shape, dtype)


def _nested(buffer: Any, *_: Any) -> TensorRecord:
    shape = buffer.shape if isinstance(buffer, TensorRecord) else ()
    return _without_values("nested: rows of different lengths", shape)


def _converted(data: Any, dtype: Any, *_: Any) -> TensorRecord:
    """Return a tensor of another device, whose values are kept as one of the CPU's."""
    if isinstance(data, TensorRecord) and data.dtype == dtype:
        return data
    shape = data.shape if isinstance(data, TensorRecord) else ()
    return _without_values("kept as an array of another kind", shape, dtype)


def _wrapper(kind: Any, dtype: Any, shape: Any, *_: Any) -> TensorRecord:
    """Return a tensor of a class of its own, before its state says where its values are."""
    return _without_values(f"of the class {_shown(kind)}", shape, dtype, _shown(kind))


def _of_class(function: Any, kind: Any, arguments: Any, state: Any = None) -> Any:
    """Return a tensor of a class: one of torch's own, whose values lie as in any tensor, or another."""
    if kind == _DTENSOR:
        return _distributed(state)
    if type(function) is not Maker or type(arguments) is not tuple or len(arguments) > _MOST_PARTS:
        return _without_values(f"of the class {_shown(kind)}", (), "", _shown(kind))
    made = function.function(*arguments)
    if kind is _PLAIN or not isinstance(made, TensorRecord):
        return made
    name = _shown(kind)
    return made._replace(unreadable=f"of the class {name}", unknown=name)


def _distributed(state: Any) -> TensorRecord:
    """Return what one rank holds of a tensor: the values of a `DTensor`, and how they were divided.

    Where its last dimension of the mesh alone divides it, in slices that follow each other, ranks hold
    them in order. Source: `torch/distributed/tensor/{_dtensor_spec,placement_types}.py` of torch 2.13.
    """
    values: dict[Any, Any] = {}
    for part in state if type(state) is tuple else (state,):  # attributes, and slots
        values |= part if type(part) is dict else {}
    local, spec = values.get("_local_tensor"), values.get("_spec")
    if not isinstance(local, TensorRecord) or not isinstance(spec, Record):
        raise ValueError("a distributed tensor without values")
    about = spec.get("tensor_meta")
    whole = about.arguments[0] if isinstance(about, Record) and about.arguments else None
    whole = outside.counts(about.get("shape") if whole is None and about else whole)
    placements = spec.get("placements")
    kinds = [
        _shown(p.kind).rpartition(".")[2] if isinstance(p, Record) else "" for p in placements or ()
    ]
    divided = [kind for kind in kinds if kind != "Replicate"]
    if not divided:
        return local
    if divided != ["Shard"] or kinds[-1] != "Shard":
        return local._replace(unreadable=f"divided among ranks as {', '.join(kinds)[:80]}")
    dimension = outside.count(placements[-1].get("dim"))
    expected = [n for d, n in enumerate(whole) if d != dimension]
    if dimension >= len(whole) or expected != [
        n for d, n in enumerate(local.shape) if d != dimension
    ]:
        raise ValueError("a part of a tensor that does not fit it")
    return local if local.shape == whole else local._replace(split=Split(dimension, whole))


def _shown(kind: Any) -> str:
    """Return the name of a class or function, as it may stand in a reason."""
    return printable(kind[:_MOST_SHOWN]) if isinstance(kind, Named) else type(kind).__name__


def _parameter(data: Any, *_: Any) -> Any:
    if not isinstance(data, TensorRecord | Record):
        raise ValueError("a parameter without a tensor")
    return data


_DTENSOR = "torch.distributed.tensor.DTensor"
_PLAIN = Maker(_no_entries)
"""Stands for the classes of tensors that are read as any."""
_MOST_PARTS = 64
_MOST_SHOWN = 100  # characters of a name
NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Maker(_dict),
    ("collections", "defaultdict"): Maker(_no_entries),
    ("collections", "Counter"): Maker(_no_entries),
    ("torch", "Size"): Maker(_size),
    ("torch", "Tensor"): _PLAIN,
    ("torch.nn.parameter", "Parameter"): _PLAIN,
    ("torch.nn.parameter", "Buffer"): _PLAIN,
    ("torch._tensor", "_rebuild_from_type_v2"): Maker(_of_class),
    ("torch._utils", "_rebuild_tensor"): Maker(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Maker(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Maker(_typed_tensor),
    ("torch._utils", "_rebuild_parameter"): Maker(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Maker(_parameter),
    ("torch._utils", "_rebuild_qtensor"): Maker(_quantized),
    ("torch._utils", "_rebuild_sparse_tensor"): Maker(_sparse),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): Maker(_meta),
    ("torch._utils", "_rebuild_nested_tensor"): Maker(_nested),
    ("torch._utils", "_rebuild_wrapper_subclass"): Maker(_wrapper),
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): Maker(_converted),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): Maker(_converted),
    ("torch._utils", "_rebuild_xla_tensor"): Maker(_converted),
    ("torch.storage", "UntypedStorage"): StorageType("", 1),
    **{("torch", n): StorageType(d.name, d.itemsize) for n, d in _STORAGES.items()},
    **{("torch", n): StorageType(f"torch.{n}", size) for n, size in _OTHER_STORAGES.items()},
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}
"""Everything that means something in a file of tensors. Source: `torch/_utils.py`, `torch/_tensor.py`
and `torch/storage.py` of torch 2.13."""


class Loaded(NamedTuple):
    """What a pickle makes."""

    value: Any
    storages: Mapping[str, Storage]
    """All that it speaks of, by key."""
    unknown: tuple[str, ...] = ()
    """What it names that means nothing here: the first few."""
    length: int = 0
    """Of the pickle at most, in bytes."""


def _storage(pid: Any) -> Storage:
    """Return the storage of a persistent id.

    That is ("storage", class, key, location, numel) and, in old files, a view on another one. Those have
    classes of networks, too, with their source: ("module", class, file, text).
    """
    parts: list[Any] = list(pid) if type(pid) is tuple else []
    if len(parts) == 4 and parts[0] == "module" and isinstance(parts[1], Named):
        raise Refused(parts[1])
    if len(parts) not in (5, 6) or parts[0] != "storage":
        raise ValueError("a persistent id that is no storage")
    _, kind, key, _, numel, *view = parts
    if isinstance(kind, Named):
        kind = StorageType(_shown(kind), 0)
    if not isinstance(kind, StorageType):
        raise ValueError("a storage that is not described as one")
    first = 0
    if view and view[0] is not None:
        _, first, _ = view[0]
    return Storage(
        outside.text(key), kind.dtype, kind.itemsize, outside.count(numel), outside.count(first)
    )


def load(stream: io.BytesIO, where: str) -> Loaded:
    """Return the next pickle of a stream, as plain containers and records.

    Where it fails, the stream is left behind what was looked at: at its end if that was too short.

    Raises:
        FormatError: it names what runs programs, holds a whole network, or is malformed.
    """
    length = len(stream.getbuffer()) - stream.tell()
    storages: dict[str, Storage] = {}

    def stored(pid: Any) -> Storage:
        storage = _storage(pid)
        return storages.setdefault(storage.key, storage._replace(first=0)) and storage

    machine = Machine(NAMES, stored, length)
    try:
        return Loaded(machine.run(stream), storages, tuple(machine.unknown), length)
    except Refused as error:
        raise FormatError(
            f"{where}: expected a file of tensors, found a pickle that names {quoted(error)}",
            "nothing of it was executed; save the model's state_dict alone",
        ) from None
    except Exception as error:  # a malformed program may fail in any way
        what = quoted(f"{type(error).__name__}: {error}", 120)
        raise FormatError(f"{where}: not a readable pickle: {what}") from None


def as_tensor(value: Any) -> TensorRecord | None:
    """Return a tensor; one that was to be made by what is not known is of an unknown class."""
    if isinstance(value, TensorRecord):
        return value
    if isinstance(value, Record) and type(value.arguments) is tuple:
        parts = value.arguments[:_MOST_PARTS]
        if any(isinstance(part, TensorRecord | Storage) for part in parts):
            name = _shown(value.kind)
            return _without_values(f"made by {name}", (), "", name)
    return None
