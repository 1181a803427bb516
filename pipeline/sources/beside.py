"""What lies in a source beside its checkpoints: nothing that was looked at goes unnamed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.checkpoint.file_kinds import NOT_UNDERSTOOD, FileKind, file_kind
from pipeline.checkpoint.layouts import Layout
from pipeline.checkpoint.names import Position, is_being_written
from pipeline.checkpoint.reading import BY_TABLES, Reading
from pipeline.errors import quoted

_NAMES_SHOWN = 3
BROKEN_LINK = FileKind(
    "a link that leads nowhere", "fetch the file again: its download is incomplete"
)


@dataclass(frozen=True, slots=True)
class Beside:
    """A file or a folder of a source that is no part of any checkpoint."""

    path: str
    """Of a folder it ends in `/`."""
    kind: FileKind
    lacking: Position | None = None
    """Where a folder without weights would stand among the checkpoints, if its name states a step."""


def beside(layout: Layout[Any], reading: Reading = BY_TABLES) -> list[Beside]:
    """Return what was looked into for checkpoints, and belongs to none."""
    taken = {path for path, _ in layout.checkpoints}
    inside = tuple(f"{path}/" for path in taken if path)
    others: list[Beside] = []
    for folder, held in layout.listed.items():
        if folder in taken or folder.startswith(inside):
            continue
        above = f"{folder}/" if folder else ""
        for path in (above + name for name in held.files):
            if path not in taken:
                others.append(Beside(path, file_kind(path) or NOT_UNDERSTOOD))
        others += [Beside(above + name, BROKEN_LINK) for name in held.broken]
        for path in (above + name for name in held.folders):
            if path not in taken and not any(each.startswith(f"{path}/") for each in inside):
                others.append(_folder(path, layout, reading))
    if "" in taken:
        folders = layout.listed[""].folders
        others += [_folder(f, layout, reading) for f in folders if f in layout.taken.keys() - taken]
    return sorted(others, key=lambda each: each.path)  # a directory has no order


def _folder(path: str, layout: Layout[Any], reading: Reading) -> Beside:
    lacking = None
    if is_being_written(path):
        what = "hidden, or being written"
    elif path not in layout.listed:
        what = "not looked into"
    else:
        held = layout.listed[path]
        links = (f"{name} (a link that leads nowhere)" for name in held.broken)
        names = sorted((*held.files, *(f"{name}/" for name in held.folders), *links))
        shown = ", ".join(quoted(name, 60) for name in names[:_NAMES_SHOWN])
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        what = f"no weights in it, only {shown}{more}" if names else "empty"
        where = reading.position(path)
        lacking = where if where.is_known and path in layout.taken else None
    return Beside(f"{path}/", FileKind(what), lacking)
