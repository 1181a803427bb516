"""The memory of a program under measurement: its own and shared pages, without files in the cache."""

from __future__ import annotations

from pathlib import Path


def resident_of_family(pid: int) -> int:
    """Return RssAnon + RssShmem of a process and all its descendants, in bytes."""
    return sum(map(resident, family(pid)))


def resident(pid: int) -> int:
    """Return RssAnon + RssShmem of one process, in bytes; 0 if it ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(
        1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))
    )


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for member in found:
        try:
            for task in Path(f"/proc/{member}/task").iterdir():
                found.extend(int(child) for child in (task / "children").read_text().split())
        except OSError:
            continue  # it ended
    return found
