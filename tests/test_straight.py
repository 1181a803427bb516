"""What rounding makes of straight paths, in the store: against paths that are really rounded, and bisection."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pipeline
from pipeline.planning.make import make_plan
from pipeline.planning.request import Request
from pipeline.reduce.groups import grouping
from pipeline.reduce.reduce import estimated_sums
from pipeline.statistics.pieces import MIN_SAMPLED
from pipeline.store.query import Store
from tests.straight import SPANS, equal_steps, spacing, straight_turns
from tests.suites import TORCH
from tests.test_device import Suite

Q, V = (f"model.layers.0.self_attn.{x}_proj.weight" for x in "qv")
UP, NORM, EMBED = (
    "model.layers.1.mlp.up_proj.weight",
    "model.norm.weight",
    "model.embed_tokens.weight",
)
FUSED = "h.0.attn.c_attn.weight"
Formats = Mapping[str, Sequence[str]]
Stored = dict[str, np.ndarray]


def written(folder: Path, paths: Mapping[str, np.ndarray], formats: Formats) -> Stored:
    """Write (K, *shape) paths as checkpoints; return the values as stored, (K, p) float64."""
    stored: dict[str, list[np.ndarray]] = {name: [] for name in paths}
    for k in range(len(next(iter(paths.values())))):
        tensors = {
            n: torch.from_numpy(rows[k]).to(TORCH[formats[n][k]]) for n, rows in paths.items()
        }
        (folder / f"step{k}").mkdir(parents=True)
        save_file(tensors, folder / f"step{k}" / "model.safetensors")
        for name, values in tensors.items():
            stored[name].append(values.double().numpy().reshape(-1))
    return {name: np.stack(rows) for name, rows in stored.items()}


def analysed(source: Path, store: Path, **options: Any) -> Store:
    pipeline.analyze(str(source), store=str(store), executor="local", run="r", **options)
    return pipeline.open_store(str(store))


def found(store: Store, where: str) -> np.ndarray:
    """(K, spans), NaN for NULL."""
    columns = ", ".join(f"straight_turn_{h}_deg" for h in SPANS)
    rows = store.sql(
        f"SELECT {columns}, noise_floor_deg FROM path WHERE {where} ORDER BY k"
    ).fetchall()
    values = np.array(rows, float)
    np.testing.assert_array_equal(values[:, 0], values[:, -1])
    return values[:, :-1]


def straight(
    shape: tuple[int, ...], step: float, count: int, seed: int = 0, wobble: float = 0.0
) -> np.ndarray:
    """(K, *shape) weights of 0.02 that go straight ahead in relative steps, but for a wobble."""
    rng = np.random.default_rng(seed)
    start, ahead = 0.02 * rng.standard_normal((2, *shape))
    aside = 0.02 * rng.standard_normal((count, *shape)) * wobble
    k = np.arange(count).reshape(-1, *[1] * len(shape))
    return start + step * (k * ahead + aside.cumsum(0))


def in_all(dtype: str, names: Sequence[str], count: int) -> dict[str, list[str]]:
    return {name: [dtype] * count for name in names}


SEEN = {
    "BF16": {1e-2: 22.8, 3e-3: 60.2, 1e-3: 84.4, 3e-4: 89.5, 1e-4: 89.9},
    "F16": {1e-2: 2.9, 3e-3: 9.7, 1e-3: 28.1, 3e-4: 67.5, 1e-4: 86.2},
}
"""Update angles of straight paths (docs/method-2.md, §5.3)."""


def test_paths_that_are_really_rounded(tmp_path: Path) -> None:
    """The turn of every span is what is predicted, to a degree; and what was seen when the model was made."""
    count, shape = 9, (512, MIN_SAMPLED // 512)
    names = {
        f"model.layers.{n}.mlp.up_proj.weight": (dtype, step)
        for n, (dtype, step) in enumerate((d, s) for d, of_d in SEEN.items() for s in of_d)
    }
    paths = {
        n: straight(shape, step, count, seed) for seed, (n, (_, step)) in enumerate(names.items())
    }
    formats = {name: [dtype] * count for name, (dtype, _) in names.items()}
    stored = written(tmp_path / "run", paths, formats)
    store = analysed(tmp_path / "run", tmp_path / "store")
    for name, (dtype, step) in names.items():
        predicted = found(store, f"scope = 'tensor' AND tensor = '{name}'")
        theta = stored[name]
        for column, h in enumerate(SPANS[:3]):
            for k in range(h, count - h):
                a, b = theta[k] - theta[k - h], theta[k + h] - theta[k]
                turn = np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
                assert abs(predicted[k, column] - turn) < 1, (name, h, k)
        assert abs(np.nanmean(predicted[:, 0]) - SEEN[dtype][step]) < 0.6
        assert np.isnan(predicted[:, 4]).all()  # 16 before and after there are not


def test_all_groups_of_several_tensors(tmp_path: Path) -> None:
    """Every span and scope, of parts that are read whole: to a thousandth of a degree."""
    count = 34
    paths = {
        Q: straight((40, 50), 2e-3, count, 1, wobble=1.0),
        V: straight((30, 50), 1e-4, count, 2),
        UP: straight((60, 50), 1e-3, count, 3, wobble=0.5),
        NORM: straight((50,), 1e-3, count, 4),
    }
    paths[V][:] = paths[V][:1]  # never moves
    paths[UP][12:16] = paths[UP][12]  # stands still
    formats = (
        in_all("BF16", [Q, V], count) | in_all("F16", [UP], count) | in_all("F32", [NORM], count)
    )
    stored = written(tmp_path / "run", paths, formats)
    store = analysed(tmp_path / "run", tmp_path / "store")
    for where, names in {
        "scope = 'model'": [Q, V, UP, NORM],
        "scope = 'layer' AND layer = 0": [Q, V],
        "scope = 'layer' AND layer = 1": [UP],
        "scope = 'component' AND component = 'norm'": [NORM],
        f"scope = 'tensor' AND tensor = '{V}'": [V],
    }.items():
        angles = found(store, where)
        for column, h in enumerate(SPANS):
            expected = straight_turns([(stored[n], formats[n]) for n in names], h)
            np.testing.assert_allclose(
                angles[:, column], expected, rtol=0, atol=1e-3, err_msg=where
            )
            assert np.isnan(expected).all() == (names == [V])


def test_parts_that_never_move_together(tmp_path: Path) -> None:
    """Where no part has both halves of a turn, nothing is left of a straight path: a right angle."""
    paths = {Q: straight((9, 9), 0.1, 3, 1), V: straight((9, 9), 0.1, 3, 2)}
    paths[Q][2], paths[V][1] = paths[Q][1], paths[V][0]
    written(tmp_path / "run", paths, in_all("F32", [Q, V], 3))
    angles = found(analysed(tmp_path / "run", tmp_path / "store"), "scope = 'model'")
    assert angles[1, 0] == pytest.approx(90, abs=1e-3) and np.isnan(angles[1, 1:]).all()


def test_fused_tensors(tmp_path: Path) -> None:
    """Of parts that lie in one tensor, small and sampled."""
    count = 4
    sampled = straight((600, 3 * 600), 1e-3, count, 1, wobble=1.0)
    sampled[:, :, :600] *= 40  # queries move by as much more
    small = straight((40, 3 * 40), 2e-3, count, 2)
    small[:, :, 80:] *= 30
    for name, path in (("sampled", sampled), ("small", small)):
        width = path.shape[1]
        assert (width**2 < MIN_SAMPLED) == (name == "small")
        stored = written(tmp_path / name, {FUSED: path}, {FUSED: ["BF16"] * count})[FUSED]
        for folder in (tmp_path / name).iterdir():
            config = {"model_type": "gpt2", "n_head": 4, "n_embd": width}
            (folder / "config.json").write_text(json.dumps(config))
        store = analysed(tmp_path / name, tmp_path / f"{name} store")
        columns = np.arange(stored.shape[1]) % (3 * width) // width
        parts = {label: stored[:, columns == n] for n, label in enumerate("qkv")}
        for where, labels in {
            "scope = 'model'": "qkv",
            **{f"scope = 'tensor' AND tensor = '{FUSED}[{x}]'": x for x in "qkv"},
        }.items():
            expected = straight_turns([(parts[x], ["BF16"] * count) for x in labels], 1)
            owed = 1e-3 if name == "small" else 1.0
            np.testing.assert_allclose(found(store, where)[:, 0], expected, rtol=0, atol=owed)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F64"])
def test_other_formats(dtype: str, tmp_path: Path) -> None:
    """8 bits, of which many values lie below the least normal number; and 64."""
    count = 6
    paths = {Q: straight((50, 60), 0.1, count, wobble=1.0)}
    stored = written(tmp_path / "run", paths, in_all(dtype, [Q], count))
    angles = found(analysed(tmp_path / "run", tmp_path / "store"), "scope = 'model'")
    expected = straight_turns([(stored[Q], [dtype] * count)], 1)
    np.testing.assert_allclose(angles[:, 0], expected, rtol=0, atol=1e-3)
    assert (np.nanmax(expected) < 0.1) == (dtype == "F64")


def test_formats_that_change_on_the_way(tmp_path: Path) -> None:
    """The checkpoint where the path turns says how values are rounded."""
    formats = {Q: ["F32", "F32", "BF16", "BF16", "F16", "F16", "F16"]}
    paths = {Q: straight((50, 60), 3e-3, len(formats[Q]), wobble=1.0)}
    stored = written(tmp_path / "run", paths, formats)
    angles = found(analysed(tmp_path / "run", tmp_path / "store"), "scope = 'model'")
    for column, h in enumerate(SPANS[:2]):
        expected = straight_turns([(stored[Q], formats[Q])], h)
        np.testing.assert_allclose(angles[:, column], expected, rtol=0, atol=1e-3)
    assert angles[2, 0] > 45 > 10 > angles[1, 0]


@pytest.mark.parametrize("scale", [1.0, 0.75, 1.37])
def test_codes_with_one_scale(scale: float, tmp_path: Path) -> None:
    """The spacing of their values is that of the codes, times the scale, whatever it is."""
    count = 6
    codes = straight((50, 60), 0.1, count, wobble=1.0) * 100
    stored = []
    for k, rows in enumerate(codes):
        (tmp_path / "run" / f"step{k}").mkdir(parents=True)
        code = torch.from_numpy(rows).to(torch.float8_e4m3fn)
        tensors = {Q: code, f"{Q}_scale": torch.tensor(scale)}
        save_file(tensors, tmp_path / "run" / f"step{k}" / "model.safetensors")
        stored.append(code.double().numpy().reshape(-1))
    angles = found(analysed(tmp_path / "run", tmp_path / "store"), "scope = 'model'")
    expected = straight_turns(
        [(np.stack(stored), ["F8_E4M3"] * count)], 1
    )  # the same with any scale
    np.testing.assert_allclose(angles[:, 0], expected, rtol=0, atol=1e-3)


def test_values_held_in_a_finer_format(tmp_path: Path) -> None:
    """The coarsest format that represents them all counts."""
    count = 5
    paths = {Q: straight((50, 60), 3e-3, count, wobble=1.0)}
    held = torch.from_numpy(paths[Q]).bfloat16().double().numpy()
    for dtype in ("F32", "F64"):
        stored = written(tmp_path / dtype, {Q: held}, in_all(dtype, [Q], count))
        angles = found(analysed(tmp_path / dtype, tmp_path / f"{dtype} store"), "scope = 'model'")
        expected = straight_turns([(stored[Q], ["BF16"] * count)], 1)
        np.testing.assert_allclose(angles[:, 0], expected, rtol=0, atol=1e-3)


def test_turns_are_null_beside_equal_and_absent_checkpoints(tmp_path: Path) -> None:
    """And defined wherever the turn is; the rest of the figures is that of the values that there are."""
    count = 9
    paths = {
        Q: straight((30, 40), 3e-3, count, 1, wobble=1.0),
        UP: straight((30, 40), 3e-3, count, 2),
    }
    for path in paths.values():
        path[6] = path[5]
    paths[UP][2, 3, 4] = np.nan
    formats = in_all("F16", [Q, UP], count)
    stored = written(tmp_path / "run", paths, formats)
    store = analysed(tmp_path / "run", tmp_path / "store")
    for where, names in {"scope = 'model'": [Q, UP], "layer = 0 AND scope = 'layer'": [Q]}.items():
        angles = found(store, where)
        turns = store.sql(
            f"SELECT update_angle_deg, turn_2_deg, turn_4_deg FROM path WHERE {where} ORDER BY k"
        ).fetchall()
        np.testing.assert_array_equal(np.isnan(angles[:, :3]), np.isnan(np.array(turns, float)))
        expected = straight_turns([(np.nan_to_num(stored[n]), formats[n]) for n in names], 1)
        defined = ~np.isnan(angles[:, 0])
        np.testing.assert_allclose(angles[defined, 0], expected[defined], rtol=0, atol=1e-3)
    assert np.flatnonzero(~np.isnan(angles[:, 0])).tolist() == [1, 2, 3, 4, 7]


def test_a_sample_is_right_to_a_degree(tmp_path: Path) -> None:
    count = 5
    paths = {
        EMBED: straight((1100, 500), 1e-3, count, 1, wobble=1.0),
        UP: straight((500, 700), 3e-3, count, 2, wobble=0.3),
    }
    stored = written(tmp_path / "run", paths, in_all("BF16", [EMBED, UP], count))
    for options in ({}, {"fraction": 0.1}):
        store = analysed(tmp_path / "run", tmp_path / f"store {len(options)}", **options)
        for where, names in {
            "scope = 'model'": [EMBED, UP],
            "scope = 'component' AND component = 'embed'": [EMBED],
        }.items():
            expected = straight_turns([(stored[n], ["BF16"] * count) for n in names], 1)
            np.testing.assert_allclose(found(store, where)[:, 0], expected, rtol=0, atol=1.0)


def test_an_unfinished_run_is_judged_by_what_was_read(tmp_path: Path) -> None:
    """With all tiles it is the whole; with some, what was read of a role stands for the rest."""
    count = 5
    names = [f"model.layers.{n}.mlp.up_proj.weight" for n in range(8)]
    paths = {n: straight((400, 700), 1e-3, count, seed, wobble=1.0) for seed, n in enumerate(names)}
    stored = written(tmp_path / "run", paths, in_all("BF16", names, count))
    plan, source = make_plan(Request(str(tmp_path / "run")), least_tile_bytes=1 << 20)
    results = Suite(plan, source, stored).computed().results
    by_number = {int(name.split("-")[0]): sums for name, sums in results.items()}
    assert len(by_number) > 6
    expected = straight_turns([(stored[n], ["BF16"] * count) for n in names], 1)
    grouped = grouping(plan)
    model = next(n for n, key in enumerate(grouped.keys) if key.scope == "model")
    for read in (range(len(by_number)), (1, 2, 6)):
        done = {number: fold for fold, number in enumerate(read)}
        estimates = estimated_sums(plan, grouped, done, by_number.__getitem__)
        sums = next(of_groups for groups, of_groups in estimates if model in groups)
        assert sums is not None
        products, lengths = sums.straight[:, 0, 1:-1]
        np.testing.assert_allclose(
            np.degrees(np.arccos(products / lengths)), expected[1:-1], rtol=0, atol=1.0
        )
        truth = [
            sum(
                float(np.linalg.norm(s[k] - s[k - 1]) * np.linalg.norm(s[k + 1] - s[k]))
                for s in stored.values()
            )
            for k in range(1, count - 1)
        ]
        np.testing.assert_allclose(lengths, truth, rtol=1e-5 if len(read) > 3 else 0.02)


def test_expected_changes_are_those_of_the_same_model(tmp_path: Path) -> None:
    """Of several tensors, to a millionth: shares, and how often the same values change twice."""
    count = 5
    paths = {
        Q: straight((40, 50), 2e-3, count, 1, wobble=1.0),
        UP: straight((60, 50), 1e-4, count, 2),
    }
    formats = in_all("BF16", [Q], count) | in_all("F16", [UP], count)
    stored = written(tmp_path / "run", paths, formats)
    store = analysed(tmp_path / "run", tmp_path / "store", statistics="sparsity")
    rows = store.sql(
        "SELECT changed_expected, overlap_expected FROM sparsity WHERE scope = 'model' ORDER BY k"
    ).fetchall()
    numel = sum(values.shape[1] for values in stored.values())
    for k in range(1, count):
        steps = [
            equal_steps(spacing(s[k - 1], formats[n][0]), float(((s[k] - s[k - 1]) ** 2).sum()))
            for n, s in stored.items()
        ]
        chance, squared = (sum(each) for each in list(zip(*steps, strict=True))[1:])
        assert rows[k] == pytest.approx((chance / numel, numel * squared / chance**2), rel=1e-6)


def test_the_paths_of_a_joint_run(tmp_path: Path) -> None:
    """Nothing turns from one path into the other: each is as alone."""
    count = 5
    for seed in (1, 2):
        paths = {Q: straight((30, 40), 3e-3, count, seed, wobble=1.0)}
        written(tmp_path / f"seed{seed}", paths, in_all("BF16", [Q], count))
    pipeline.analyze_joint(
        [str(tmp_path / "seed1"), str(tmp_path / "seed2")],
        run="both", store=str(tmp_path / "store"), executor="local",
    )  # fmt: skip
    store = pipeline.open_store(str(tmp_path / "store"))
    both = found(store, "scope = 'model' AND run = 'both'")
    for n, seed in enumerate((1, 2)):
        alone = found(analysed(tmp_path / f"seed{seed}", tmp_path / f"{seed}"), "scope = 'model'")
        own = found(store, f"scope = 'model' AND run = 'seed{seed}'")
        np.testing.assert_array_equal(own, alone)
        np.testing.assert_array_equal(both[count * n : count * (n + 1)], alone)
        assert np.count_nonzero(~np.isnan(alone)) == 3 + 1
