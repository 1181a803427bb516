"""Values and sparsity against slow references, from the weights as they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pipeline
from pipeline.errors import RequestError
from pipeline.statistics.pieces import PIECE, sampled_offsets, splitmix64
from pipeline.store.query import Store

LARGE, SMALL = "model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
COUNT = 7
BITS = {"bfloat16": torch.int16, "float16": torch.int16, "float32": torch.int32}


def weights(dtype: str, scale: float, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """A path in small steps; parts of both kinds, one that is sampled for sizes, and zeros."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shapes = {LARGE: (600, 1000), SMALL: (90, 100), NORM: (100,)}
    theta = {name: 0.02 * drawn(*shape) for name, shape in shapes.items()}
    theta[SMALL][:3] = 0.0
    checkpoints = []
    for k in range(COUNT):
        checkpoints.append({n: w.to(getattr(torch, dtype)) for n, w in theta.items()})
        if k == 3:
            continue  # 3 and 4 are equal
        for name, values in theta.items():
            values += scale * drawn(*shapes[name])
    return checkpoints


def written(folder: Path, checkpoints: list[dict[str, torch.Tensor]]) -> Path:
    for k, tensors in enumerate(checkpoints):
        (folder / f"step{10 * k}").mkdir(parents=True)
        save_file(tensors, folder / f"step{10 * k}" / "model.safetensors")
    return folder


def analysed(source: Path, store: Path, **options: Any) -> Store:
    pipeline.analyze(str(source), store=str(store), executor="local", **options)
    return pipeline.open_store(str(store))


def rows(store: Store, view: str, where: str) -> dict[str, np.ndarray]:
    table = store.sql(f"SELECT * FROM {view} WHERE {where} ORDER BY k").fetchall()
    names = [row[0] for row in store.sql(f"DESCRIBE {view}").fetchall()]
    columns = dict(zip(names, zip(*table, strict=True), strict=True))
    numbers = [n for n in names if n not in ("run", "scope", "stack", "component", "tensor")]
    return {name: np.array(columns[name], float) for name in numbers}


def flat(checkpoints: list[dict[str, torch.Tensor]], names: tuple[str, ...]) -> torch.Tensor:
    return torch.stack([torch.cat([c[n].reshape(-1) for n in names]) for c in checkpoints])


def assert_values(found: dict[str, np.ndarray], stored: torch.Tensor) -> None:
    theta = stored.double().numpy()
    mean, variance = theta.mean(1), theta.var(1)
    size = np.abs(theta).mean(1)
    np.testing.assert_allclose(found["mean"], mean, rtol=0, atol=1e-6 * size.max())
    np.testing.assert_allclose(found["mean_size"], size, rtol=1e-6)
    np.testing.assert_allclose(found["variance"], variance, rtol=1e-6)
    central = theta - mean[:, None]
    allowed = 1e-6 * (1 + mean**2 / variance) ** 2
    assert np.all(np.abs(found["skewness"] - (central**3).mean(1) / variance**1.5) <= allowed)
    kurtosis = (central**4).mean(1) / variance**2
    assert np.all(np.abs(found["kurtosis"] - kurtosis) <= allowed * kurtosis)
    assert found["largest"].tolist() == np.abs(theta).max(1).tolist()
    numel = theta.shape[1]
    assert np.rint(found["zeros"] * numel).tolist() == (theta == 0).sum(1).tolist()
    changes = [int((theta[k] * theta[k - 1] < 0).sum()) for k in range(1, len(theta))]
    assert np.isnan(found["sign_changes"][0])
    assert np.rint(found["sign_changes"][1:] * numel).tolist() == changes
    since = (theta * theta[0] < 0).sum(1)
    assert np.rint(found["sign_changes_since_first"] * numel).tolist() == since.tolist()
    for name, share in (("size_p10", 0.1), ("size_p50", 0.5), ("size_p90", 0.9)):
        exact = np.quantile(np.abs(theta), share, axis=1)
        np.testing.assert_allclose(found[name], exact, rtol=1 / 16 + 0.01, err_msg=name)


