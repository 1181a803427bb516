"""Which folders and files of a source are checkpoints, and which files a checkpoint has.

Every kind of source asks here and only lists folders: one by one, as they are asked for, since a
bucket may hold thousands that nobody needs. Paths are relative to the source; "" is the source itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache
from pathlib import PurePosixPath
from typing import Generic, TypeVar

from pipeline.checkpoint.names import position
from pipeline.checkpoint.shards import holds_weights, may_be_weights

WEIGHT_FOLDERS = ("model_and_optim", "pytorch_model_fsdp_0")
"""Where the weights lie below a checkpoint's folder, as OLMo-core and accelerate write it."""
MAX_DEPTH = 4
"""Of a checkpoint's folder in a source: `outputs/<run>/checkpoints/<step>`."""
MOST_FOLDERS = 2_000
"""That are looked into on one level of those beyond the first: somebody may have named a whole disk or
bucket. The longest public run has 1,500 checkpoints."""
_DEEPEST = 3 * MAX_DEPTH
"""Folders above a file that matter; a listing may state any number of them."""

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class Folder(Generic[Entry]):
    """What lies in one folder, by name."""

    folders: tuple[str, ...] = ()
    files: Mapping[str, Entry] = field(default_factory=dict)
    """What the source knows of each file: its size, and what a change would change."""


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
class Layout:
    """What was found in a source."""

    taken: Mapping[str, Taken] = field(default_factory=dict)
    """Every folder, or file, of the level on which checkpoints were found."""

    @property
    def checkpoints(self) -> list[tuple[str, bool]]:
        """The path of each checkpoint, and whether it is a single file."""
        return [
            (path, taken is Taken.SINGLE_FILE)
            for path, taken in self.taken.items()
            if taken is not Taken.OTHER
        ]


def discover(list_folder: ListFolder[Entry]) -> Layout:
    """Return the checkpoints below a source.

    They are the folders in it that hold weights, else its own weight files, else folders further
    down, all on one level: the first where any name states a step, or else the first where there
    are any.
    """
    first = Layout()
    for layout in _levels(cache(list_folder)):
        names = [path for path, _ in layout.checkpoints]
        if any(position(name).is_known for name in names):
            return layout
        first = first if first.taken or not names else layout
    return first


def is_checkpoint(list_folder: ListFolder[Entry], path: str) -> bool:
    """Return whether a folder holds weights, in itself or where its writer puts them."""
    folder = list_folder(path)
    return holds_weights(folder.files) or any(
        holds_weights(_files_in(list_folder, path, name))
        for name in WEIGHT_FOLDERS
        if name in folder.folders
    )


def checkpoint_files(list_folder: ListFolder[Entry], path: str) -> dict[str, Entry]:
    """Return the files of the checkpoint in a folder, by their path in it.

    They are those in the folder and where its writer puts weights. If none of these are weights,
    they are all below it.
    """
    inner = [name for name in list_folder(path).folders if name in WEIGHT_FOLDERS]
    files: dict[str, Entry] = {}
    for name in ("", *inner):
        files |= _files_in(list_folder, path, name)
    if holds_weights(files):
        return files
    pending = [""]
    for name in pending:
        files |= _files_in(list_folder, path, name)
        if name.count("/") < MAX_DEPTH:
            pending += [_joined(name, f) for f in list_folder(_joined(path, name)).folders]
    return files


def name_alone(path: str) -> str:
    """Return the name in its checkpoint of a file that is one alone: what it is called says nothing."""
    return f"weights{PurePosixPath(path).suffix}"


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


def _levels(list_folder: ListFolder[Entry]) -> Iterator[Layout]:
    """Yield what each level would be taken for, the likeliest first; no level is listed in vain."""
    inside = [""]
    for depth in range(MAX_DEPTH):
        folders = [_joined(path, name) for path in inside for name in list_folder(path).folders]
        if depth and len(folders) > MOST_FOLDERS:
            return
        taken = {
            path: Taken.CHECKPOINT if is_checkpoint(list_folder, path) else Taken.OTHER
            for path in sorted(folders)
        }
        yield Layout(taken)
        if not depth:
            yield Layout(
                {
                    name: Taken.SINGLE_FILE if may_be_weights(name) else Taken.OTHER
                    for name in sorted(list_folder("").files)
                }
            )
        inside = [path for path, kind in taken.items() if kind is Taken.OTHER]


def _files_in(list_folder: ListFolder[Entry], path: str, name: str) -> dict[str, Entry]:
    """Return the files in a folder `name` of a checkpoint, by their path in the checkpoint."""
    files = list_folder(_joined(path, name)).files
    return {_joined(name, file): entry for file, entry in files.items()}


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name
