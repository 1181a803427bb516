"""Workers that fit on the nodes of a cluster: on a model of Ray's rule, and on Ray itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RequestError
from pipeline.execute.drive.placement import on_cpus, on_gpus
from pipeline.execute.ray.session import layout

repeatable = settings(derandomize=True, deadline=None, max_examples=300)
Nodes = list[dict[str, float]]


def fitting(nodes: Sequence[Mapping[str, float]], threads: int, gpus: float) -> int:
    """Return how many workers can be put on the nodes one by one, each on one card, as Ray does."""
    placed, each = 0, int(gpus * 10_000)
    for node in nodes:
        cpus = int(node.get("CPU", 0))
        whole, part = divmod(int(node.get("GPU", 0) * 10_000), 10_000)
        for card in [10_000] * whole + [part] if each else [0]:
            while cpus >= threads and card >= each:
                placed, cpus, card = placed + 1, cpus - threads, card - each
    return placed


nodes_of_cpus = st.lists(
    st.fixed_dictionaries({}, optional={"CPU": st.integers(0, 20).map(float)}), min_size=1
)
nodes_of_gpus = st.lists(
    st.fixed_dictionaries(
        {"CPU": st.integers(1, 40).map(float)}, optional={"GPU": st.integers(0, 8).map(float)}
    ),
    min_size=1,
).filter(lambda nodes: any(node.get("GPU") for node in nodes))
workers = st.one_of(st.none(), st.integers(1, 50))


@repeatable
@given(nodes_of_cpus, workers, st.integers(1, 8))
def test_all_workers_on_cpus_fit(nodes: Nodes, most: int | None, threads: int) -> None:
    found, each = on_cpus(nodes, most, threads)
    assert 1 <= found <= (most or found) and 1 <= each <= threads
    if any(node.get("CPU") for node in nodes):
        assert found <= fitting(nodes, each, 0)
    if most is None:
        assert found == max(1, fitting(nodes, each, 0))


@repeatable
@given(nodes_of_gpus, workers, st.integers(1, 8))
def test_all_workers_on_gpus_fit(nodes: Nodes, most: int | None, threads: int) -> None:
    """And as many as asked for, unless a node lacks the CPUs for its cards."""
    found, each, gpus = on_gpus(nodes, 8, most, threads)
    assert 1 <= found <= (most or found) and 1 <= each <= threads and 0 < gpus <= 1
    assert found <= fitting(nodes, each, gpus)
    cards = int(sum(node.get("GPU", 0) for node in nodes))
    if most is not None:
        assert gpus == 1 or most > cards
        if all(node["CPU"] >= 50 * threads for node in nodes):
            assert (found, each) == (most, threads)
    elif gpus < 1:  # none of those who share has a single CPU, unless a node has no more
        assert all(node["CPU"] >= 2 * node["GPU"] / gpus for node in nodes if node.get("GPU"))


@pytest.mark.parametrize(
    ("nodes", "free", "most", "expected"),
    [
        ([{"CPU": 16, "GPU": 2}], 2, None, (8, 2, 0.25)),
        ([{"CPU": 16, "GPU": 1}], 1, None, (8, 2, 0.125)),
        ([{"CPU": 128, "GPU": 1}], 1, None, (8, 4, 0.125)),
        ([{"CPU": 16, "GPU": 2}], 2, 1, (1, 4, 1)),
        ([{"CPU": 16, "GPU": 2}], 2, 3, (3, 4, 0.5)),
        ([{"CPU": 16, "GPU": 2}], 2, 8, (8, 2, 0.25)),
        ([{"CPU": 64, "GPU": 1}], 1, 6, (6, 4, 0.1666)),  # six of 0.1667 would be more than one
        ([{"CPU": 4, "GPU": 8}], 8, None, (4, 1, 1)),
        ([{"CPU": 64}, {"CPU": 4, "GPU": 2}], 2, None, (2, 2, 1)),
        ([{"CPU": 32, "GPU": 4}, {"CPU": 8, "GPU": 1}], 4, None, (20, 2, 0.25)),
        ([{"CPU": 32, "GPU": 4}, {"CPU": 4, "GPU": 1}], 4, None, (10, 2, 0.5)),
        ([{"CPU": 8, "GPU": 0.5}, {"CPU": 8, "GPU": 0.5}], 0.5, None, (8, 2, 0.125)),
        ([{"CPU": 8, "GPU": 1}], 0.5, 2, (2, 4, 0.5)),  # another program holds the other half
        ([{"CPU": 2, "GPU": 1}], 0, None, (1, 2, 1)),  # all are taken: it waits for one
    ],
)
def test_cards_and_shares(
    nodes: Nodes, free: float, most: int | None, expected: tuple[int, int, float]
) -> None:
    assert on_gpus(nodes, free, most, 4) == expected


@pytest.mark.parametrize(
    ("cpus", "most", "expected"),
    [
        ([16], None, (4, 4)),
        ([2], None, (1, 2)),
        ([0], None, (1, 1)),
        ([3, 3, 3, 3], None, (4, 3)),  # not three of four, which no node could hold
        ([2, 8], None, (2, 4)),
        ([64, 64], 3, (3, 4)),
    ],
)
def test_cores(cpus: list[int], most: int | None, expected: tuple[int, int]) -> None:
    assert on_cpus([{"CPU": each} for each in cpus], most, 4) == expected


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes that say they have cards, and one that does not."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": 0})
    try:
        for gpus in (2, 1):
            cluster.add_node(num_cpus=6, num_gpus=gpus, object_store_memory=80_000_000)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        yield ray
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("most", [None, 2, 5, 6])
def test_ray_places_what_was_laid_out(most: int | None, cluster: Any) -> None:
    """Every worker starts, on a card that no more share than the layout says."""
    shape = layout("auto", most, "auto", True)
    assert shape.device == "cuda"
    assert shape.workers == (most or 3)  # of 6 CPUs for 2 cards, none has two to spare

    class Worker:
        def card(self) -> tuple[str, Any]:
            context = cluster.get_runtime_context()
            return context.get_node_id(), context.get_accelerator_ids()["GPU"]

    remote = cluster.remote(Worker).options(num_cpus=shape.threads, num_gpus=shape.gpus)
    actors = [remote.remote() for _ in range(shape.workers)]
    try:
        found = cluster.get([actor.card.remote() for actor in actors], timeout=60)
        cards = [(node, card) for node, (card,) in found]
        assert max(cards.count(card) for card in cards) <= shape.sharers
    finally:
        for actor in actors:
            cluster.kill(actor)


@pytest.mark.ray
@pytest.mark.slow
def test_what_another_program_leaves_of_a_card_is_taken(cluster: Any) -> None:
    @cluster.remote(num_cpus=0, num_gpus=0.5)
    class Other:
        def here(self) -> None: ...

    others = [Other.remote() for _ in range(5)]  # half of one card is left
    try:
        cluster.get([other.here.remote() for other in others], timeout=60)
        shape = layout("cuda", 1, "auto", True)
        assert (shape.workers, shape.gpus, shape.sharers) == (1, 0.5, 2)
        assert layout("cpu", None, "auto", True).gpus == 0
    finally:
        for other in others:
            cluster.kill(other)


@pytest.mark.ray
@pytest.mark.slow
def test_no_gpu_in_the_cluster(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [node for node in cluster.nodes() if not node["Resources"].get("GPU")]
    monkeypatch.setattr("ray.nodes", lambda: alone)
    with pytest.raises(RequestError, match="no GPU"):
        layout("cuda", None, "auto", True)
    assert layout("auto", None, "auto", True).device == "cpu"
