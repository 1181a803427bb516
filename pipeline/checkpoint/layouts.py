"""Which folders and files of a source are checkpoints, and which files a checkpoint has.

Every kind of source asks here and only lists folders: one by one, as they are asked for, since a
bucket may hold thousands that nobody needs. Paths are relative to the source; "" is the source itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import PurePosixPath
from typing import Generic, TypeVar

from pipeline.checkpoint.names import is_being_written
from pipeline.checkpoint.reading import BY_TABLES, Reading
from pipeline.checkpoint.shards import holds_weights, may_be_weights, weight_suffix

WEIGHT_FOLDERS = ("model_and_optim", "pytorch_model_fsdp_0")
"""Where the weights lie below a checkpoint's folder, as OLMo-core and accelerate write it."""
MODULE_FOLDERS = (
    *WEIGHT_FOLDERS, "model", "actor", "policy", "huggingface", "hf", "unet", "transformer", "prior",
    "student", "generator", "net", "network", "weights",
)  # fmt: skip
"""Which of several folders in a checkpoint's holds what is trained: verl's and SkyRL's actor, not its
critic; the network of diffusers, not the averaged `unet_ema`."""
_RANK_FOLDER = re.compile(r"mp_rank_\d\d(?:_\d{3}){0,2}")
"""What holds a rank's part of the weights, beside those of the other ranks, as Megatron-LM writes it."""
MAX_DEPTH = 4
"""Of a checkpoint's folder in a source: `outputs/<run>/checkpoints/<step>`."""
MOST_FOLDERS = 2_000
"""That are looked into on one level of those beyond the first: somebody may have named a whole disk or
bucket. The longest public run has 1,500 checkpoints."""
_MODULE_DEPTH = 2
"""Of the folder with the weights in a checkpoint's: verl's `actor/huggingface`."""
_MOST_MODULES = 16
"""Folders in a checkpoint's that are looked into for weights, on one level: a pipeline of diffusers has
seven; a folder called by a number may hold anything."""
_DEEPEST = 3 * MAX_DEPTH
"""Folders above a file that matter; a listing may state any number of them."""

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class Folder(Generic[Entry]):
    """What lies in one folder, by name."""

    folders: tuple[str, ...] = ()
    files: Mapping[str, Entry] = field(default_factory=dict)
    """What the source knows of each file: its size, and what a change would change."""
    broken: tuple[str, ...] = ()
    """Links that lead nowhere, as an incomplete download leaves them."""


ListFolder = Callable[[str], Folder[Entry]]


class Taken(Enum):
    """What a path was taken for."""

    CHECKPOINT = auto()
    """A folder that is a checkpoint, whatever else lies in it."""
    SINGLE_FILE = auto()
    """A file that is a checkpoint on its own."""
    OTHER = auto()
    """Neither."""


@dataclass(frozen=True, slots=True)
class Layout(Generic[Entry]):
    """What was found in a source."""

    taken: Mapping[str, Taken] = field(default_factory=dict)
    """Every folder, or file, of the level on which checkpoints were found."""
    listed: Mapping[str, Folder[Entry]] = field(default_factory=dict)
    """Every folder that was looked into, by path."""

    @property
    def checkpoints(self) -> list[tuple[str, bool]]:
        """The path of each checkpoint, and whether it is a single file."""
        return [
            (path, taken is Taken.SINGLE_FILE)
            for path, taken in self.taken.items()
            if taken is not Taken.OTHER
        ]


def discover(list_folder: ListFolder[Entry], reading: Reading = BY_TABLES) -> Layout[Entry]:
    """Return the checkpoints below a source.

    They are the folders in it that hold weights, else its own weight files, else folders further
    down, all on one level: the first where any name states a step, or else the first where there
    are any. Weights that lie beside folders of steps are a checkpoint, too: transformers' Trainer
    puts the final ones there.
    """
    first: dict[str, Taken] = {}
    listed: dict[str, Folder[Entry]] = {}

    def list_once(path: str) -> Folder[Entry]:
        if path not in listed:
            listed[path] = list_folder(path)
        return listed[path]

    for taken in _levels(list_once, reading):
        names = [path for path, kind in taken.items() if kind is not Taken.OTHER]
        if any(reading.position(name).is_known for name in names):
            if Taken.CHECKPOINT in taken.values() and _holds(list_once("").files, reading):
                taken[""] = Taken.CHECKPOINT
            return Layout(taken, listed)
        first = first if first or not names else taken
    return Layout(first, listed)


def is_checkpoint(list_folder: ListFolder[Entry], path: str, reading: Reading = BY_TABLES) -> bool:
    """Return whether a folder is a checkpoint: it holds weights, in itself or where its writer puts them.

    In a folder that its writer has called anything, they count where its own name states a step.
    """
    if reading.weights:
        return next(_chosen(list_folder, path, reading), None) is not None
    folder = list_folder(path)
    if holds_weights(folder.files):
        return True
    inside = (name for name in WEIGHT_FOLDERS if name in folder.folders)
    if any(holds_weights(_files_in(list_folder, path, name)) for name in inside):
        return True
    return (
        reading.position(path).is_known and weights_folder(list_folder, path, reading) is not None
    )


def is_whole(list_folder: ListFolder[Entry], reading: Reading = BY_TABLES) -> bool:
    """Return whether a source is one checkpoint itself, wherever in it the weights lie."""
    if reading.weights:
        return is_checkpoint(list_folder, "", reading)
    return weights_folder(list_folder, "", reading) is not None


