"""Blocks on a device: however a block is divided, and wherever a GPU's memory runs out, the same bits.

What a GPU is asked to do runs here on the processor, by the same functions.
"""

from __future__ import annotations

import gc
import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.checkpoint.parts import Part
from pipeline.errors import DeviceFull, HallmarksError, RequestError
from pipeline.execute.drive.local import run_local
from pipeline.execute.drive.schedule import Lost
from pipeline.execute.work import device as device_module
from pipeline.execute.work import gpu_lane
from pipeline.execute.work.device import (
    Device,
    choose_device,
)
from pipeline.execute.work.gpu_lane import GpuLane, pinned, ran_out_of_memory
from pipeline.execute.work.urls import UrlBroker
from pipeline.execute.work.worker import Worker
from pipeline.planning.blocks import block_layouts
from pipeline.planning.make import make_plan
from pipeline.planning.memory import project
from pipeline.planning.plan import Plan
from pipeline.planning.request import Request
from pipeline.planning.tiles import TensorRange, Tile
from pipeline.reduce.parts import sums_of_parts
from pipeline.sources.base import Source
from pipeline.statistics import gram
from pipeline.statistics import piece as piece_module
from pipeline.statistics import pieces as pieces_module
from pipeline.statistics.gpu import launched
from pipeline.statistics.parts import PartKey, Sums
from pipeline.statistics.piece import (
    TORCH_DTYPES,
    PiecePlace,
    Pieces,
    Scratch,
    TensorFacts,
    one_thread_products,
)
from pipeline.statistics.pieces import PIECE, splitmix64
from pipeline.statistics.statistic import unpacked
from tests.reference import increment_gram
from tests.suites import trajectory

COUNT = 5
MIXED = ("F32", "F16", "BF16", "F64", "F16")
FUSED = tuple(Part(label, "attn", 300, 100 * n, 100 * n + 100) for n, label in enumerate("qkv"))


class Kept:
    """A sink in memory."""

    def __init__(self) -> None:
        self.results: dict[str, Sums] = {}

    def put(self, tile_name: str, result: Sums) -> None:
        self.results[tile_name] = result

    def bits(self) -> dict[object, bytes]:
        """Return every array of every tile."""
        return {
            (name, array): values.tobytes()
            for name, result in self.results.items()
            for array, values in result.arrays.items()
        }


@dataclass
class Suite:
    plan: Plan
    source: Source
    stored: dict[str, np.ndarray]
    """(K, numel) float64 values of each tensor, as stored."""

    def worker(
        self, kind: str = "cpu", threads: int = 1, pieces: int | None = None
    ) -> tuple[Worker, Kept]:
        """Return a worker, and what keeps its results; blocks hold `pieces` of the widest format, if given."""
        kept, urls = Kept(), UrlBroker(self.plan, self.source)
        memory = project(self.plan.tensors, self.plan.tiles, 1 << 30, threads)
        if pieces is not None:
            memory = replace(memory, row_bytes=pieces * 8 * PIECE)
        return Worker(self.plan, kept, urls, kind, threads, memory), kept

    def computed(self, kind: str = "cpu", threads: int = 1, pieces: int | None = None) -> Kept:
        """Return the results of all tiles; on one thread they are computed in this one."""
        worker, kept = self.worker(kind, threads, pieces)
        tiles = range(len(self.plan.tiles))
        try:
            if threads == 1:
                for tile in tiles:
                    worker.run(tile, tile)
            else:
                outcomes = list(run_local(worker, threads, list(tiles)))
                assert not any(isinstance(outcome, Lost) for outcome in outcomes), outcomes
        finally:
            worker.close()
        return kept


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Every format, formats that change, a fused tensor, tensors of seven weights, NaN: three tiles."""
    directory = tmp_path_factory.mktemp("device") / "suite"
    shapes: dict[str, tuple[int, tuple[str, ...]]] = {
        "broken": (33_000, ("F32",) * COUNT),
        "double": (17_000, ("F64",) * COUNT),
        "fused": (48_000, ("F16",) * COUNT),
        "half": (50_000, ("F16",) * COUNT),
        "mixed": (70_000, MIXED),
        "other": (20_000, ("BF16",) * COUNT),
        "single": (70_001, ("F32",) * COUNT),
        **{f"tiny{n}": (7, (dtype,) * COUNT) for n, dtype in enumerate(MIXED)},
    }
    values = {
        name: trajectory("walk", COUNT, numel, 0.1, seed)
        for seed, (name, (numel, _)) in enumerate(shapes.items())
    }
    values["broken"][2, [0, 20_000]] = np.nan, np.inf
    values["single"] = np.repeat(values["single"][:, :1], 70_001, axis=1) * 2.0**-60 + 0.0
    values["single"][:, 1::2] = trajectory("walk", COUNT, 35_000, 0.1)
    stored: dict[str, list[np.ndarray]] = {name: [] for name in shapes}
    for k in range(COUNT):
        (directory / f"step{k}").mkdir(parents=True)
        rows = {
            name: torch.from_numpy(values[name][k]).to(TORCH_DTYPES[dtypes[k]])
            for name, (_, dtypes) in shapes.items()
        }
        save_file(rows, directory / f"step{k}" / "model.safetensors")
        for name, row in rows.items():
            stored[name].append(row.double().numpy())
    plan, source = make_plan(Request(str(directory)), least_tile_bytes=1 << 20)
    tensors = tuple(
        replace(tensor, parts=FUSED) if tensor.name == "fused" else tensor
        for tensor in plan.tensors
    )
    assert len(plan.tiles) > 2
    stacked = {name: np.stack(found) for name, found in stored.items()}
    return Suite(replace(plan, tensors=tensors), source, stacked)


@pytest.fixture(autouse=True)
def float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of parts of some size here, sampled, as of large ones; in batches of two pieces, or three on a GPU."""
    as_large_ones(monkeypatch)
    at_once(monkeypatch, 2 * PIECE * COUNT)


