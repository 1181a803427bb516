"""Which Ray: this machine's own by default, a cluster if one is named; and what it has room for."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray._private import worker as ray_worker  # no public name tells its processes
from ray._private.services import canonicalize_bootstrap_address  # nor which cluster is `auto`
from ray._private.state import actors, available_resources_per_node  # no public name tells it
from ray._private.utils import resolve_object_store_memory  # of the memory that it is told
from ray.exceptions import RayActorError, RayError, RayTaskError

from pipeline.errors import HallmarksError, RequestError, TileLost, quoted
from pipeline.execute.drive.placement import choose_pull, on_cpus, on_gpus
from pipeline.execute.ray.life import Life
from pipeline.planning.machine import available_cores, total_memory

CONNECT_S = 10.0
"""For a machine to accept a connection: beyond, it is not there, or a firewall swallows packets."""
NODE_START_S = 30
"""Ray's own limit for a node that it starts, which cannot be set; 2 to 7 s are usual."""
START_S = 60.0
"""For all that Ray does until it can be used."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the work is laid out on the cluster."""

    workers: int
    threads: int
    """Tiles computed side by side in one worker; as many CPUs are reserved for it."""
    device: str
    pull: str
    """Who pulls: `actor`, the workers themselves, or `tasks` on the CPUs that they leave."""
    store_bytes: int
    """Of the smallest object store among the nodes that work."""
    pulling: int
    """Tasks that can pull for one worker at once."""
    together: int = 1
    """Workers that one node holds, at most."""
    gpus: float = 0
    """GPUs of a worker: one, or a share of one."""

    @property
    def sharers(self) -> int:
        """How many workers may compute on the GPU of one."""
        return max(1, int(1 / self.gpus)) if self.gpus else 1