def assert_sparsity(found: dict[str, np.ndarray], stored: torch.Tensor) -> None:
    bits = stored.contiguous().view(BITS[str(stored.dtype).removeprefix("torch.")]).numpy()
    numel = bits.shape[1]
    values = stored.float().numpy()
    rounded = stored.float().bfloat16().view(torch.int16).numpy()
    changed = [bits[k] != bits[k - 1] for k in range(1, len(bits))]
    ever = np.zeros(numel, bool)
    for k in range(1, len(bits)):
        a = changed[k - 1]
        ever |= a
        expected = {
            "changed": a,
            "changed_since_first": bits[k] != bits[0],
            "ever_changed": ever,
            "reverted": ever & (bits[k] == bits[0]),
            "visible": rounded[k] != rounded[k - 1],
            "beyond_1e5": np.abs(values[k] - values[k - 1]) > np.float32(1e-5),
        }
        if k > 1:
            expected["changed_again"] = a & changed[k - 2]
        for name, truth in expected.items():
            assert round(found[name][k] * numel) == int(truth.sum()), (name, k)
        if k > 1 and a.any() and changed[k - 2].any():
            overlap = (a & changed[k - 2]).sum() * numel / (a.sum() * changed[k - 2].sum())
            np.testing.assert_allclose(found["overlap"][k], overlap, rtol=1e-12)
    for name in ("changed", "changed_again", "changed_expected", "visible", "beyond_1e5"):
        assert np.isnan(found[name][0]), name
    assert found["changed_since_first"][0] == found["ever_changed"][0] == 0


@pytest.mark.parametrize(
    "dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow), "float32"]
)
def test_all_groups_of_a_run(dtype: str, tmp_path: Path) -> None:
    checkpoints = weights(dtype, 3e-5)
    store = analysed(written(tmp_path / "run", checkpoints), tmp_path / "store", statistics="all")
    for where, names in (
        ("scope = 'model'", (LARGE, SMALL, NORM)),
        (f"tensor = '{LARGE}' AND scope = 'tensor'", (LARGE,)),
        (f"tensor = '{SMALL}' AND scope = 'tensor'", (SMALL,)),
        ("scope = 'layer' AND layer = 0", (LARGE, SMALL)),
    ):
        stored = flat(checkpoints, names)
        assert_values(rows(store, "values", where), stored)
        assert_sparsity(rows(store, "sparsity", where), stored)


@pytest.mark.parametrize(("dtype", "scale"), [("bfloat16", 1e-5), ("float16", 3e-6)])
def test_steps_of_equal_size_are_what_is_expected(dtype: str, scale: float, tmp_path: Path) -> None:
    """Changed shares and overlaps of a walk whose increments are equal everywhere, rounded."""
    checkpoints = weights(dtype, scale)
    store = analysed(
        written(tmp_path / "run", checkpoints), tmp_path / "store", statistics="sparsity"
    )
    found = rows(store, "sparsity", f"tensor = '{LARGE}' AND scope = 'tensor'")
    moved = np.flatnonzero(found["changed"] > 0)
    assert 0.02 < found["changed"][moved].max() < 0.9
    np.testing.assert_allclose(found["changed_expected"][moved], found["changed"][moved], rtol=0.03)
    assert found["changed"][4] == found["changed_expected"][4] == 0  # 4 equals 3
    assert np.isnan(found["overlap"][4]) and np.isnan(found["overlap_expected"][4])
    assert np.all(found["overlap_expected"][moved] > 1)


def test_absent_checkpoints_and_the_one_after_are_null(tmp_path: Path) -> None:
    checkpoints = weights("float16", 1e-4)
    checkpoints[2][SMALL][5, 5] = float("inf")
    store = analysed(written(tmp_path / "run", checkpoints), tmp_path / "store", statistics="all")
    of_small = f"tensor = '{SMALL}' AND scope = 'tensor'"
    values, sparsity = (rows(store, view, of_small) for view in ("values", "sparsity"))
    assert np.isnan(values["mean"]).tolist() == [k == 2 for k in range(COUNT)]
    assert np.isnan(sparsity["changed"]).tolist() == [k in (0, 2, 3) for k in range(COUNT)]
    assert np.isnan(sparsity["ever_changed"]).tolist() == [k == 2 for k in range(COUNT)]
    of_large = rows(store, "values", f"tensor = '{LARGE}' AND scope = 'tensor'")
    assert not np.isnan(of_large["mean"]).any()


