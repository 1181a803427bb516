"""What was measured on two cores, carried to public suites on stated clusters: docs/scale.md.

    python benchmarks/scale.py

Arithmetic alone. Every constant names the measurement that it comes from; bandwidths are the clusters'
own, and that a host sends as fast as that is an assumption.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

READ = 1.7  # CPU s/GiB, TLS, 32 readers on a link: network.md, "client alone, 200 MB/s"
DECODE = 1.0  # CPU s/GiB, product alone (1.8 in network.md) less its matrix products
GFLOPS = 190e9  # a core's, middle of 154-227 for 64-935 rows: docs/architecture.md
GFLOPS_GPU = 11e12  # with decoding and differences, 64 checkpoints on an H200: gpu.md
MS_A_TILE = 0.8  # of the driver: driver.md
RESOLVE_S, RESOLVES_AT_ONCE = 0.1, 8  # a round trip to the Hub: assumed
LIFE_S = 0.8 * 3600


@dataclass(frozen=True)
class Suite:
    name: str
    checkpoints: int
    gigabytes: float  # of one
    item_bytes: int
    shards: int

    @property
    def gib(self) -> float:
        return self.checkpoints * self.gigabytes * 1e9 / 2**30

    @property
    def tiles(self) -> int:
        """By the rule of `pipeline/planning/tiles.py`."""
        least = max(64 << 20, 8000 * self.checkpoints**2)
        return math.ceil(self.gib * 2**30 / least)

    @property
    def flops(self) -> float:
        """Of all products: 2 n² for each element of a checkpoint."""
        return 2 * self.checkpoints**2 * self.gigabytes * 1e9 / self.item_bytes


@dataclass(frozen=True)
class Cluster:
    name: str
    nodes: int
    cores: int
    gbit_s: float
    gpus: int = 0


SUITES = (
    Suite("Pythia-12B", 154, 24, 2, 3),
    Suite("OLMo-2-7B", 935, 29, 4, 6),
)
CLUSTERS = (
    Cluster("one node, 16 cores, 10 Gbit/s", 1, 16, 10),
    Cluster("8 nodes, 16 cores and 10 Gbit/s each", 8, 16, 10),
    Cluster("4 nodes, 32 cores, a GPU and 25 Gbit/s each", 4, 32, 25, 1),
)


def row(suite: Suite, cluster: Cluster) -> list[str]:
    """Return one line of the table."""
    cores = cluster.nodes * cluster.cores
    reading, decoding = READ * suite.gib / cores, DECODE * suite.gib / cores
    products = suite.flops / (
        cluster.nodes * cluster.gpus * GFLOPS_GPU if cluster.gpus else cores * GFLOPS
    )
    on_cores = reading + decoding + (0 if cluster.gpus else products)
    times = {
        "network": suite.gib * 2**30 * 8 / (cluster.nodes * cluster.gbit_s * 1e9),
        "cores": on_cores,
        "GPUs": products if cluster.gpus else 0.0,
    }
    first = max(times, key=lambda name: times[name])
    hours = times[first] / 3600
    files = suite.checkpoints * suite.shards
    resolves = files * math.ceil(max(1.0, times[first] / LIFE_S))
    return [
        f"{suite.name}, {suite.checkpoints} × {suite.gigabytes:g} GB", cluster.name,
        f"{hours:.1f}", first, f"{times['network'] / 3600:.1f}", f"{times['cores'] / 3600:.1f}",
        f"{hours * cores:,.0f}", f"{resolves:,}", f"{suite.tiles:,}",
        f"{MS_A_TILE * suite.tiles / 1000:.0f} s",
        f"{files * RESOLVE_S / RESOLVES_AT_ONCE:.0f} s",
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    heads = [
        "suite", "cluster", "hours", "what saturates first", "network alone, h", "cores alone, h",
        "core hours", "URLs", "tiles", "driver", "first URLs",
    ]  # fmt: skip
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for suite in SUITES:
        for cluster in CLUSTERS:
            print("| " + " | ".join(row(suite, cluster)) + " |")


if __name__ == "__main__":
    main()