@contextmanager
def ray_session(address: str | None, pull: str) -> Iterator[None]:
    """Connect to a cluster, or start a Ray of this job's own, and shut it down.

    `address="local"` always starts a new one: the cluster file that a crashed Ray leaves behind
    would make a plain start fail.

    Raises:
        RequestError: an address of another kind, or no cluster answers there.
        HallmarksError: Ray does not start on this machine.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith(("http://", "https://", "ray://")):
        raise RequestError(
            f"--address {address}: Ray Client connections are not supported",
            f"submit a job: ray job submit --address {address} -- python -m jobs.analyze …",
        )
    if address == "local":
        life = Life(_options_here(pull))
        started = partial(_started_here, life)
    else:
        _assure_that_something_listens(address)
        life = Life({"address": address})
        started = partial(_connected, life, address)
    with life:
        started()
        yield


def _options_here(pull: str) -> dict[str, Any]:
    """Return how to start a Ray of this job's own, which looks at the root's control group only."""
    # nothing but receipts passes through the object store, unless tasks pull; Ray's least is 80 MB
    store = resolve_object_store_memory(total_memory()) if pull == "tasks" else 100_000_000
    return {
        "address": "local",
        "include_dashboard": False,
        "num_cpus": available_cores(),
        "object_store_memory": store,
    }


def _started_here(life: Life) -> None:
    try:
        life.begin(START_S)
    except HallmarksError:
        raise  # an interruption
    except Exception as error:  # Ray raises a bare Exception for a node that is late
        late = isinstance(error, TimeoutError) or "timed out" in str(error)
        raise HallmarksError(
            f"Ray did not start on this machine within {NODE_START_S} s"
            if late
            else f"Ray did not start on this machine: {quoted(_first_line(error))}",
            "use --executor local to run without Ray",
        ) from None


def _connected(life: Life, address: str) -> None:
    try:
        life.begin(START_S)
    except TimeoutError:
        raise _no_cluster(address, f"no answer within {START_S:.0f} s") from None
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, quoted(_first_line(error), 300)) from None


def _assure_that_something_listens(address: str) -> None:
    """Refuse an address where nothing listens, which Ray would try for five minutes."""
    try:
        place = canonicalize_bootstrap_address(address)
        if place is not None:
            host, _, port = place.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise _no_cluster(address, error.strerror or str(error)) from None
    except (ValueError, OverflowError) as error:
        raise _no_cluster(address, quoted(_first_line(error), 300)) from None


def _no_cluster(address: str, why: str) -> RequestError:
    return RequestError(
        f"no Ray cluster at {quoted(address)}: {why}",
        "check --address and RAY_ADDRESS, or unset both",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def layout(
    device: str,
    max_workers: int | None,
    pull: str,
    is_remote: bool,
    without: Collection[str] = (),
    threads_per_worker: int = 4,
) -> Layout:
    """Return how many workers of how many threads the cluster has room for.

    Several workers share a GPU, each with two cores at least; without GPUs there is one per four
    cores, since each costs 0.3 GB and four threads keep the interpreter's lock free (a product of
    16,384 columns takes a millisecond or more). Where tasks pull, half of each node's cores are left to
    them: over TLS a byte costs about as much to pull as to compute, and whichever node is lost,
    some that compute and some that pull are left.

    Args:
        pull: `actor`, `tasks`, or `auto`: see `choose_pull`.
        is_remote: reads mostly wait for a network.
        without: nodes that are not used, by their identifiers.

    Raises:
        RequestError: the cluster does not have what is asked for.
    """
    nodes = [of for node, of in working_nodes().items() if node not in without]
    has_gpu = any(node.get("GPU", 0) for node in nodes)
    if device == "cuda" and not has_gpu:
        raise RequestError("--device cuda: the cluster has no GPU", "use --device cpu")
    device = "cuda" if has_gpu and device != "cpu" else "cpu"
    if pull == "auto":
        pull = choose_pull(device, nodes) if is_remote else "actor"
    store = int(min((node.get("object_store_memory", 0) for node in nodes), default=0))
    cpus = sum(node["CPU"] for node in nodes)
    if pull == "tasks":
        if cpus < 2:
            raise RequestError(
                "--pull tasks needs 2 CPUs, found 1: one computes, one pulls", "use --pull actor"
            )
        nodes = [{**node, "CPU": node["CPU"] // 2} for node in nodes]
    if device == "cpu":
        workers, threads = on_cpus(nodes, max_workers, threads_per_worker)
        gpus = 0.0
    else:
        free = available_resources_per_node().values()
        most = max((node.get("GPU", 0) for node in free), default=0)
        workers, threads, gpus = on_gpus(nodes, most, max_workers, threads_per_worker)
    largest = max((int(node["CPU"]) for node in nodes), default=0)
    together = max(1, min(workers, largest // threads))
    pulling = int(cpus / workers) - threads
    return Layout(workers, threads, device, pull, store, pulling, together, gpus)


def working_nodes() -> dict[str, dict[str, float]]:
    """Return the nodes that can work, by their identifiers, and the resources of each."""
    alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    return {node: resources for node, resources in alive.items() if resources.get("CPU")}


def has_room(needs: Mapping[str, float], without: Collection[str]) -> bool:
    """Return whether a node, but for some, has these resources free."""
    return any(
        all(free.get(name, 0) >= number for name, number in needs.items())
        for node, free in available_resources_per_node().items()
        if node not in without
    )


def outside(nodes: Collection[str]) -> dict[str, Any]:
    """Return the option of an actor that keeps it off some nodes."""
    return {"label_selector": {"ray.io/node-id": f"!in({','.join(nodes)})"}} if nodes else {}


def node_of(actor: Any) -> str:
    """Return the node where an actor is, or was; empty if that is not known."""
    known: Any = actors(actor._actor_id.hex())
    return known.get("Address", {}).get("NodeID", "")


def assure_here() -> None:
    """Look at what a Ray of this job's own consists of.

    Raises:
        HallmarksError: some of it is gone. Ray itself would end this process in half a minute.
    """
    node: Any = ray_worker._global_node  # pyright: ignore[reportPrivateUsage] - no public name tells it
    for name, process in node.dead_processes() if node else ():
        if name in ("raylet", "gcs_server"):
            raise HallmarksError(
                f"Ray on this machine died (its {name} ended with {process.returncode}):"
                " killed, possibly out of memory",
                "finished tiles are kept; rerun the same command to resume",
            )


class NotStarted(TileLost):
    """A worker failed before it could do anything: its node lacks something."""


def wait(calls: Sequence[Any], num_returns: int, timeout_s: float) -> list[Any]:
    """Return the calls that have ended, as soon as there are so many, or the time is over.

    Raises:
        Whatever a signal's handler raises meanwhile: Ray 2.60 makes a SystemError of it.
    """
    try:
        ended, _ = ray.wait(list(calls), num_returns=num_returns, timeout=timeout_s)
    except SystemError as error:
        raise error.__cause__ or error from None
    return ended


def result(call: Any) -> Any:
    """Return what a call returned.

    Raises:
        NotStarted: who was to do it could not be made.
        TileLost: who did it has died.
        HallmarksError: what it ended in, if it is one of ours.
    """
    try:
        return ray.get(call)
    except RayTaskError as error:
        if isinstance(error.cause, HallmarksError):
            raise error.cause from None
        raise
    except RayActorError as error:
        if error.actor_init_failed:
            last = str(error).strip().splitlines()[-1]
            raise NotStarted(
                f"a worker cannot start: {quoted(last)}", "is the same program on every node?"
            ) from None
        raise TileLost(f"a worker died ({type(error).__name__})") from None
    except RayError as error:
        raise TileLost(f"a worker died ({type(error).__name__})") from None