def weights_folder(
    list_folder: ListFolder[Entry], path: str, reading: Reading = BY_TABLES
) -> str | None:
    """Return where the weights of a checkpoint lie, relative to it; None: nowhere near.

    Of several folders that hold some, it is the first of `MODULE_FOLDERS`, or else by name; of ranks'
    folders the one above them. Folders that state a step are checkpoints of their own.
    """
    level = [""]
    for depth in range(_MODULE_DEPTH + 1):
        holding = [name for name in level if holds_weights(list_folder(_joined(path, name)).files)]
        if holding:
            first = min(holding, key=_preference)
            return first.rpartition("/")[0] if _is_of_a_rank(first) else first
        if depth < _MODULE_DEPTH:
            level = [inner for name in level for inner in _inner(list_folder, path, name, reading)]
            known = [name for name in level if name in WEIGHT_FOLDERS]
            ranks = [name for name in level if _is_of_a_rank(name)]
            level = known or ranks[:1] or (level if len(level) <= _MOST_MODULES else [])
    return None


def holds_weights_anywhere(paths: Collection[str], reading: Reading = BY_TABLES) -> bool:
    """Return whether a checkpoint, by the paths of all its files, has weights."""
    if reading.weights:
        return any(map(reading.are_weights, paths))
    inside = listed(dict.fromkeys(paths))
    return holds_weights(paths) or weights_folder(inside, "", reading) is not None


def checkpoint_files(
    list_folder: ListFolder[Entry], path: str, reading: Reading = BY_TABLES
) -> dict[str, Entry]:
    """Return the files of the checkpoint in a folder, by their path in it.

    They are all below it, but for checkpoints of their own.
    """
    files: dict[str, Entry] = {}
    pending = [""]
    for name in pending:
        files |= _files_in(list_folder, path, name)
        if name.count("/") < MAX_DEPTH and len(pending) < MOST_FOLDERS:
            pending += _inner(list_folder, path, name, reading)
    return files


def name_alone(path: str) -> str:
    """Return the name in its checkpoint of a file that is one alone: what it is called says nothing."""
    return f"weights{weight_suffix(path) or PurePosixPath(path).suffix}"


def listed(entries: Mapping[str, Entry]) -> ListFolder[Entry]:
    """Return what lists the folders of a tree of which all files are known, by path."""
    folders: dict[str, dict[str, None]] = {}
    files: dict[str, dict[str, Entry]] = {}
    for path, entry in entries.items():
        *inner, name = path.split("/", _DEEPEST)
        above = ""
        for folder in inner:
            folders.setdefault(above, {})[folder] = None
            above = _joined(above, folder)
        files.setdefault(above, {})[name] = entry
    return lambda path: Folder(tuple(folders.get(path, ())), files.get(path, {}))


def _levels(list_folder: ListFolder[Entry], reading: Reading) -> Iterator[dict[str, Taken]]:
    """Yield what each level would be taken for, the likeliest first; no level is listed in vain."""
    inside = [""]
    for depth in range(MAX_DEPTH):
        folders = [_joined(path, name) for path in inside for name in list_folder(path).folders]
        if depth and len(folders) > MOST_FOLDERS:
            return
        taken = {
            path: Taken.CHECKPOINT if is_checkpoint(list_folder, path, reading) else Taken.OTHER
            for path in sorted(folders)
        }
        yield dict(taken)
        if not depth:
            yield {
                name: Taken.SINGLE_FILE if _holds([name], reading, alone=True) else Taken.OTHER
                for name in sorted(list_folder("").files)
            }
        inside = [path for path, kind in taken.items() if kind is Taken.OTHER]


def _holds(paths: Collection[str], reading: Reading, alone: bool = False) -> bool:
    if reading.weights:
        return any(map(reading.are_weights, paths))
    return any(map(may_be_weights, paths)) if alone else holds_weights(paths)


def _chosen(
    list_folder: ListFolder[Entry], path: str, reading: Reading
) -> Iterator[tuple[str, Entry]]:
    """Yield the files of a checkpoint that the user has said are its weights."""
    pending = [""]
    for name in pending:
        for file, entry in _files_in(list_folder, path, name).items():
            if reading.are_weights(file):
                yield file, entry
        inner = _inner(list_folder, path, name, reading)
        pending += [folder for folder in inner if reading.leads_to_weights(folder)]


def _inner(list_folder: ListFolder[Entry], path: str, name: str, reading: Reading) -> list[str]:
    """Return the folders in one of a checkpoint's that may belong to it, relative to it."""
    return [
        _joined(name, inner)
        for inner in list_folder(_joined(path, name)).folders
        if not is_being_written(inner) and not reading.position(inner).is_known
    ]


def _is_of_a_rank(folder: str) -> bool:
    return _RANK_FOLDER.fullmatch(folder.rpartition("/")[2]) is not None


def _preference(name: str) -> tuple[list[int], str]:
    order = {folder: number for number, folder in enumerate(MODULE_FOLDERS)}
    return [order.get(part, len(order)) for part in name.split("/")], name


def _files_in(list_folder: ListFolder[Entry], path: str, name: str) -> dict[str, Entry]:
    """Return the files in a folder `name` of a checkpoint, by their path in the checkpoint."""
    files = list_folder(_joined(path, name)).files
    return {_joined(name, file): entry for file, entry in files.items()}


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name
