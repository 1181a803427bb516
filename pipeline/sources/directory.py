"""A local directory that holds checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.checkpoint.layouts import (
    Folder,
    Layout,
    checkpoint_files,
    discover,
    is_whole,
    name_alone,
)
from pipeline.checkpoint.reading import BY_TABLES, Reading
from pipeline.errors import SourceNotFound, quoted
from pipeline.sources.base import ROOT, Candidate, File, telling_name
from pipeline.sources.beside import Beside, beside
from pipeline.sources.logs import log_paths
from pipeline.sources.plain import is_plain
from pipeline.transport import local
from pipeline.transport.access import FileState, LocalPath


class Directory:
    """Checkpoints in a local directory, or one that is a single file."""

    # Reads are copies from the page cache. One thread more than cores costs 10 % there, since a
    # preempted thread may hold the interpreter's lock (1.61 against 1.78 s for 4.3 GB on 2 cores);
    # from a cold disk one tile ahead gains 4 % (2.53 against 2.63 s).
    is_remote = False
    requests: Mapping[str, int] = {}

    def __init__(self, path: Path, reading: Reading = BY_TABLES) -> None:
        """`reading`: what the user says of names and files."""
        self._reading = reading
        self._layout: Layout[Path] = Layout()
        self.label = str(path)
        self._root = path.resolve()
        self.uri = str(self._root)
        self.run_name = telling_name(self._root)

    def candidates(self) -> list[Candidate]:
        self._layout = discover(self._list, self._reading)
        checkpoints = self._layout.checkpoints
        for path, _ in checkpoints:
            if path and not is_plain(path):  # no table could hold it when everything has been read
                raise SourceNotFound(f"{self.label}: {quoted(path)} is not UTF-8", "rename it")
        return [
            Candidate(path or ROOT, None, path, is_file, stated=self._reading.stated(path))
            for path, is_file in checkpoints
        ]

    def beside(self) -> list[Beside]:
        return beside(self._layout, self._reading)

    def logs(self) -> list[File]:
        paths = log_paths(self._list)
        if not paths and self._root.name == "checkpoints":  # beside which Lightning has its logs
            paths = log_paths(self._list, "..")
        return [
            self._file(Candidate(path, None, path, True), self._root / path, path) for path in paths
        ]

    def whole(self) -> list[Candidate]:
        is_file = self._root.is_file()
        alone = is_file or is_whole(self._list, self._reading)
        return [Candidate(self._root.name, None, "", is_file)] if alone else []

    def files(self, candidate: Candidate) -> list[File]:
        path = self._root / candidate.path
        try:
            files = (
                {name_alone(path.name): path}
                if candidate.is_file
                else checkpoint_files(self._list, candidate.path, self._reading)
            )
            return [self._file(candidate, place, name) for name, place in files.items()]
        except OSError as error:
            raise SourceNotFound(f"{path}: {error.strerror}") from None

    def read(self, file: File, start: int, stop: int) -> bytes:
        buffer = bytearray(stop - start)
        local.read(self.access(file), [(start, memoryview(buffer))])
        return bytes(buffer)

    def access(self, file: File, after: int = 0, keep: bool = False) -> LocalPath:
        del after, keep  # there is one way to it, and nothing to keep
        state = file.identity.rpartition(" ")[2]
        return LocalPath(file.where, file.where, FileState(*map(int, state.split("."))))

    def _list(self, path: str) -> Folder[Path]:
        folder = self._root / path
        folders: list[str] = []
        files: dict[str, Path] = {}
        broken: list[str] = []
        try:
            with os.scandir(folder) as entries:  # tells folders from files without a look at each
                for entry in entries:
                    if entry.is_dir():
                        folders.append(entry.name)
                    elif entry.is_file():
                        files[entry.name] = folder / entry.name
                    elif entry.is_symlink():
                        broken.append(entry.name)
        except OSError as error:
            why = f"{folder}: {error.strerror}"
            raise SourceNotFound(why, "check its permissions") from None
        return Folder(tuple(folders), files, tuple(broken))

    def _file(self, candidate: Candidate, path: Path, name: str) -> File:
        state = FileState.of(path.stat())
        identity = f"{path} {'.'.join(map(str, state))}"
        changed_at = max(state.modified_ns, state.changed_ns) / 1e9  # a copy may keep the first
        return File(candidate, name, str(path), state.size, identity, changed_at)
