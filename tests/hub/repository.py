"""Repositories in memory: commits, branches, tags, files."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.distcp")
LFS_BYTES = 10 << 20
_HASHED = 16 << 20  # at once


class MadeUp(Protocol):
    """Contents that lie nowhere as a whole, such as views of something that many files share.

    One that is too large to be hashed may state a `sha256` of its own, if nobody is to verify it.
    """

    @property
    def size(self) -> int: ...

    def read(self, start: int, stop: int) -> bytes | memoryview: ...


Content = bytes | Path | MadeUp


@dataclass(frozen=True)
class StoredFile:
    """One version of one file: bytes in memory, a file on disk, or made up as it is read."""

    path: str
    content: Content

    @property
    def size(self) -> int:
        if isinstance(self.content, bytes):
            return len(self.content)
        return self.content.stat().st_size if isinstance(self.content, Path) else self.content.size

    def read(self, start: int, stop: int) -> bytes | memoryview:
        if isinstance(self.content, bytes):
            return self.content[start:stop]
        if not isinstance(self.content, Path):
            return self.content.read(start, stop)
        with self.content.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    @cached_property
    def sha256(self) -> str:
        if (stated := getattr(self.content, "sha256", None)) is not None:
            return stated
        digest = hashlib.sha256()
        for start in range(0, self.size, _HASHED):
            digest.update(self.read(start, min(self.size, start + _HASHED)))
        return digest.hexdigest()

    @property
    def blob_id(self) -> str:
        """What git calls the file: of the pointer where the contents are in LFS."""
        data = self.sha256.encode() if self.is_lfs else self.read(0, self.size)
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def is_lfs(self) -> bool:
        name = self.path.rpartition("/")[2]
        return self.size > LFS_BYTES or any(fnmatch.fnmatch(name, p) for p in LFS_PATTERNS)


@dataclass(frozen=True)
class Commit:
    sha: str
    message: str
    files: dict[str, StoredFile]
    parent: str | None


@dataclass
class Repository:
    """One model repository."""

    name: str
    private: bool = False
    gated: bool = False
    direct: bool = False
    """Files are served by the Hub host itself, whatever their size."""
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(
        self, files: Mapping[str, Content], branch: str = "main", message: str = "upload"
    ) -> str:
        """Make a commit of exactly these files the head of a branch; return its SHA."""
        parent = self.branches.get(branch)
        stored = {path: StoredFile(path, content) for path, content in files.items()}
        digest = hashlib.sha1(f"{message}\n{parent}\n".encode())
        for path in sorted(stored):
            digest.update(f"{path} {stored[path].sha256}\n".encode())
        sha = digest.hexdigest()
        self.commits[sha] = Commit(sha, message, stored, parent)
        self.branches[branch] = sha
        return sha

    def commit_folder(self, folder: Path, branch: str, message: str = "upload") -> str:
        """Commit the files of a local folder, served from where they are."""
        files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
        return self.commit(files, branch, message)

    def tag(self, name: str, sha: str) -> None:
        self.tags[name] = sha

    def resolve(self, revision: str) -> Commit | None:
        """Return the commit that a branch, a tag or a SHA names."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(sha)

    def history(self, commit: Commit) -> list[Commit]:
        """Return a commit and those before it, newest first."""
        found = [commit]
        while found[-1].parent is not None:
            found.append(self.commits[found[-1].parent])
        return found
