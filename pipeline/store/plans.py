"""Plans as they are kept beside sums: what figures are made again from where no source is at hand.

JSON by the fields of the plan's own classes, compressed, behind a checksum. What no figure depends on
is left out: files, and what is known of the training, which the run's tables have.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import xxhash

from pipeline.errors import FormatError, StoreUnusable
from pipeline.planning.make import RESULT_FORMAT
from pipeline.planning.plan import Plan
from pipeline.store.folder import Folder
from pipeline.training.metrics import Training

AGAIN = "`hallmarks analyze` with its SOURCE makes it again"
_CHECKSUM = 16  # bytes
_SCALARS = frozenset({int, float, str, bool, NoneType})
_MOST = 1 << 30  # of JSON: a plan of 12,000 tensors at 24 checkpoints has 20 MB


def encode_plan(plan: Plan) -> bytes:
    """Return a plan as the bytes of a file."""
    bare = replace(plan, files=(), account=replace(plan.account, logs=()))
    bare = bare.knowing([({}, Training())] * len(plan.firsts))
    text = json.dumps([RESULT_FORMAT, _plain(bare)])
    data = zlib.compress(text.encode(), 1)
    return xxhash.xxh3_128_digest(data) + data


def decode_plan(data: bytes) -> Plan:
    """Return the plan that a file's bytes hold.

    Raises:
        FormatError: not such a file, damaged, or of a version with other plans or other sums.
    """
    checksum, data = data[:_CHECKSUM], data[_CHECKSUM:]
    if checksum != xxhash.xxh3_128_digest(data):
        raise FormatError("damaged or gone")
    try:
        text = zlib.decompressobj().decompress(data, _MOST)
        version, plain = json.loads(text)
        if version != RESULT_FORMAT:
            raise FormatError("plan of a version with other sums")
        return _reader(Plan)(plain)
    except FormatError:
        raise
    except (zlib.error, ValueError, TypeError, LookupError, OverflowError, RecursionError):
        raise FormatError("a plan of another form, as another version keeps it") from None


def _plain(value: Any) -> Any:
    """Return what JSON can hold: the fields of a class, or the pairs of a mapping, as a list."""
    return _writer(type(value))(value)


@cache
def _writer(kind: type) -> Callable[[Any], Any]:
    """Return what `_plain` makes of values of a class; a plan has a million of a few classes."""
    if issubclass(kind, Mapping):
        return lambda value: [[_plain(key), _plain(entry)] for key, entry in value.items()]
    if is_dataclass(kind):
        names = [field.name for field in fields(kind) if field.init]
        return lambda value: [_plain(getattr(value, name)) for name in names]
    if issubclass(kind, tuple):
        return lambda value: [each if type(each) in _SCALARS else _plain(each) for each in value]
    return lambda value: value


@cache
def _reader(hint: Any) -> Callable[[Any], Any]:
    """Return what makes a value of a type from what `_plain` made of it.

    It raises TypeError or ValueError of anything else.
    """
    arguments = get_args(hint)
    match get_origin(hint):
        case origin if origin is UnionType:
            (other,) = (each for each in arguments if each is not NoneType)
            return lambda plain: None if plain is None else _reader(other)(plain)
        case origin if origin is tuple and arguments[1:] == (...,):
            return lambda plain: tuple(map(_reader(arguments[0]), _list(plain)))
        case origin if origin is tuple:
            return lambda plain: _each(arguments, plain)
        case origin if origin in (Mapping, dict):
            return lambda plain: dict(_each(arguments, pair) for pair in _list(plain))
        case _ if is_dataclass(hint):
            names = [field.name for field in fields(hint) if field.init]
        case _ if hasattr(hint, "_fields"):
            names = list(hint._fields)
        case _:
            return lambda plain: _scalar(hint, plain)
    make: Any = hint  # a class
    hints = get_type_hints(hint)
    return lambda plain: make(*_each([hints[name] for name in names], plain))


def _each(hints: Any, plain: Any) -> tuple[Any, ...]:
    return tuple(_reader(hint)(entry) for hint, entry in zip(hints, _list(plain), strict=True))


def _list(plain: Any) -> list[Any]:
    if not isinstance(plain, list):
        raise TypeError
    return plain


def _scalar(hint: Any, plain: Any) -> Any:
    if hint is float and type(plain) is int:
        return float(plain)
    if hint not in (int, float, str, bool) or type(plain) is not hint:
        raise TypeError
    return plain


def write_plan(folder: Folder, plan: Plan) -> None:
    """Keep a plan beside its sums."""
    folder.replace(_path(plan.run, plan.digest), encode_plan(plan))


def read_plan(folder: Folder, run: str, digest: str) -> Plan:
    """Return a plan that was kept.

    Raises:
        StoreUnusable: it is damaged or gone, or of another version.
    """
    path = _path(run, digest)
    try:
        plan = decode_plan(folder.read(path) or b"")
    except FormatError as error:
        raise StoreUnusable(f"{path}: {error.message}", AGAIN) from None
    if (plan.run, plan.digest) != (run, digest):
        raise StoreUnusable(f"{path} is of another run", AGAIN)
    return plan


def kept_plans(folder: Folder) -> list[tuple[str, str]]:
    """Return the runs and digests of the plans whose sums are all there."""
    paths = (path.split("/") for path in folder.list("_sums"))
    ends = [path for path in paths if len(path) == 4 and path[-1] == "complete"]
    return sorted((run.removeprefix("run="), digest) for _, run, digest, _ in ends)


def _path(run: str, digest: str) -> str:
    return f"_sums/run={run}/{digest}/plan"
