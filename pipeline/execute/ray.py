"""Which Ray: this machine's own by default, a cluster if one is named; and what it has room for."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import available_resources_per_node  # no public name tells it

from pipeline.errors import RequestError
from pipeline.execute.placement import on_cpus, on_gpus

_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the work is laid out on the cluster."""

    workers: int
    threads: int
    """Tiles computed side by side in one worker; as many CPUs are reserved for it."""
    device: str
    gpus: float = 0
    """Cards of a worker: one, or a share of one."""

    @property
    def sharers(self) -> int:
        """How many workers may compute on the card of one."""
        return max(1, int(1 / self.gpus)) if self.gpus else 1


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start a Ray of this job's own, and shut it down.

    `address="local"` always starts a new one: the cluster file that a crashed Ray leaves behind
    would make a plain start fail.

    Raises:
        RequestError: an address of another kind, or nothing answers there.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith(("http://", "https://", "ray://")):
        raise RequestError(
            f"--address {address}: this program does not run over a client connection",
            f"submit a job: ray job submit --address {address} -- python -m jobs.analyze …",
        )
    options: dict[str, Any] = {"address": address, "log_to_driver": False}
    if address == "local":
        # Nothing but receipts passes through the object store: 80 MB is Ray's least.
        options |= {"include_dashboard": False, "object_store_memory": 100_000_000}
    try:
        with _without_secrets():
            ray.init(logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"no Ray cluster at {address}: {str(error).splitlines()[0]}",
            "check --address and RAY_ADDRESS, or leave both out",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _without_secrets() -> Iterator[None]:
    """Every process of a local Ray inherits this one's environment."""
    hidden = {name: os.environ.pop(name) for name in _SECRETS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def layout(device: str, max_workers: int | None, threads_per_worker: int = 4) -> Layout:
    """Return how many workers of how many threads the cluster has room for.

    One worker per GPU, unless more are asked for than there are; without GPUs one per four cores,
    since each costs 0.3 GB and four threads keep the interpreter's lock free (a product of 16,384
    columns takes a millisecond or more).

    Raises:
        RequestError: the cluster has no GPU.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    has_gpu = any(node.get("GPU", 0) for node in nodes)
    if device == "cuda" and not has_gpu:
        raise RequestError("--device cuda: the cluster has no GPU", "use --device cpu")
    if has_gpu and device != "cpu":
        free = available_resources_per_node().values()
        most = max((node.get("GPU", 0) for node in free), default=0)
        workers, threads, gpus = on_gpus(nodes, most, max_workers, threads_per_worker)
        return Layout(workers, threads, "cuda", gpus)
    workers, threads = on_cpus(nodes, max_workers, threads_per_worker)
    return Layout(workers, threads, "cpu")
