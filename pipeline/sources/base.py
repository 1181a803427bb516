"""What every kind of source offers: candidates, files, small reads, and access for readers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.checkpoint.names import Position, position
from pipeline.sources.beside import Beside
from pipeline.sources.plain import is_hash
from pipeline.transport.access import Access

IN_MEMORY = "model:"
"""What the URI of weights begins with that no file holds: those of a network that is being trained."""
ROOT = "main"
"""What a source's own weights are called, beside its folders of steps: as on the Hub."""
_TELLS_NOTHING = re.compile(
    r"checkpoints?|ckpts?|models?|weights|outputs?|out|results?|runs?|logs|snapshots?|saves?|saved"
    r"|exports?|artifacts?|files|latest|last|final|best|default|lightning_logs|version_\d+|manifest"
    r"|[\d.:T_-]+",  # numbers of trials, dates and times of day
    re.IGNORECASE,
)
"""Names that trainers give to folders of every run: torchtitan's `outputs/checkpoint`, Lightning's
`lightning_logs/version_0/checkpoints`, Hydra's `multirun/2024-01-01/12-30-00/0`."""


def telling_name(path: Path) -> str:
    """Return an absolute path's end, from the last folder on whose name is not every run's.

    `/data/exp1/outputs/checkpoint` is `exp1--outputs--checkpoint`. It depends on the path alone: a
    source has one name wherever it is named from, and whatever is in a store.
    """
    parts = path.parts[1:]
    telling = (n for n, part in enumerate(parts) if not _TELLS_NOTHING.fullmatch(part))
    return "--".join(parts[max(telling, default=0) :])


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that may be a checkpoint: a branch, a tag, a folder."""

    name: str
    commit: str | None
    """What the name was resolved to; every later read is of this. None where nothing is versioned."""
    path: str = ""
    """Where it lies in the commit or the directory; empty: it is all of that."""
    is_file: bool = False
    """It is the one file at that path; else the folder."""
    origin: str = ""
    """Label of the source that it belongs to, where a source is made of several."""
    stated: Position | None = None
    """Where a manifest says that it stands in training."""
    state: str = ""
    """Where in its files a manifest says that the weights lie: keys joined by dots."""
    metrics: tuple[tuple[str, float], ...] = ()
    """What a manifest says was measured there."""
    repository: str = ""
    """URL of the repository that holds the commit, endpoint included: what planning caches of the
    commit is valid for this repository alone. Empty: nothing is cached."""

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
    """What a change of the contents would change. Of a commit the hash that its repository publishes,
    or repository, commit and path; of local files path, size and times; of a bucket URL and ETag."""
    changed_at: float | None = field(default=None, compare=False)
    """When it was last changed, in seconds since 1970 by the clock of its storage; None: it never changes."""

    @property
    def path_in_commit(self) -> str:
        """Relative to the commit or the directory."""
        checkpoint = self.checkpoint
        if checkpoint.is_file:
            return checkpoint.path
        return f"{checkpoint.path}/{self.path}" if checkpoint.path else self.path

    @property
    def content(self) -> str | None:
        """What files of the same contents have in common; None where that is not published."""
        if self.checkpoint.commit is not None:
            return self.identity if is_hash(self.identity) else None
        _, separator, etag = self.identity.rpartition("\n")
        return f"{self.size} {etag}" if separator and "://" in self.where else None

    def digest(self) -> Any:
        """Return an empty digest of the kind that its repository publishes of it, or None."""
        if self.checkpoint.commit is None or not is_hash(self.identity):
            return None
        if len(self.identity) == 64:  # large-file storage
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size)  # a blob in git


class Source(Protocol):
    """One SOURCE argument. Lives in the driver only."""

    label: str
    """Name for people and for `runs.source`."""
    uri: str
    """What it is, wherever it is named from: two sources of one URI are the same."""
    run_name: str
    """Default name of the run."""

    @property
    def requests(self) -> Mapping[str, int]:
        """How many requests of each rate-limited class were made so far."""
        ...

    @property
    def is_remote(self) -> bool:
        """True if reads mostly wait for a network: a worker should pull one tile ahead."""
        ...

    def candidates(self) -> list[Candidate]:
        """Return everything that may be a checkpoint, in no order."""
        ...

    def whole(self) -> list[Candidate]:
        """Return what the source is if it is itself one checkpoint; else nothing."""
        ...

    def beside(self) -> list[Beside]:
        """Return what lies beside the candidates, once these were listed."""
        ...

    def logs(self) -> list[File]:
        """Return the logs of the training that lie beside the candidates, once these were listed."""
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
            after: access of this generation is not accepted any more: return a later one.
            keep: keep the file in the Hub cache.
        """
        ...
