"""Which files of a checkpoint hold its weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline.checkpoint import formats
from pipeline.checkpoint.file_kinds import file_kind
from pipeline.checkpoint.formats import Format
from pipeline.checkpoint.json_text import JsonText
from pipeline.errors import FormatError, quoted

_File = TypeVar("_File")

_INDEX = ".index.json"
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)")


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The weight files of a checkpoint."""

    paths: tuple[str, ...] = ()
    format: Format | None = None
    """What they are together; None: each is of a format of its own, as its name and contents say."""

    def units(self, files: Sequence[_File]) -> list[tuple[_File, ...]]:
        """Divide them, in the order of `paths`, into those whose headers are read one by one."""
        if self.format is not None and self.format.is_read_at_once:
            return [tuple(files)]
        return [(file,) for file in files]


def may_be_weights(path: str) -> bool:
    """Return whether a file, by its path in a checkpoint, may hold weights on its own."""
    return "/" not in path and weight_suffix(path) != "" and file_kind(path) is None


def weight_suffix(path: str) -> str:
    """Return the suffix that tells a file's format; empty if no format has it."""
    return max((suffix for suffix in _suffixes() if path.endswith(suffix)), key=len, default="")


def holds_weights(paths: Collection[str]) -> bool:
    """Return whether a checkpoint's paths have anything that may be a weight file, or an index of some."""
    return (
        any(may_be_weights(p) or ("/" not in p and p.endswith(_INDEX)) for p in paths)
        or _several(paths) is not None
    )


def weight_files(
    paths: Collection[str], read_text: Callable[[str], bytes], where: str
) -> WeightFiles:
    """Return a checkpoint's weight files, in order.

    In order of preference these are: a file of the usual name, the shards of its index, one format
    after the other; one set of `…-00001-of-0000N`; what a format of several files finds; a weight
    file that stands alone. Files in sub-folders belong to something else, unless a format knows them.

    Args:
        paths: names of all files of the checkpoint, relative to it.
        read_text: gives the contents of one (small) file.
        where: the checkpoint's name for error messages.

    Raises:
        FormatError: a shard is absent, the index is malformed, or the choice is not clear.
    """
    for whole in (f.whole for f in formats.FORMATS if f.whole):
        if whole in paths:
            return WeightFiles((whole,))
        if (index := whole + _INDEX) in paths:
            shards = _shards_of_index(read_text(index), f"{where}/{index}")
            _require(shards, paths, f"named in {index}", where)
            return WeightFiles(shards)
    single = sorted(path for path in paths if may_be_weights(path))
    preferred = _of_preferred_format(single)
    if shards := _numbered(preferred):
        _require(shards, paths, f"one of {len(shards)}", where)
        return WeightFiles(shards)
    passed_over = {*single} - {*preferred}
    if several := _several([path for path in paths if path not in passed_over]):
        return several
    if len(preferred) > 1:
        raise FormatError(
            f"{where}: expected one set of weights, found {len(preferred)} files with no index: "
            + ", ".join(quoted(path) for path in preferred[:4]),
            f"say which are the weights: --weights {quoted(preferred[0])}",
        )
    return WeightFiles(tuple(preferred))


def likely_weights(paths: Collection[str]) -> tuple[str, ...]:
    """Return which files of a folder are its weights, as far as names alone tell: no index is read."""
    whole = next((f.whole for f in formats.FORMATS if f.whole and f.whole in paths), None)
    if whole is not None:
        return (whole,)
    preferred = _of_preferred_format(sorted(path for path in paths if may_be_weights(path)))
    several = None if preferred else _several(paths)
    return several.paths if several else tuple(preferred)


def absent_shards(paths: Collection[str]) -> list[str]:
    """Return the numbered shards that a set among the paths lacks."""
    return sorted({*_numbered(list(paths))} - {*paths})


def weight_files_in(
    folder: str, paths: Collection[str], read_text: Callable[[str], bytes], where: str
) -> WeightFiles:
    """Return the weight files in a folder of a checkpoint, as `weight_files` finds them."""
    above = f"{folder}/" if folder else ""
    inside = {path.removeprefix(above) for path in paths if path.startswith(above)}
    weights = weight_files(inside, lambda path: read_text(above + path), where)
    return WeightFiles(tuple(above + path for path in weights.paths), weights.format)


def chosen_files(
    paths: Collection[str], read_text: Callable[[str], bytes], where: str
) -> WeightFiles:
    """Return the weight files of a checkpoint whose user has said which they are, in order.

    Raises:
        FormatError: a shard is absent, or an index is malformed.
    """
    if several := _several(paths):
        return several
    shards: dict[str, None] = {}
    for path in sorted(paths):
        folder, _, name = path.rpartition("/")
        if not name.endswith(_INDEX):
            shards[path] = None
            continue
        named = _shards_of_index(read_text(path), f"{where}/{path}")
        shards |= dict.fromkeys(f"{folder}/{shard}" if folder else shard for shard in named)
    return WeightFiles(tuple(shards))


def _suffixes() -> tuple[str, ...]:
    return tuple(suffix for row in formats.FORMATS for suffix in row.suffixes)


def _of_preferred_format(paths: Sequence[str]) -> list[str]:
    """Return those of the first format that any of the paths is of."""
    by_format = ([p for p in paths if p.endswith(row.suffixes)] for row in formats.FORMATS)
    return next((matching for matching in by_format if matching), [])


def _numbered(paths: Sequence[str]) -> tuple[str, ...]:
    """Return the names that a set of shards has, if the paths have names of one set, and only one."""
    sets = {
        (match["stem"], int(match["total"]), match["suffix"])
        for path in paths
        if (match := _NUMBERED.fullmatch(path))
    }
    if len(sets) != 1:
        return ()
    ((stem, total, suffix),) = sets
    return tuple(f"{stem}-{i:05d}-of-{total:05d}{suffix}" for i in range(1, total + 1))


def _several(paths: Collection[str]) -> WeightFiles | None:
    """Return the files of the first format of several files that is there."""
    for row in formats.FORMATS:
        if row.find is not None and (files := row.find(paths)):
            return WeightFiles(files, row)
    return None


def _shards_of_index(data: bytes, where: str) -> tuple[str, ...]:
    shards: set[str] = set()
    try:
        text = JsonText(data)
        for key in text.members():
            if key == "weight_map":
                shards.update(text.string() for _ in text.members())
            else:
                text.skip()
        text.end()
    except ValueError:
        shards.clear()
    if not shards or "" in shards:
        raise FormatError(f"{where}: expected a JSON object with a weight_map of shard names")
    return tuple(sorted(shards))


def _require(named: tuple[str, ...], present: Collection[str], why: str, where: str) -> None:
    absent = sorted(set(named) - set(present))
    if absent:
        raise FormatError(
            f"{where}: shard {quoted(absent[0])} ({why}) is absent"
            + (f", and {len(absent) - 1} more" if len(absent) > 1 else ""),
            "the upload or download is incomplete: fetch it again, or leave the checkpoint out",
        )