def as_large_ones(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gram, "LEAST_IN_FLOAT32", PIECE)
    patch.setattr(piece_module, "MIN_SAMPLED", PIECE)
    patch.setattr(pieces_module, "GPU_BATCH_VALUES", 3 * PIECE * COUNT)


def at_once(patch: pytest.MonkeyPatch, values: int) -> None:
    patch.setattr(pieces_module, "BATCH_VALUES", values)
    patch.setattr(pieces_module, "PRODUCT_VALUES", values)


@pytest.fixture(scope="module")
def expected(suite: Suite) -> dict[object, bytes]:
    """What the processor makes of blocks, piece by piece."""
    with pytest.MonkeyPatch.context() as patch:
        as_large_ones(patch)
        at_once(patch, 1)
        return suite.computed().bits()


@pytest.fixture(scope="module")
def expected_of_gpu(suite: Suite) -> dict[object, bytes]:
    """What a GPU makes of them."""
    with pytest.MonkeyPatch.context() as patch:
        as_large_ones(patch)
        like_a_gpu(patch)
        return suite.computed().bits()


def like_a_gpu(patch: pytest.MonkeyPatch, lanes: int = 4) -> list[Device]:
    """Have the processor do what a GPU would, in so many lanes; return the devices, as they are made."""
    made: list[Device] = []

    def make(*args: Any) -> Device:
        made.append(Device(*args, gpu_lanes=lanes))
        return made[-1]

    patch.setattr("pipeline.execute.work.worker.Device", make)
    return made


class Full(TorchDispatchMode):
    """Has memory run out at some of torch's operations in this thread, counted from 1."""

    def __init__(self, at: Collection[int]) -> None:
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count in self.at:
            raise torch.OutOfMemoryError("none left")
        return func(*args, **(kwargs or {}))


def full_on_the_gpu(patch: pytest.MonkeyPatch, at: Collection[int]) -> Full:
    """Have memory run out at some operations of those that a GPU would do."""
    full, products = Full(at), GpuLane.products

    def with_little_memory(self: GpuLane, *args: Any) -> Any:
        with full:
            return products(self, *args)

    patch.setattr(GpuLane, "products", with_little_memory)
    return full


def full_in_products(patch: pytest.MonkeyPatch, at: Collection[int]) -> None:
    """Have memory run out at some calls of products, of all threads, counted from 1."""
    calls, products = itertools.count(1), gpu_lane.launched

    def multiply(*args: Any) -> Any:
        if next(calls) in at:
            raise torch.OutOfMemoryError("none left")
        return products(*args)

    patch.setattr(gpu_lane, "launched", multiply)


