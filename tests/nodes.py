"""A real Ray of a head and two nodes on this machine, and what can be done to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Nodes:
    """The cluster, and what can be done to it."""

    def __init__(self, cluster: Any, mark: str) -> None:
        """`mark`: in the environment of all that is this cluster's: others may run beside it."""
        self.cluster, self.mark = cluster, mark
        self.address: str = cluster.address
        self.workers = [self.add(), self.add()]
        self.hurt: list[Any] = []
        self.late: subprocess.Popen[bytes] | None = None

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=4, object_store_memory=80_000_000)

    def whole(self) -> None:
        """Make it two sound nodes again."""
        if self.late is not None:
            os.killpg(self.late.pid, signal.SIGKILL)  # the node that joined, with its workers
            self.late.wait()
            self.late = None
        while self.hurt:
            self.lose(self.hurt.pop())
        alive = [node for node in self.workers if node.any_processes_alive()]
        self.workers = alive + [self.add() for _ in range(2 - len(alive))]
        self.cluster.wait_for_nodes()

    def other(self) -> Any:
        """Return a node that this process, which is the driver, is not connected through."""
        import ray

        own = ray._private.worker._global_node.raylet_socket_name  # no public name tells it
        return next(node for node in self.workers if node.raylet_socket_name != own)

    def lose(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)

    def join_late(self, **environment: str) -> None:
        """Add a node by command: the other way sets a signal's handler, which a thread may not.

        Args:
            environment: of the node and its workers.
        """
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=4",
            f"--address={self.address}", "--object-store-memory=80000000",
        ]  # fmt: skip
        quiet = subprocess.DEVNULL
        self.late = subprocess.Popen(
            command, stdout=quiet, stderr=quiet, start_new_session=True,
            env=os.environ | environment,
        )  # fmt: skip

    @staticmethod
    def raylet(node: Any) -> int:
        return node.all_processes["raylet"][0].process.pid

    def processes(self, of: str) -> list[int]:
        """Return this cluster's workers that run an actor's class or a task."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if (
                    folder.name.isdigit()
                    and (folder / "cmdline").read_bytes().startswith(b"ray::" + of.encode())
                    and self.mark.encode() in (folder / "environ").read_bytes()
                ):
                    found.append(int(folder.name))
        return found

    def actors(self) -> list[int]:
        return self.processes("WorkerActor")


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    """Start them, with health checks made quick before the head starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "initial_delay_ms": "1000", "period_ms": "500", "timeout_ms": "1000",
            "failure_threshold": "3",
        }.items():  # fmt: skip
            patch.setenv(f"RAY_health_check_{name}", value)
        patch.setenv("TEST_CLUSTER", mark := uuid.uuid4().hex)
        from ray.cluster_utils import Cluster

        before = signal.getsignal(signal.SIGTERM)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            yield Nodes(cluster, mark)
        finally:
            cluster.shutdown()
            signal.signal(signal.SIGTERM, before)  # each node has set one that outlives it
