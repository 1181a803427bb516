"""A local directory that holds checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.checkpoint.layouts import Folder, checkpoint_files, discover, is_checkpoint
from pipeline.errors import ReadError, SourceChanged, SourceNotFound, TransientReadError, quoted
from pipeline.sources.base import Candidate, File, telling_name
from pipeline.sources.plain import is_plain
from pipeline.transport.connections import Transport


class FileState(NamedTuple):
    """What changes with the contents of the file at a path, as far as the system tells unread.

    Whoever sets the time of modification back, as a copy or an archive does, cannot set the time of
    change. Without the path it says little: small files that are written at once have one time, which
    clocks of file systems count in steps of 4 ms. Inodes are not asked: file systems over object
    storage number them anew at each mount and on each node, and there no job could be resumed.
    """

    size: int
    modified_ns: int
    changed_ns: int

    @staticmethod
    def of(status: os.stat_result) -> FileState:
        return FileState(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class LocalAccess:
    """Positional reads of one local file, which must be as it was when planned."""

    where: str
    state: FileState

    # In the page cache one thread copies at 11-22 GB/s; a second in the same tile gains nothing.
    reads_at_once = 1
    issue = 1
    good_for_s = math.inf

    def read_into(self, transport: Transport, start: int, buffer: memoryview) -> None:
        del transport  # local files need no connection
        self.read(start, buffer)

    def read(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `start` on."""
        try:
            with open(self.where, "rb", buffering=0) as file:
                found = FileState.of(os.fstat(file.fileno()))
                if found != self.state:
                    raise SourceChanged(
                        f"{self.where} changed since it was planned: expected"
                        f" {self.state.size:,} bytes, found {found.size:,}, or another time of change",
                        "start again with --fresh",
                    )
                _fill(file.fileno(), start, buffer, self.where)
        except OSError as error:
            if isinstance(error, ReadError):
                raise
            raise TransientReadError(
                f"{self.where}[{start}:{start + len(buffer)}]: {error.strerror}"
            ) from None


def _fill(descriptor: int, start: int, buffer: memoryview, where: str) -> None:
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], start + done)
        if count == 0:
            raise SourceChanged(f"{where} ends at {start + done:,}, before {start + len(buffer):,}")
        done += count


class Directory:
    """Checkpoints in a local directory, or one that is a single file."""

    # Reads are copies from the page cache. One thread more than cores costs 10 % there, since a
    # preempted thread may hold the interpreter's lock (1.61 against 1.78 s for 4.3 GB on 2 cores);
    # from a cold disk one tile ahead gains 4 % (2.53 against 2.63 s).
    waits = False
    requests: Mapping[str, int] = {}

    def __init__(self, path: Path) -> None:
        self.label = str(path)
        self._root = path.resolve()
        self.address = str(self._root)
        self.run_name = telling_name(self._root)

    def candidates(self) -> list[Candidate]:
        checkpoints = discover(self._list).checkpoints
        for path, _ in checkpoints:
            if not is_plain(path):  # no table could hold it when everything has been read
                raise SourceNotFound(f"{self.label}: {quoted(path)} is not UTF-8", "rename it")
        return [Candidate(path, None, path, is_file) for path, is_file in checkpoints]

    def whole(self) -> list[Candidate]:
        is_file = self._root.is_file()
        alone = is_file or is_checkpoint(self._list, "")
        return [Candidate(self._root.name, None, "", is_file)] if alone else []

    def files(self, candidate: Candidate) -> list[File]:
        path = self._root / candidate.path
        try:
            if candidate.is_file:  # whatever it is called
                return [self._file(candidate, path, f"weights{path.suffix}")]
            files = checkpoint_files(self._list, candidate.path)
            return [self._file(candidate, found, name) for name, found in files.items()]
        except OSError as error:
            raise SourceNotFound(f"{path}: {error.strerror}") from None

    def read(self, file: File, start: int, stop: int) -> bytes:
        buffer = bytearray(stop - start)
        self.access(file).read(start, memoryview(buffer))
        return bytes(buffer)

    def access(self, file: File, after: int = 0, keep: bool = False) -> LocalAccess:
        del after, keep  # there is one way to it, and it is kept already
        state = file.identity.rpartition(" ")[2]
        return LocalAccess(file.where, FileState(*map(int, state.split("."))))

    def _list(self, path: str) -> Folder[Path]:
        folder = self._root / path
        try:
            entries = list(folder.iterdir())
            folders = tuple(entry.name for entry in entries if entry.is_dir())
            return Folder(folders, {entry.name: entry for entry in entries if entry.is_file()})
        except OSError as error:
            why = f"{folder}: {error.strerror}"
            raise SourceNotFound(why, "check its permissions") from None

    def _file(self, candidate: Candidate, path: Path, name: str) -> File:
        state = FileState.of(path.stat())
        identity = f"{path} {'.'.join(map(str, state))}"
        return File(candidate, name, str(path), state.size, identity)