def assert_true_sums(suite: Suite, kept: Kept) -> None:
    """Compare with float64 sums of the weights as stored, to what the error of one product is."""
    results = sorted(
        ((int(name.split("-")[0]), result) for name, result in kept.results.items()),
        key=lambda pair: pair[0],
    )
    for sums in sums_of_parts(suite.plan, results):
        for row, (number, which, _) in enumerate(sums.keys):
            assert_true_part(suite, number, which, {n: a[row] for n, a in sums.arrays.items()})


def sampled_places(elements: np.ndarray) -> np.ndarray:
    """Return which of a part's elements, by their places in the tensor, stand for all (docs/method-2.md, §6.2)."""
    if len(elements) < PIECE:  # as MIN_SAMPLED is here
        return np.arange(len(elements))
    piece, place = np.divmod(elements, PIECE)
    taken = [
        {(10_125 * j + splitmix64(b)) % PIECE for j in range(1024)} for b in range(piece[-1] + 1)
    ]
    return np.array(
        [n for n, (b, at) in enumerate(zip(piece, place, strict=True)) if at in taken[b]]
    )


def assert_true_part(suite: Suite, number: int, which: int, found: dict[str, Any]) -> None:
    tensor = suite.plan.tensors[number]
    part = tensor.parts[which]
    places = np.arange(tensor.numel) % part.period
    places_of_part = (places >= part.start) & (places < part.stop)
    rows = suite.stored[tensor.name][:, places_of_part]
    assert found["exponents.numel"] == rows.shape[1]
    assert found["non_finite.count"].tolist() == (~np.isfinite(rows)).sum(axis=1).tolist()
    if not np.isfinite(rows).all():
        return  # where a checkpoint is absent by pieces: tests/test_accuracy.py
    sampled = rows[:, sampled_places(np.flatnonzero(places_of_part))].astype(np.float32)
    assert found["exponents.sampled"] == sampled.shape[1]
    exponents = np.frexp(np.abs(sampled))[1] - 1
    exponents[sampled == 0] = -40
    for k, of_checkpoint in enumerate(np.clip(exponents, -40, 15) + 40):
        counts = np.bincount(of_checkpoint, minlength=56)
        assert found["exponents.counts"][k].tolist() == counts.tolist()
    truth = increment_gram(rows)
    lengths = np.sqrt(np.diagonal(truth))
    # 3e-7 to 6.2e-7 were seen, by processor and kernel of the BLAS
    assert np.all(
        np.abs(unpacked(found["gram.increments"]) - truth) <= 8e-7 * np.outer(lengths, lengths)
    )


