"""What a process may use of its machine, read from file trees such as machines have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.planning.machine import available_cores, total_memory

MIB = 1 << 20
UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
OLD = (
    "31 23 0:28 / /sys/fs/cgroup rw shared:4 - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
)
OLD_GROUPS = "12:memory:{0}\n3:cpu,cpuacct:{0}\n1:name=systemd:{0}\n0::{0}"
NO_LIMIT = "9223372036854771712"


def machine(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """Write a file tree: what the process is in, what is mounted, and files below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups + "\n")
    (root / "proc/self/mountinfo").write_text(
        f"22 1 254:1 / / rw,relatime - ext4 /dev/root rw\n{mounts}\n"
    )
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


SLICE = "user.slice/user-1000.slice/job_7.scope"
DOCKER = "docker/0b8ee2"

MEMORY = {
    "its own group": (f"0::/{SLICE}", UNIFIED, {f"{SLICE}/memory.max": str(430 * MIB)}),
    "a group above its own": (
        f"0::/{SLICE}", UNIFIED,
        {
            f"{SLICE}/memory.max": "max",
            "user.slice/user-1000.slice/memory.max": str(430 * MIB),
            "user.slice/memory.max": str(900 * MIB),
        },
    ),
    "the least of all": (
        f"0::/{SLICE}", UNIFIED,
        {f"{SLICE}/memory.max": str(900 * MIB), "user.slice/memory.max": str(430 * MIB)},
    ),
    "where it is slowed down": (
        f"0::/{SLICE}", UNIFIED,
        {f"{SLICE}/memory.max": str(900 * MIB), f"{SLICE}/memory.high": str(430 * MIB)},
    ),
    "a container with a namespace": ("0::/", UNIFIED, {"memory.max": str(430 * MIB)}),
    "a container's sidecar moved elsewhere": (
        "0::/../other", UNIFIED, {"memory.max": str(430 * MIB), "../other/memory.max": "1"}
    ),
    "a container without a namespace": (
        f"0::/{DOCKER}/inner", UNIFIED.replace(" / /sys", f" /{DOCKER} /sys"),
        {"memory.max": str(900 * MIB), "inner/memory.max": str(430 * MIB)},
    ),
    "a mount with a space in its path": (
        "0::/a", UNIFIED.replace("/sys/fs/cgroup", r"/sys/fs/cgroup/c\0402"),
        {"c 2/a/memory.max": str(430 * MIB)},
    ),
    "version 1": (
        OLD_GROUPS.format("/slurm/job_7"), OLD,
        {
            "memory/memory.limit_in_bytes": NO_LIMIT,
            "memory/slurm/memory.limit_in_bytes": NO_LIMIT,
            "memory/slurm/job_7/memory.limit_in_bytes": str(430 * MIB),
        },
    ),
    "version 1, above": (
        OLD_GROUPS.format("/slurm/job_7"), OLD,
        {
            "memory/slurm/memory.limit_in_bytes": str(430 * MIB),
            "memory/slurm/job_7/memory.limit_in_bytes": NO_LIMIT,
        },
    ),
    "version 1 in a container": (
        OLD_GROUPS.format(f"/{DOCKER}"), OLD.replace(" / /sys/fs/cgroup/memory", f" /{DOCKER} /sys/fs/cgroup/memory"),
        {"memory/memory.limit_in_bytes": str(430 * MIB)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("where", MEMORY)
def test_memory_is_bounded_by(where: str, tmp_path: Path) -> None:
    assert total_memory(machine(tmp_path, *MEMORY[where])) == 430 * MIB


def test_memory_without_a_bound(tmp_path: Path) -> None:
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert total_memory(tmp_path) == installed  # another system than Linux
    assert total_memory(machine(tmp_path, f"0::/{SLICE}", UNIFIED, {})) == installed
    assert 0 < total_memory() <= installed


CORES = {
    "its own group": (f"0::/{SLICE}", UNIFIED, {f"{SLICE}/cpu.max": "150000 100000"}, 2),
    "a group above its own": (
        f"0::/{SLICE}", UNIFIED,
        {f"{SLICE}/cpu.max": "max 100000", "user.slice/cpu.max": "300000 100000"}, 3,
    ),
    "less than one": ("0::/", UNIFIED, {"cpu.max": "5000 100000"}, 1),
    "version 1": (
        OLD_GROUPS.format("/slurm/job_7"), OLD,
        {
            "cpu,cpuacct/slurm/cpu.cfs_quota_us": "400000",
            "cpu,cpuacct/slurm/cpu.cfs_period_us": "100000",
            "cpu,cpuacct/slurm/job_7/cpu.cfs_quota_us": "-1",
            "cpu,cpuacct/slurm/job_7/cpu.cfs_period_us": "100000",
        }, 4,
    ),
    "nothing": (f"0::/{SLICE}", UNIFIED, {f"{SLICE}/cpu.max": "max 100000"}, 64),
}  # fmt: skip


@pytest.mark.parametrize("where", CORES)
def test_cores_are_bounded_by(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the quota, on a machine that has 64."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    *about, expected = CORES[where]
    assert available_cores(machine(tmp_path, *about)) == expected


def test_cores_are_bounded_by_affinity(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert available_cores(machine(tmp_path, "0::/", UNIFIED, {"cpu.max": "900000 1000"})) == 1
    finally:
        os.sched_setaffinity(0, before)
