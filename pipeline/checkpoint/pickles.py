"""What a PyTorch pickle says of its tensors, read without executing any of it.

A pickle is a program. Here it runs in a world that holds nothing but the names below, each bound
to a plain record of ours: no class of torch, no function of Python is reachable. A name outside
the list is an error that tells it. Opcodes are looked through first, because some of them make
the interpreter's own unpickler allocate what a number in the file says.

`torch.load(weights_only=True)` is not used: it was bypassed twice (CVE-2025-32434,
CVE-2026-24747), and it reads storages, one by one.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pipeline.errors import FormatError, quoted

MAX_PICKLE_BYTES = 100_000_000
"""As for safetensors headers. A state dict takes about 200 bytes a tensor."""

_OPCODE_NAMES = """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE
    BININT BININT1 BININT2 INT LONG LONG1 BINFLOAT FLOAT
    BINUNICODE SHORT_BINUNICODE UNICODE BINSTRING SHORT_BINSTRING STRING
    EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE
    BINBYTES SHORT_BINBYTES BINBYTES8
    GLOBAL STACK_GLOBAL INST OBJ NEWOBJ NEWOBJ_EX REDUCE BUILD BINPERSID
"""
_OPCODES = frozenset(_OPCODE_NAMES.split())
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


# What a pickle can get hold of is made of tuples, and of dictionaries that take a state as their
# entries: the opcode BUILD could set attributes of anything else, frozen data classes included, and
# change what the next file is read with.


class StorageType(NamedTuple):
    """A class of storages; `dtype` None: bytes, typed by the tensors that lie in it."""

    dtype: str | None


class Storage(NamedTuple):
    """One run of bytes that tensors lie in."""

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


class _Maker(NamedTuple):
    """A function of this module that a pickle may call."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class _Dict(dict):
    """An ordered dictionary, of which attributes that a pickle sets (`_metadata`) are dropped."""

    def __setstate__(self, state: object) -> None:
        del state


class Record(dict):
    """An object of some class, as what its pickle sets: attributes, or else one `state`.

    Hashed by identity.
    """

    def __setstate__(self, state: object) -> None:
        self.update(state if isinstance(state, dict) else {"state": state})

    # A dict says it has no hash; some of these are keys of a dictionary, each by itself.
    def __hash__(self) -> int:  # type: ignore[override]  # dict's is None
        return id(self)


_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "uint16": "U16", "uint32": "U32",
    "uint64": "U64", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip


def _dict(*arguments: Any) -> _Dict:
    return _Dict(*arguments)


def _size(lengths: Any = ()) -> tuple[int, ...]:
    return tuple(lengths)


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *_: Any, dtype: str | None = None
) -> TensorRecord:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    kind = dtype or storage.dtype
    if kind is None:
        raise ValueError("a tensor without a dtype")
    counts = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(
        type(count) is int and 0 <= count < 2**63 for count in counts
    ):
        raise ValueError("a tensor whose shape, strides or offset are not counts")
    return TensorRecord(storage, kind, offset, tuple(shape), tuple(strides))


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
    return "/".join(map(str, parts))


def _itself(value: Any = None) -> Any:
    return value


