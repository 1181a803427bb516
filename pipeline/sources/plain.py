"""Names from outside: what may become a local path, and what may name contents.

Branches, paths in listings, commits and hashes are whatever a server says. Here alone they become
local paths, and here it is decided what they may look like.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import FormatError, quoted

HUB_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?"
)
"""A repository on the Hub, and what of it."""

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def is_hash(text: object) -> bool:
    """Return whether a text is a SHA-1 (of git: a commit, a blob) or a SHA-256, in hexadecimal."""
    return isinstance(text, str) and _HASH.fullmatch(text) is not None


def is_plain(name: object) -> bool:
    """Return whether a name is a plain relative path: no way leads from it out of a directory.

    So are all names that git itself accepts of branches, tags and files.
    """
    if not isinstance(name, str) or "\0" in name:
        return False
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def inside(root: Path, name: str) -> Path:
    """Return the path of a name below a directory.

    Raises:
        FormatError: the name is anything but a plain relative path.
    """
    if not is_plain(name):
        raise FormatError(f"expected a plain relative path, found {quoted(name)}")
    return root / name
