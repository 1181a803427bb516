"""Who should pull? Both placements, with one worker and two, and where each node has a link of its own.

    sudo PYTHONPATH=. python benchmarks/pull.py [--gigabytes 6.4]

A real Ray of several nodes on this machine, each in a network namespace of its own (hence root) with
two cards: one to the cluster, as fast as it goes, and one to the Hub, which `tc` can hold to a rate.
The suite is synthetic (`served.py`), without TLS, its server a process of its own on the same cores.
*seconds* are of the whole job as `--json` states them, start of the workers included.

First everything shares the cores, against `--executor local`. Then each node reaches the Hub by a
slow link and only one of them computes, as where few nodes have GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.served import NAME, Served, Suite, served

_BIN = Path(sys.executable).parent
_HUB, _HEAD = "10.99.2.254", "10.99.1.1"
_ENVIRONMENT = os.environ | {"RAY_AUTH_MODE": "disabled", "HF_HUB_DISABLE_TELEMETRY": "1"}


@contextmanager
def network() -> Iterator[None]:
    """A network to the Hub and one of the cluster, as bridges."""
    try:
        for bridge, address in (("hm-hub", _HUB), ("hm-ray", "10.99.1.254")):
            _do(f"ip link add {bridge} type bridge", f"ip link set {bridge} up")
            _do(f"ip addr add {address}/24 dev {bridge}")
        yield
    finally:
        _do("ip link del hm-hub", "ip link del hm-ray", check=False)


@contextmanager
def node(number: int, cpus: int, megabytes_per_s: float | None) -> Iterator[None]:
    """A node of the cluster; the first one is its head."""
    name = f"hm{number}"
    _do(f"ip netns add {name}", f"ip -n {name} link set lo up")
    for network, third in (("hub", 2), ("ray", 1)):
        outside, inside = f"{name}-{network}", f"{name}{network}"
        _do(
            f"ip link add {outside} type veth peer name {inside} netns {name}",
            f"ip link set {outside} master hm-{network} up",
            f"ip -n {name} addr add 10.99.{third}.{number}/24 dev {inside}",
            f"ip -n {name} link set {inside} up",
        )
    if megabytes_per_s:
        rate = f"rate {8 * megabytes_per_s}mbit burst 1mb latency 100ms"
        _do(f"tc qdisc add dev {name}-hub root tbf {rate}")
    where = "--head --include-dashboard=false --port=6379"
    if number > 1:
        where = f"--address={_HEAD}:6379"
    command = (
        f"ip netns exec {name} {_BIN}/ray start --block {where} --node-ip-address=10.99.1.{number}"
        f" --num-cpus={cpus} --object-store-memory=1000000000"
    )
    with tempfile.NamedTemporaryFile(prefix="hallmarks-node-") as log:
        process = subprocess.Popen(
            command.split(), env=_ENVIRONMENT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            while b"will now block" not in Path(log.name).read_bytes():
                if process.poll() is not None:
                    raise SystemExit(Path(log.name).read_text())
                time.sleep(0.2)
            yield
        finally:
            _do(f"pkill -KILL -s {process.pid}", check=False)
            process.wait()
            _do(f"ip link del {name}-hub", f"ip link del {name}-ray", check=False)
            _do(f"ip netns del {name}", check=False)


def job(hub: Served, *options: str) -> dict:
    """Return what one analysis says of itself, run on the first node."""
    with tempfile.TemporaryDirectory() as store:
        command = (
            f"ip netns exec hm1 {sys.executable} -m jobs.analyze {NAME} --json --store {store}"
        )
        done = subprocess.run(
            [*command.split(), "--memory", "1GiB", "--device", "cpu", *options],
            env=_ENVIRONMENT | {"HF_ENDPOINT": hub.endpoint},
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    return json.loads(done.stdout)


def rows(
    hub: Served, nodes: Sequence[int], megabytes_per_s: float | None, *options: str
) -> Iterator[str]:
    """Yield a line of a table for each placement on nodes of so many CPUs."""
    shape = f"{len(nodes)} of {nodes[0]} CPUs" if len(nodes) > 1 else f"1 of {nodes[0]} CPUs"
    with ExitStack() as cluster:
        for number, cpus in enumerate(nodes, 1):
            cluster.enter_context(node(number, cpus, megabytes_per_s))
        for pull in ("actor", "tasks"):
            found = job(hub, "--address", f"{_HEAD}:6379", "--pull", pull, *options)
            yield _line(shape, pull, str(found["workers"]), found)


def _line(shape: str, pull: str, workers: str, found: dict) -> str:
    rate = found["bytes_read"] / found["seconds"] / 1e6
    return f"| {shape} | {pull} | {workers} | {found['seconds']:.1f} | {rate:.0f} |"


def _do(*commands: str, check: bool = True) -> None:
    for command in commands:
        subprocess.run(command.split(), check=check, stderr=None if check else subprocess.DEVNULL)


def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=6.4)
    size = int(parser.parse_args().gigabytes * 1e9)
    head = "| nodes | pull | workers | seconds | MB/s |\n|---|---|---|---|---|"
    with network():
        with served(Suite(32, 2, size), _HUB) as hub:
            print(f"{size / 1e9:.1f} GB, as fast as it goes:\n\n{head}", flush=True)
            with node(1, 1, None):
                print(_line("none", "--executor local", "1", job(hub, "--executor", "local")))
            for nodes in ([2], [1, 1], [2, 2]):
                print(*rows(hub, nodes, None), sep="\n", flush=True)
        with served(Suite(32, 2, size // 3), _HUB) as hub:
            print(
                f"\n{size / 3e9:.1f} GB, 40 MB/s from the Hub to each node:\n\n{head}", flush=True
            )
            for nodes in ([2], [2, 2], [2, 2, 2]):
                print(*rows(hub, nodes, 40, "--max-workers", "1"), sep="\n", flush=True)


if __name__ == "__main__":
    main()