_DCP = "torch.distributed.checkpoint"
_DCP_RECORDS = (
    "Metadata MetadataIndex TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata"
    " TensorProperties StorageMeta"
)
TENSOR_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Maker(_dict),
    ("torch", "Size"): _Maker(_size),
    ("torch._utils", "_rebuild_tensor"): _Maker(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Maker(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Maker(_typed_tensor),
    ("torch._utils", "_rebuild_parameter"): _Maker(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Maker(_parameter),
    ("torch.storage", "UntypedStorage"): StorageType(None),
    **{("torch", name): StorageType(dtype) for name, dtype in _STORAGES.items()},
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}
"""Everything a file of tensors may name. Source: `torch/_utils.py` and `torch/storage.py` of torch
2.13."""
METADATA_NAMES: dict[tuple[str, str], Any] = {
    ("torch", "Size"): _Maker(_size),
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
    **{(f"{_DCP}.metadata", name): Record for name in _DCP_RECORDS.split()},
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"): _Maker(_itself),
    (f"{_DCP}.filesystem", "_StorageInfo"): Record,
    ("torch.serialization", "_get_layout"): _Maker(_itself),
    ("pathlib", "PosixPath"): _Maker(_path),
    ("pathlib._local", "PosixPath"): _Maker(_path),
}
"""Everything the metadata of a distributed checkpoint may name. Source:
`torch/distributed/checkpoint/metadata.py` of torch 2.13, and what it pickles."""

NESTED_UNDER = ("model", "state_dict", "model_state_dict", "module")
_MOST_NESTED = 3


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, names: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(stream)
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._names[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Storage:
        # ("storage", class, key, location, numel) and, in the oldest files, a view on another one
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ValueError("a persistent id that is no storage")
        _, kind, key, _, numel, *view = pid
        if view and view[0] is not None:
            raise ValueError("a storage that is a view on another one")
        if not isinstance(kind, StorageType) or type(numel) is not int or numel < 0:
            raise ValueError("a storage that is not described as one")
        return Storage(str(key), kind.dtype, numel)


class _Refused(Exception):
    """A pickle names something that is not on the list."""


def load(
    stream: io.BytesIO, where: str, names: Mapping[tuple[str, str], Any] = TENSOR_NAMES
) -> Any:
    """Return the next pickle of a stream, as plain containers and records.

    Args:
        names: all that it may name.

    Raises:
        FormatError: it names anything but tensors and their containers, or is malformed.
    """
    start = stream.tell()
    try:
        limit = len(stream.getbuffer())
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name not in _OPCODES:
                raise ValueError(f"opcode {opcode.name}")
            if opcode.name in _PUTS and isinstance(argument, int) and argument > limit:
                raise ValueError(f"a memo of {argument:,} entries")
        stop = stream.tell()
        stream.seek(start)
        found = _Unpickler(stream, names).load()
        stream.seek(stop)
        return found
    except _Refused as error:
        raise FormatError(
            f"{where}: expected a file of tensors, found a pickle that names {quoted(error)}",
            "nothing of it was executed; save the model's state_dict alone",
        ) from None
    except Exception as error:  # a malformed program may fail in any way
        what = quoted(f"{type(error).__name__}: {error}", 120)
        raise FormatError(f"{where}: not a readable pickle: {what}") from None


def state_dict(found: Any, where: str) -> dict[str, TensorRecord]:
    """Return the tensors of a state dict, which may lie under one of the usual keys.

    Raises:
        FormatError: there is none.
    """
    for _ in range(_MOST_NESTED):
        if not isinstance(found, Mapping):
            break
        tensors = {
            name: value
            for name, value in found.items()
            if isinstance(name, str) and isinstance(value, TensorRecord)
        }
        nested = next(
            (found[key] for key in NESTED_UNDER if isinstance(found.get(key), Mapping)), None
        )
        if nested is None:
            if tensors:
                return tensors
            break
        found = nested
    raise FormatError(
        f"{where}: expected a state dict, found no tensors",
        "a state dict may lie under 'model', 'state_dict', 'model_state_dict' or 'module'",
    )


def extent(record: TensorRecord) -> int:
    """Return how many elements lie between a tensor's first and its last, both included."""
    if 0 in record.shape:
        return 0
    steps = zip(record.shape, record.strides, strict=True)
    return 1 + sum((length - 1) * stride for length, stride in steps)


def runs(record: TensorRecord, most: int) -> list[tuple[int, int]] | None:
    """Return where a tensor with gaps or repetitions lies: (first element, offset) of each run.

    A run is what lies side by side; offsets count elements from the tensor's first. None if that
    would be single elements, or more runs than `most`.
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
