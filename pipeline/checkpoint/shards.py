"""Which files of a checkpoint hold its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection

from pipeline.errors import FormatError, quoted

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.safetensors")


def weight_files(
    paths: Collection[str], read_text: Callable[[str], bytes], where: str
) -> tuple[str, ...]:
    """Return the paths of a checkpoint's weight files, sorted.

    The order of preference is that of transformers: `model.safetensors`, then the shards of
    `model.safetensors.index.json`; then one set of `…-00001-of-0000N.safetensors`; then a
    safetensors file that stands alone. Files in sub-folders belong to something else.

    Args:
        paths: names of all files of the checkpoint, relative to it.
        read_text: gives the contents of one (small) file.
        where: the checkpoint's name for error messages.

    Raises:
        FormatError: a shard is absent, the index is malformed, or the choice is not clear.
    """
    files = sorted(path for path in paths if "/" not in path and path.endswith(".safetensors"))
    if _SINGLE in files:
        return (_SINGLE,)
    if _INDEX in paths:
        named = _shards_of_index(read_text(_INDEX), f"{where}/{_INDEX}")
        _require(named, files, f"named in {_INDEX}", where)
        return named
    sets: dict[tuple[str, int], list[str]] = {}
    for path in files:
        if match := _NUMBERED.fullmatch(path):
            sets.setdefault((match["stem"], int(match["total"])), []).append(path)
    if len(sets) == 1:
        ((stem, total),) = sets
        named = tuple(f"{stem}-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1))
        _require(named, files, f"one of {total}", where)
        return named
    if len(files) > 1:
        raise FormatError(
            f"{where}: expected one set of weights, found {len(files)} files with no index: "
            + ", ".join(quoted(path) for path in files[:4]),
            "add the index, or remove the files that are not this model's weights",
        )
    return tuple(files)


def _shards_of_index(text: bytes, where: str) -> tuple[str, ...]:
    shards: list[str] = []
    try:
        weight_map = json.loads(text)["weight_map"]
        shards = sorted(set(weight_map.values()))
        well_formed = all(isinstance(shard, str) and shard for shard in shards)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        well_formed = False
    if not well_formed or not shards:
        raise FormatError(f"{where}: expected a JSON object with a weight_map of shard names")
    return tuple(shards)


def _require(named: tuple[str, ...], present: list[str], why: str, where: str) -> None:
    absent = sorted(set(named) - set(present))
    if absent:
        raise FormatError(
            f"{where}: shard {quoted(absent[0])} ({why}) is absent"
            + (f", and {len(absent) - 1} more" if len(absent) > 1 else ""),
            "the upload or download is incomplete: fetch it again, or leave the checkpoint out",
        )