@pytest.mark.parametrize("lanes", [0, 1])
def test_true_sums(lanes: int, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    like_a_gpu(monkeypatch, lanes)
    assert_true_sums(suite, suite.computed())


def test_only_products_differ(
    expected: dict[object, bytes], expected_of_gpu: dict[object, bytes]
) -> None:
    """Samples, digests and counts are the processor's in any case, and so are the products of small parts."""
    differ = {
        array for name, array in expected if expected[name, array] != expected_of_gpu[name, array]
    }
    assert differ == {"gram.increments"}


@pytest.mark.parametrize("pieces", [1, 2, 5])
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_decide_no_bit(
    pieces: int,
    threads: int,
    suite: Suite,
    expected_of_gpu: dict[object, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor threads, nor how many of them have a lane on the GPU."""
    like_a_gpu(monkeypatch, 2)
    assert suite.computed(threads=threads, pieces=pieces).bits() == expected_of_gpu


@pytest.mark.parametrize("values", [1, 3 * PIECE * COUNT, 1 << 20])
def test_pieces_that_are_taken_together_decide_no_bit(
    values: int, suite: Suite, expected: dict[object, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once(monkeypatch, values)
    assert suite.computed().bits() == expected


@settings(derandomize=True, deadline=None, max_examples=15)
@given(st.sets(st.integers(1, 700), min_size=1, max_size=3))
def test_memory_that_runs_out_at_any_operation_decides_no_bit(
    suite: Suite, expected_of_gpu: dict[object, bytes], at: set[int]
) -> None:
    assert_same_when_full(suite, expected_of_gpu, at)


@pytest.mark.slow
def test_memory_that_runs_out_at_every_seventh_operation_decides_no_bit(
    suite: Suite, expected_of_gpu: dict[object, bytes]
) -> None:
    reached = (assert_same_when_full(suite, expected_of_gpu, {n}) for n in itertools.count(1, 7))
    assert sum(itertools.takewhile(bool, reached)) > 50


def assert_same_when_full(suite: Suite, expected: dict[object, bytes], at: set[int]) -> int:
    """Return how many of these operations were reached: as many lanes were given up."""
    with pytest.MonkeyPatch.context() as patch:
        made = like_a_gpu(patch)
        full = full_on_the_gpu(patch, at)
        bits = suite.computed().bits()
    reached = sum(number <= full.count for number in at)
    assert made[0].gpu_lanes == 4 - reached
    assert bits == expected
    return reached


@pytest.mark.parametrize("at", [{1}, {2, 3, 4}, {5, 9, 11}], ids=str)
def test_threads_whose_memory_runs_out_share_what_lanes_are_left(
    at: set[int],
    suite: Suite,
    expected_of_gpu: dict[object, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = like_a_gpu(monkeypatch)
    full_in_products(monkeypatch, at)
    assert suite.computed(threads=3).bits() == expected_of_gpu
    assert made[0].gpu_lanes == 4 - len(at)


def test_a_card_too_small_for_a_block_ends_the_run_in_one_line(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    like_a_gpu(monkeypatch)
    full_in_products(monkeypatch, range(1, 1000))
    monkeypatch.setattr(device_module, "memory_of", lambda gpu: (3 << 20, 4 << 30))
    worker, kept = suite.worker(threads=2)
    with pytest.raises(DeviceFull) as caught:
        list(run_local(worker, 2, list(range(len(suite.plan.tiles)))))
    message = caught.value.message
    assert "5 checkpoints take" in message and "3.0MiB of 4.0GiB are free" in message
    assert "\n" not in message and "--max-workers" in caught.value.hint
    assert not kept.results


def test_other_errors_are_not_taken_for_it(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    like_a_gpu(monkeypatch)
    monkeypatch.setattr(gpu_lane, "launched", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        suite.computed()
    assert ran_out_of_memory(
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    )


def test_a_worker_holds_a_block_for_each_tile_in_hand_not_for_each_thread(
    suite: Suite, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    table = Device.table
    monkeypatch.setattr(Device, "table", lambda self, size: made.append(size) or table(self, size))
    worker, kept = suite.worker()
    try:
        for tile in range(len(suite.plan.tiles)):
            thread = threading.Thread(target=worker.run, args=(tile, tile))
            thread.start()
            thread.join()
    finally:
        worker.close()
    assert kept.bits() == expected
    assert len(made) == 1


class Recorder:
    """Takes the place of an accumulator."""

    def __init__(self) -> None:
        self.pieces: dict[PartKey, list[tuple[int, np.ndarray]]] = defaultdict(list)

    def add(self, pieces: Pieces) -> None:
        for number, place in enumerate(pieces.places):
            values = pieces.one(number).values.double().numpy().copy()
            self.pieces[place.key].append((place.start, values))

    def add_stored(self, *args: Any) -> None:
        pass


formats = st.sampled_from(["F64", "F32", "F16", "BF16"])
ranges = st.lists(
    st.tuples(
        st.integers(0, 3 * PIECE),
        st.one_of(st.integers(1, 20), st.integers(1, 4 * PIECE)),
        st.one_of(formats.map(lambda dtype: (dtype,) * 3), st.tuples(formats, formats, formats)),
    ),
    min_size=1,
    max_size=6,
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(ranges, st.booleans())
@example([(5, 4 * PIECE + 100, ("F16",) * 3), (0, 10, ("F64",) * 3)], True)
def test_every_element_arrives_once_and_in_order(
    chosen: list[tuple[int, int, tuple[str, ...]]], on_gpu: bool
) -> None:
    """Ranges that begin anywhere, alike in all checkpoints or not; read-only blocks too."""
    tensors: Any = [
        SimpleNamespace(
            dtypes=dtypes, parts=(), scales={}, twin=None, shares_bytes_of=lambda first: False
        )
        for _, _, dtypes in chosen
    ]
    whole = Part("", "other", 1, 0, 1)
    facts = [TensorFacts(whole, 1 << 30, dtypes) for _, _, dtypes in chosen]
    parts = tuple(TensorRange(n, a, a + length) for n, (a, length, _) in enumerate(chosen))
    layout = next(block_layouts(Tile(0, parts, 0, ""), tensors, 1 << 30))
    rng = np.random.default_rng(0)
    block = rng.integers(0, 60, (3, layout.row_bytes), np.uint8)  # no NaN in any format
    expected_values, recorder = [], Recorder()
    for placed in layout.ranges:
        dtypes = tensors[placed.range.tensor].dtypes
        length = placed.range.stop - placed.range.first
        expected_values.append(
            np.stack(
                [
                    torch.tensor(
                        row[placed.column : placed.column + length * TORCH_DTYPES[d].itemsize]
                    )
                    .view(TORCH_DTYPES[d])
                    .double()
                    .numpy()
                    for row, d in zip(block, dtypes, strict=True)
                ]
            )
        )
    of_block = [
        (
            placed,
            [(PartKey(placed.range.tensor, part), facts[placed.range.tensor]) for part in (0, 1)],
        )
        for placed in layout.ranges
    ]
    block.flags.writeable = False
    device = Device("cpu", tensors, layout.row_bytes, 1, gpu_lanes=int(on_gpu))
    with device.lane() as lane:
        lane.add(block, of_block, recorder)
    for placed, values in zip(layout.ranges, expected_values, strict=True):
        for part in (0, 1):
            added = recorder.pieces[PartKey(placed.range.tensor, part)]
            starts = [first for first, _ in added]
            assert starts[0] == placed.range.first
            assert all(start % PIECE == 0 for start in starts[1:])
            found = np.concatenate([rows for _, rows in added], axis=1)
            np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    "free, sharers, lanes", [(80 << 30, 1, 3), (6 << 30, 1, 3), (6 << 30, 2, 2), (1 << 20, 1, 1)]
)
def test_as_many_lanes_as_the_card_has_room_for(
    free: int, sharers: int, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and beside others; on a GPU that is nearly full one is tried."""
    monkeypatch.undo()
    monkeypatch.setattr(device_module, "memory_of", lambda gpu: (free, 80 << 30))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device_module, "GpuLane", lambda device: None)
    tensors: Any = [SimpleNamespace(dtypes=("F16",) * 64, scales={})]
    device = Device("cuda", tensors, 8 << 20, 8, sharers)
    assert device.lane_bytes == pytest.approx(0.7 * (1 << 30), rel=0.05)
    device.open()
    assert device.gpu_lanes == lanes


def test_no_card() -> None:
    assert choose_device("cpu") == "cpu"
    if torch.cuda.is_available():
        assert choose_device("auto") == "cuda"
        return
    assert choose_device("auto") == "cpu"
    tensors: Any = [SimpleNamespace(dtypes=("F16",), scales={})]
    for attempt in (lambda: choose_device("cuda"), Device("cuda", tensors, 1 << 20, 1).open):
        with pytest.raises(RequestError, match="no CUDA device"):
            attempt()


def test_pinned_memory_is_pages_of_its_own_and_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls that CUDA gets: a driver that lists pages stands in for it."""
    pages: set[int] = set()
    held: dict[int, range] = {}

    def register(address: int, size: int, flags: int) -> int:
        assert address % 4096 == size % 4096 == flags == 0
        held[address] = range(address // 4096, (address + size) // 4096)
        assert not pages.intersection(held[address])
        pages.update(held[address])
        return 0

    def unregister(address: int) -> int:
        pages.difference_update(held.pop(address))
        return 0

    driver = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=unregister)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    tables = [pinned(size) for size in (1, 5000, 4096, 1 << 20)]
    for table, size in zip(tables, (1, 5000, 4096, 1 << 20), strict=True):
        first = table.ctypes.data
        assert table.shape == (size,) and table.flags.writeable
        assert {first // 4096, (first + size - 1) // 4096} <= pages
    view = tables[1][:100].reshape(10, 10)
    del tables, table
    gc.collect()
    assert list(held) == [view.ctypes.data]
    driver.cudaHostRegister = lambda *args: 2
    with pytest.raises(HallmarksError, match="cannot be pinned"):
        pinned(1)


@pytest.mark.parametrize(
    "careless",
    [
        lambda: None,
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
        lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    ],
)
def test_no_tf32_whatever_was_set_by_whatever_name(careless: Callable[[], None]) -> None:
    matmul = torch.backends.cuda.matmul
    try:
        careless()
        before = torch.backends.fp32_precision, matmul.fp32_precision
        with one_thread_products():
            assert matmul.fp32_precision == "ieee"
        assert (torch.backends.fp32_precision, matmul.fp32_precision) == before
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@cuda
def test_a_card_gives_the_true_sums_and_the_same_bits(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again, from several threads, in blocks of any size, and with TF32 set by the process."""
    first = suite.computed("cuda")
    assert_true_sums(suite, first)
    torch.set_float32_matmul_precision("medium")
    try:
        for pieces in (None, 1, 3):
            assert suite.computed("cuda", 3, pieces).bits() == first.bits()
        at_once(monkeypatch, 1)
        assert suite.computed("cuda").bits() == first.bits()
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, cuda])])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lengths_of_stored_weights_are_not_biased(dtype: torch.dtype, kind: str) -> None:
    """Without turning, by -9.8e-8 and -1.5e-8 of their square."""
    generator = torch.Generator().manual_seed(0)
    values = (0.02 * torch.randn((COUNT, 3 * PIECE), generator=generator)).to(dtype).float()
    values = torch.stack([values, -values], 1).flatten(0, 1)[:COUNT].to(kind)  # steps of twice each
    facts = TensorFacts(Part("", "other", 1, 0, 1), values.shape[1], ("F32",) * COUNT)
    places = [
        PiecePlace(PartKey(0, 0), facts, n * PIECE, (n + 1) * PIECE, slice(0, PIECE), n * PIECE)
        for n in range(3)
    ]
    with one_thread_products():
        products = launched(values, places, Scratch(COUNT, values.device, on_gpu=True)).products
    steps = torch.cat((values[:1], values.diff(dim=0))).double()
    truth = steps.square().unflatten(1, (3, PIECE)).sum(2).T
    found = products.diagonal(dim1=1, dim2=2)
    assert abs(float(((found - truth) / truth).mean())) < 8e-9


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("count", [2, 16, 64, 154, 400])
def test_what_else_a_card_multiplies_at_once_decides_no_bit(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces alone, with others, and at another place among them."""
    monkeypatch.setattr(pieces_module, "GPU_BATCH_VALUES", 1 << 24)
    room = pieces_module.batch_elements(count, on_gpu=True) // PIECE
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((count, room * PIECE), generator=generator).cumsum(0).cuda()
    part = Part("", "other", 1, 0, 1)
    facts = TensorFacts(part, values.shape[1], ("F32",) * count)
    places = [
        PiecePlace(PartKey(0, 0), facts, n * PIECE, (n + 1) * PIECE, slice(0, PIECE), n * PIECE)
        for n in range(room)
    ]
    with one_thread_products():
        scratch = Scratch(count, values.device, on_gpu=True)
        together = launched(values, places, scratch).products.cpu()
        for number in {0, room // 2, room - 1}:
            of_one = values[:, number * PIECE : (number + 1) * PIECE]
            alone = launched(of_one, [places[number]], scratch).products.cpu()
            assert torch.equal(alone[0], together[number])
    steps = torch.cat((values[:1], values.diff(dim=0)))[:, :PIECE].double()
    truth = (steps @ steps.T).cpu()
    lengths = truth.diagonal().sqrt()
    assert ((together[0] - truth).abs() <= 2e-7 * torch.outer(lengths, lengths)).all()


@pytest.mark.gpu
@cuda
def test_a_card_whose_memory_runs_out(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """More lanes than fit into what torch may take; then so little that nothing fits."""
    monkeypatch.setattr(pieces_module, "GPU_BATCH_VALUES", 1 << 24)
    first = suite.computed("cuda")
    made = like_a_gpu(monkeypatch, 2)
    _, total = torch.cuda.mem_get_info()
    try:
        gc.collect()
        torch.cuda.empty_cache()
        # a lane takes 340 MB here, and cuBLAS 34 for each lane and thread, which it keeps
        torch.cuda.set_per_process_memory_fraction(650e6 / total)
        assert suite.computed("cuda", threads=2).bits() == first.bits()
        assert made[0].gpu_lanes == 1
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1e-6)
        with pytest.raises(DeviceFull, match="are free"):
            suite.computed("cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
