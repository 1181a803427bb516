"""What every kind of source offers: candidates, files, small reads, and access for workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pipeline.checkpoint.names import Position, position
from pipeline.sources.transport import Transport


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that may be a checkpoint: a branch, a tag, a folder."""

    name: str
    commit: str | None
    """What the name was resolved to; every later read is of this. None where nothing is versioned."""
    folder: str = ""
    """Where its files lie within the commit or the directory, if not at the top."""
    origin: str = ""
    """Label of the source that it belongs to, where a source is made of several."""
    stated: Position | None = None
    """Where a manifest says that it stands in training."""

    @property
    def position(self) -> Position:
        """Where it stands in training: as stated, else as its name says."""
        return self.stated or position(self.name)


@dataclass(frozen=True, slots=True)
class File:
    """One file of a checkpoint, pinned."""

    checkpoint: Candidate
    path: str
    """Relative to the checkpoint."""
    where: str
    """For people: `org/name@commit/path`, or the path on disk."""
    size: int
    identity: str
    """What a change of the contents would change: content hash, or size and time of change."""

    @property
    def path_in_commit(self) -> str:
        """Relative to the commit or the directory."""
        folder = self.checkpoint.folder
        return f"{folder}/{self.path}" if folder else self.path


class Access(Protocol):
    """How a worker reaches one file. Picklable; shows no secret."""

    @property
    def where(self) -> str:
        """For people: what is read."""
        ...

    def read_into(self, transport: Transport, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the file's bytes from `start` on.

        Raises:
            ReadError: the bytes could not be had; nothing is known of the buffer then.
        """
        ...

    @property
    def reads_at_once(self) -> int:
        """How many reads of this kind are worth having in flight together in one tile."""
        ...

    @property
    def issue(self) -> int:
        """Number of this access among those that the source has given for the file, from 1."""
        ...

    @property
    def good_for_s(self) -> float:
        """For how many seconds from now it may be used."""
        ...


class Source(Protocol):
    """One SOURCE argument. Lives in the driver only."""

    label: str
    """Name for people and for `runs.source`."""
    run_name: str
    """Default name of the run."""

    @property
    def requests(self) -> Mapping[str, int]:
        """How many requests of each rate-limited class were made so far."""
        ...

    @property
    def lists_all(self) -> bool:
        """True if the files that it lists of a commit are all that the commit has."""
        ...

    @property
    def waits(self) -> bool:
        """True if reads mostly wait for somebody else: a worker should pull one tile ahead."""
        ...

    def candidates(self) -> list[Candidate]:
        """Return everything that may be a checkpoint, in no order."""
        ...

    def whole(self) -> list[Candidate]:
        """Return what the source is if it is itself one checkpoint; else nothing."""
        ...

    def files(self, candidate: Candidate) -> list[File]:
        """Return all files of one candidate."""
        ...

    def read(self, file: File, start: int, stop: int) -> bytes:
        """Return a few bytes of a file: headers, indexes, configurations."""
        ...

    def access(self, file: File, after: int = 0, keep: bool = False) -> Access:
        """Return access to a file that is good for a while. Safe in threads.

        Args:
            after: an access of this number was not accepted: return a later one.
            keep: keep the file in the Hub cache.
        """
        ...
