"""Repositories in memory: commits, branches, tags, files."""

from __future__ import annotations

import fnmatch
import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.distcp")
LFS_BYTES = 10 << 20


@dataclass(frozen=True)
class StoredFile:
    """One version of one file: bytes in memory, or a file on disk."""

    path: str
    content: bytes | Path

    @property
    def size(self) -> int:
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)

    def read(self, start: int, stop: int) -> bytes:
        if isinstance(self.content, bytes):
            return self.content[start:stop]
        with self.content.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.read(0, self.size)).hexdigest()

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
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(
        self, files: dict[str, bytes | Path], branch: str = "main", message: str = "upload"
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
        return self.commit(dict(files), branch, message)

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