def test_a_sample_stands_for_the_whole(tmp_path: Path) -> None:
    source = written(tmp_path / "run", weights("float16", 1e-4))
    whole = analysed(source, tmp_path / "whole", statistics="all")
    sample = analysed(source, tmp_path / "sample", statistics="all", fraction=0.5)
    where = f"tensor = '{LARGE}' AND scope = 'tensor'"
    for view, name in (("values", "variance"), ("values", "size_p90"), ("sparsity", "changed")):
        a, b = (rows(store, view, where)[name][1:] for store in (whole, sample))
        assert np.nanmax(np.abs(a - b) / np.nanmax(a)) < 0.05, name


def test_the_paths_of_a_joint_run(tmp_path: Path) -> None:
    """Each path's own rows are those of its run alone; nothing compares with another path."""
    for seed in (1, 2):
        written(tmp_path / f"seed{seed}", weights("bfloat16", 3e-5, seed))
    pipeline.analyze_joint(
        [str(tmp_path / "seed1"), str(tmp_path / "seed2")],
        run="both", store=str(tmp_path / "store"), executor="local", statistics="all",
    )  # fmt: skip
    store = pipeline.open_store(str(tmp_path / "store"))
    alone = analysed(tmp_path / "seed2", tmp_path / "alone", statistics="all")
    for view in ("values", "sparsity"):
        expected = rows(alone, view, "scope = 'model'")
        own = rows(store, view, "scope = 'model' AND run = 'seed2'")
        both = rows(store, view, "scope = 'model' AND run = 'both'")
        for name in expected.keys() - {"layer", "head", "expert"}:
            np.testing.assert_array_equal(own[name], expected[name], err_msg=name)
            if name != "k":
                np.testing.assert_array_equal(both[name][COUNT:], expected[name], err_msg=name)


def test_asking_for_more_reads_only_then(tmp_path: Path) -> None:
    source, store = str(written(tmp_path / "run", weights("float16", 1e-4))), str(tmp_path / "s")

    def read(**options: Any) -> bool:
        return pipeline.analyze(source, store=store, executor="local", **options).bytes_read > 0

    assert read()
    assert not read()
    assert read(statistics="values")
    assert not read(statistics=["values"])
    assert not read()  # less than what there is
    assert read(statistics="sparsity")  # and values stay
    assert not read(statistics="values,sparsity")
    opened = pipeline.open_store(store)
    for view in ("values", "sparsity"):
        assert opened.sql(f"SELECT count(*) FROM {view}").fetchall()[0][0] > COUNT
    with pytest.raises(
        RequestError, match=r"expected values, sparsity, rows or all, found.*momentum"
    ):
        read(statistics="momentum")


def test_a_run_without_them_has_empty_views(tmp_path: Path) -> None:
    store = analysed(written(tmp_path / "run", weights("float16", 1e-4)), tmp_path / "store")
    for view in ("values", "sparsity"):
        assert store.sql(f"FROM {view}").fetchall() == []


@pytest.mark.parametrize("width", [760, 1024, 4096, 5120])
def test_the_sample_of_values_sees_all_columns(width: int) -> None:
    """Every sixteenth element would see width / gcd(16, width) of them."""
    rows = 1200
    seen = np.zeros(width, int)
    for number in range(rows * width // PIECE):
        (offsets,) = sampled_offsets([number])
        begin = splitmix64(number)
        assert offsets.tolist() == sorted((10_125 * j + begin) % PIECE for j in range(PIECE // 16))
        np.add.at(seen, (number * PIECE + offsets) % width, 1)
    assert seen.min() > 0
    assert seen.std() / seen.mean() < 0.25
