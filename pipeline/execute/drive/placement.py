"""How many workers of how many threads, and of which share of a GPU, a cluster holds; who pulls.

Pure: no Ray. A worker lives on one node and its share on one GPU: what two nodes have left makes no
worker. Nodes are given by their resources, as Ray names them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

MOST_ON_A_GPU = 8
"""Workers that share a GPU unless another number is asked for. A process has one interpreter, which is what its threads
wait for: on an H200 with 16 cores one worker of 4 threads works at 2.6 to 4.0 GB/s, 4 of 4 at 9.5 to 13.0, 8 of 2 at
15.3 to 15.7 and 16 of 1 at 16.1 to 17.5 (benchmarks/results/gpu.md), and each takes 0.3 GB, and half a GB of the GPU."""
LEAST_CPUS = 2
"""Of each of them: one thread computes while another reads."""

_PARTS_OF_A_GPU = 10_000  # Ray counts resources in these, and would round 1/6 up


def on_cpus(
    nodes: Sequence[Mapping[str, float]], max_workers: int | None, most_threads: int
) -> tuple[int, int]:
    """Return how many workers there is room for, and the CPUs of each.

    At least one, which waits if there is none.
    """
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    threads = max(1, min(most_threads, max(cpus, default=0)))
    workers = sum(each // threads for each in cpus)
    return max(1, min(workers, max_workers or workers)), threads


def on_gpus(
    nodes: Sequence[Mapping[str, float]],
    free: float,
    max_workers: int | None,
    most_threads: int,
) -> tuple[int, int, float]:
    """Return how many workers there is room for, and the CPUs and GPUs of each.

    They share the GPUs evenly. Where no node has a whole GPU free, they share what is. At least one,
    which waits if there is no room for it.

    Args:
        nodes: at least one has a GPU, or a part of one.
        free: the most GPUs that a node has free now.
    """
    nodes = [node for node in nodes if node.get("GPU", 0)]
    gpus = [math.floor(node["GPU"]) or node["GPU"] for node in nodes]
    unit = min(1.0, free or 1.0, max(gpus))
    whole = sum(int(number / unit) for number in gpus)
    spare = min(
        int(node.get("CPU", 0) * unit / number) for node, number in zip(nodes, gpus, strict=True)
    )
    on_each = max(1, min(MOST_ON_A_GPU, spare // LEAST_CPUS))
    if max_workers:
        on_each = max(1, math.ceil(max_workers / whole))
    each = unit / on_each
    each = math.floor(each * _PARTS_OF_A_GPU) / _PARTS_OF_A_GPU

    def held(threads: int) -> int:
        return sum(
            min(int(number / each), int(node.get("CPU", 0)) // threads)
            for node, number in zip(nodes, gpus, strict=True)
        )

    workers = min(held(1), max_workers or held(1))
    threads = max(n for n in range(1, most_threads + 1) if n == 1 or held(n) >= workers)
    return max(1, workers), threads, each


def choose_pull(device: str, nodes: Sequence[Mapping[str, float]]) -> str:
    """Return who pulls from a network: tasks if GPUs wait for bytes, and other nodes can help.

    Through an object store a byte is copied three times more. That pays only where the nodes with
    the GPUs have fewer cores, and so fewer network cards, than the nodes without.
    """
    if device == "cpu":
        return "actor"
    with_gpus = sum(node["CPU"] for node in nodes if node.get("GPU", 0))
    return "tasks" if sum(node["CPU"] for node in nodes) > 2 * with_gpus else "actor"
