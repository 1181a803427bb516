"""What this process may use of its machine: memory and cores, whatever bounds them.

A bound may lie on any control group between the process's own and the root: a systemd slice or a batch
system sets it far below the root, a container at what looks like the root from inside. Both versions are
read as cgroups(7) and proc(5) describe them: `/proc/self/cgroup` names the group in each hierarchy,
`/proc/self/mountinfo` says where a hierarchy is mounted, and which of its groups lies there.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def total_memory(root: Path = _ROOT) -> int:
    """Return the bytes of memory that this process and all that it starts may use together.

    Args:
        root: of the file tree to look at.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group in _groups(root, "memory"):
        # a process beyond memory.high is stopped until memory is reclaimed: as good as a limit
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            total = min([total, *_numbers(group / name)])
    return total


def available_cores(root: Path = _ROOT) -> int:
    """Return how many cores this process can keep busy: by its affinity and its quota, rounded up.

    Args:
        root: of the file tree to look at.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = float(cores or 1)
    for group in _groups(root, "cpu"):
        old = [*_numbers(group / "cpu.cfs_quota_us"), *_numbers(group / "cpu.cfs_period_us")]
        match _numbers(group / "cpu.max") or old:
            case [quota, period] if quota > 0 and period > 0:  # else there is none: "max", or -1
                most = min(most, quota / period)
    return math.ceil(most)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the directories of this process's groups, from its own up to the topmost in sight.

    On a machine with both versions a controller is in one of them; the other's files are not there.
    """
    group_of: dict[str, PurePosixPath] = {}  # by the type of file system
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            group_of["cgroup" if controllers else "cgroup2"] = PurePosixPath(path)
    for line in _lines(root / "proc/self/mountinfo"):
        place, _, what = line.partition(" - ")
        kind, _, options = what.split(" ", 2)
        if kind not in group_of or (kind == "cgroup" and controller not in options.split(",")):
            continue
        shown, point = (PurePosixPath(_unescaped(field)) for field in place.split(" ")[3:5])
        below: tuple[str, ...] = ()
        group = group_of[kind]
        if group.is_relative_to(shown) and ".." not in group.parts:  # else out of sight
            below = group.relative_to(shown).parts
        for depth in range(len(below), -1, -1):
            yield root / point.relative_to("/").joinpath(*below[:depth])


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda escape: chr(int(escape[1], 8)), field)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []  # another system than Linux


def _numbers(file: Path) -> list[int]:
    """Return the numbers of a file; no limit is a word, or no file."""
    return [
        int(word) for line in _lines(file) for word in line.split() if word.lstrip("-").isdigit()
    ]
