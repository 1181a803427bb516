"""Spectra of whole matrices, by a second read, against numpy.linalg.svd in float64."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pipeline
from pipeline.errors import ReadError, RequestError
from pipeline.job.summary import FIGURES_FORMAT
from pipeline.numerics.matrices import spectrum
from pipeline.planning.matrices import chosen_checkpoints
from pipeline.planning.request import Request
from pipeline.statistics.matrices import MatrixAccumulator
from pipeline.store.query import Store
from tests.commands import hallmarks

COUNT = 6
EMBED, UP = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"
Q, NORM, CONV = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "conv1.weight"
SHAPES = {EMBED: (400, 60), UP: (150, 300), Q: (70, 6), NORM: (60,), CONV: (32, 8, 3, 3)}
Checkpoints = Sequence[Mapping[str, torch.Tensor]]


def walk(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> list[dict[str, torch.Tensor]]:
    """Tensors with a few large directions, of which only three of `UP` move."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    theta = {name: 0.02 * drawn(*shape) for name, shape in shapes.items()}
    checkpoints = []
    for _ in range(COUNT):
        checkpoints.append({n: w.to(getattr(torch, dtype)) for n, w in theta.items()})
        for name, values in theta.items():
            if name == UP:
                values += 0.01 * drawn(len(values), 3) @ drawn(3, values.shape[1])
            else:
                values += 0.005 * drawn(*values.shape)
    return checkpoints


def written(folder: Path, checkpoints: Checkpoints, name: str = "model.safetensors") -> Path:
    for k, tensors in enumerate(checkpoints):
        (folder / f"step{10 * k}").mkdir(parents=True)
        path = folder / f"step{10 * k}" / name
        torch.save(dict(tensors), path) if name.endswith(".bin") else save_file(dict(tensors), path)
    return folder


def analysed(source: Path, store: Path, **options: Any) -> pipeline.Summary:
    options = {"executor": "local", "run": "run", "spectra": COUNT, **options}
    return pipeline.analyze(str(source), store=str(store), **options)


def opened(store: Path) -> Store:
    return pipeline.open_store(str(store))


def assert_spectra(
    store: Store, tensor: str, matrices: Sequence[torch.Tensor], ks: Sequence[int] | None = None
) -> None:
    """Compare both spectra of a tensor at the checkpoints `ks` with those of these matrices."""
    where = f"tensor = '{tensor}'"
    first = matrices[0].double().numpy()
    sigmas: dict[tuple[int, str], list[float]] = {}
    for k, of, sigma in store.sql(
        f"SELECT k, of, sigma FROM matrix_spectrum WHERE {where} ORDER BY k, of, rank"
    ).fetchall():
        sigmas.setdefault((k, of), []).append(sigma)
    columns = "k, of, stable_rank, matrix_effective_rank, matrix_participation_ratio"
    ranks_of = {
        (k, of): stored
        for k, of, *stored in store.sql(
            f"SELECT {columns} FROM matrix_ranks WHERE {where}"
        ).fetchall()
    }
    expected_ks = list(range(len(matrices)) if ks is None else ks)
    assert sorted({k for k, _ in ranks_of}) == expected_ks
    for k in expected_ks:
        for of, less in (("weights", 0.0), ("displacement", first)):
            if of == "displacement" and not k:
                assert (k, of) not in sigmas
                continue
            exact = np.linalg.svd(matrices[k].double().numpy() - less, compute_uv=False)
            found = np.array(sigmas[k, of])
            assert len(found) == min(10, len(exact))
            assert np.all(np.abs(found - exact[:10]) <= 1e-6 * exact[0]), (tensor, k, of)
            shares = exact**2 / np.sum(exact**2)
            shares = shares[shares > 0]
            ranks = (
                1 / shares[0],
                math.exp(-np.sum(shares * np.log(shares))),
                1 / np.sum(shares**2),
            )
            np.testing.assert_allclose(
                ranks_of[k, of], ranks, rtol=1e-5, err_msg=f"{tensor} {k} {of}"
            )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_matrices_of_a_run(dtype: str, tmp_path: Path) -> None:
    checkpoints = walk(SHAPES, dtype)
    summary = analysed(written(tmp_path / "run", checkpoints), tmp_path / "store")
    read = sum(w.nbytes for tensors in checkpoints for w in tensors.values())
    of_norms = sum(tensors[NORM].nbytes for tensors in checkpoints)
    assert summary.complete and summary.bytes_read == 2 * read - of_norms
    store = opened(tmp_path / "store")
    for name in (EMBED, UP, Q, CONV):
        assert_spectra(store, name, [c[name].flatten(1) for c in checkpoints])
    tensors = store.sql("SELECT DISTINCT tensor FROM matrix_spectrum").fetchall()
    assert {name for (name,) in tensors} == {EMBED, UP, Q, CONV}


@pytest.mark.parametrize("model_type", ["gpt_neox", "gpt2"])
def test_parts_of_fused_tensors_are_matrices_of_their_own(model_type: str, tmp_path: Path) -> None:
    """Rows of each head in turn, and thirds of the columns."""
    name, heads, width = {
        "gpt_neox": ("gpt_neox.layers.0.attention.query_key_value.weight", 4, 32),
        "gpt2": ("transformer.h.0.attn.c_attn.weight", 4, 32),
    }[model_type]
    shape = (3 * width, width) if model_type == "gpt_neox" else (width, 3 * width)
    checkpoints = walk({name: shape}, "float32")
    source = written(tmp_path / "run", checkpoints)
    config = {"model_type": model_type, "num_attention_heads": heads, "n_head": heads}
    for folder in source.iterdir():
        (folder / "config.json").write_text(json.dumps(config))
    analysed(source, tmp_path / "store")
    for number, label in enumerate("qkv"):
        if model_type == "gpt2":
            matrices = [c[name][:, number * width : (number + 1) * width] for c in checkpoints]
        else:
            by_head = (c[name].unflatten(0, (heads, 3, width // heads)) for c in checkpoints)
            matrices = [rows[:, number].flatten(0, 1) for rows in by_head]
        assert_spectra(opened(tmp_path / "store"), f"{name}[{label}]", matrices)


def test_tensors_stored_column_by_column(tmp_path: Path) -> None:
    checkpoints = walk({UP: (150, 300), Q: (70, 6)}, "float32")
    turned = [{n: w.T.contiguous().T for n, w in c.items()} for c in checkpoints]
    analysed(written(tmp_path / "run", turned, "pytorch_model.bin"), tmp_path / "store")
    for name in (UP, Q):
        assert_spectra(opened(tmp_path / "store"), name, [c[name] for c in checkpoints])


def test_a_finished_run_reads_matrices_alone_and_keeps_them(tmp_path: Path) -> None:
    checkpoints = walk(SHAPES, "float32")
    source, store = written(tmp_path / "run", checkpoints), tmp_path / "store"
    analysed(source, store, spectra=None)
    assert opened(store).sql("FROM matrix_ranks").fetchall() == []
    summary = analysed(source, store, spectra=3)
    of_matrices = [w.nbytes for c in checkpoints[:3] for n, w in c.items() if n != NORM]
    assert summary.bytes_read == sum(of_matrices)
    ks = chosen_checkpoints([10.0 * k for k in range(COUNT)], 3)
    assert ks == (0, 1, 5)
    assert_spectra(opened(store), UP, [c[UP] for c in checkpoints], ks)
    before = opened(store).sql("SELECT * FROM matrix_spectrum ORDER BY ALL").fetchall()
    assert analysed(source, store, spectra=3).bytes_read == 0
    assert analysed(source, store, spectra=None).bytes_read == 0
    analysed(source, store, spectra=None, statistics="rows")  # reads again, and loses nothing
    assert opened(store).sql("SELECT * FROM matrix_spectrum ORDER BY ALL").fetchall() == before
    analysed(source, store, spectra=COUNT)
    assert_spectra(opened(store), UP, [c[UP] for c in checkpoints])


def test_figures_made_again_keep_rows_and_spectra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, store = written(tmp_path / "run", walk(SHAPES, "float32")), tmp_path / "store"
    analysed(source, store, spectra=3, statistics="rows")
    views = ("matrix_spectrum", "matrix_ranks", "rows")
    before = [opened(store).sql(f"SELECT * FROM {view} ORDER BY ALL").fetchall() for view in views]
    for module in ("summary", "update"):
        monkeypatch.setattr(f"pipeline.job.{module}.FIGURES_FORMAT", FIGURES_FORMAT + 1)
    shutil.rmtree(source)
    done = hallmarks("update", "--store", str(store))
    assert done.returncode == 0, done.stderr
    assert opened(store).sql("SELECT DISTINCT figures FROM attempts").fetchall() == [
        (FIGURES_FORMAT + 1,)
    ]
    after = [opened(store).sql(f"SELECT * FROM {view} ORDER BY ALL").fetchall() for view in views]
    assert all(before) and after == before


def test_what_was_computed_is_kept_when_a_job_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, store = written(tmp_path / "run", walk(SHAPES, "float32")), tmp_path / "store"
    results, asked = MatrixAccumulator.result, []

    def failing(self: MatrixAccumulator, device: str) -> Any:
        asked.append(device)
        if len(asked) > 2:
            raise ReadError("the disk is gone")
        return results(self, device)

    monkeypatch.setattr(MatrixAccumulator, "result", failing)
    with pytest.raises(ReadError, match="the disk is gone"):
        analysed(source, store)
    monkeypatch.setattr(MatrixAccumulator, "result", results)
    assert opened(store).sql("SELECT complete FROM runs").fetchall() == [(True,)]
    assert opened(store).sql("FROM matrix_ranks").fetchall() == []
    kept = len(list((store / "_spectra").rglob("*.safetensors")))
    assert kept == 2
    assert analysed(source, store).bytes_read > 0
    assert len(list((store / "_spectra").rglob("*.safetensors"))) == 4
    found = opened(store).sql("SELECT count(DISTINCT tensor) FROM matrix_ranks").fetchall()
    assert found == [(4,)]


def test_matrices_that_are_not_finite_are_undefined(tmp_path: Path) -> None:
    checkpoints = walk({UP: (40, 30)}, "float32")
    checkpoints[2][UP][3, 3] = float("nan")
    for c in checkpoints[4:]:
        c[UP].zero_()
    analysed(written(tmp_path / "run", checkpoints), tmp_path / "store")
    store = opened(tmp_path / "store")
    ranks = store.sql("SELECT k, of, stable_rank FROM matrix_ranks ORDER BY k, of").fetchall()
    undefined = {(k, of) for k, of, value in ranks if value is None}
    assert undefined == {(2, "weights"), (2, "displacement"), (4, "weights"), (5, "weights")}
    sigma = store.sql("SELECT DISTINCT sigma FROM matrix_spectrum WHERE k = 4 AND of = 'weights'")
    assert sigma.fetchall() == [(0.0,)]


def test_matrices_that_do_not_fit_are_named(tmp_path: Path) -> None:
    shapes = {"lm_head.weight": (4000, 4000), UP: (40, 30)}
    checkpoints = [{n: w.half() for n, w in c.items()} for c in walk(shapes, "float32")[:2]]
    source = written(tmp_path / "run", checkpoints)
    arguments = ("analyze", str(source), "--store", str(tmp_path / "store"), "--spectra", "2")
    done = hallmarks(*arguments, "--executor", "local", "--memory", "800MiB")
    assert done.returncode == 0, done.stderr
    assert "--spectra leaves out lm_head.weight: takes" in done.stderr
    found = opened(tmp_path / "store").sql("SELECT DISTINCT tensor FROM matrix_ranks").fetchall()
    assert found == [(UP,)]


@pytest.mark.parametrize("option", [{"fraction": 0.5}, {"budget": "1MB"}, {"by_head": True}])
def test_what_needs_whole_matrices_is_refused_with_samples(option: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="--spectra needs whole matrices"):
        Request("somewhere", spectra=4, **option)


def test_checkpoints_are_chosen_evenly_in_the_logarithm_of_time() -> None:
    steps = [0.0, *(2.0**e for e in range(10)), *(1000.0 * n for n in range(1, 144))]
    chosen = chosen_checkpoints(steps, 8)
    assert len(chosen) == 8 and chosen[0] == 0 and chosen[-1] == 153
    ratios = np.diff(np.log([steps[k] for k in chosen[1:]]))
    assert ratios.max() / ratios.min() < 1.5
    assert chosen_checkpoints([None] * 9, 3) == (0, 4, 8)
    assert chosen_checkpoints([5.0, 6.0], 8) == (0, 1)
    assert len(set(chosen_checkpoints([0.0] * 9, 4))) == 4


def test_singular_values_where_there_are_none() -> None:
    """Of rank 2: float32 products would leave 1e-4 of the largest."""
    rng = np.random.default_rng(0)
    low = rng.standard_normal((300, 2)) @ rng.standard_normal((2, 500))
    first = rng.standard_normal((300, 500)).astype(np.float32)
    found = spectrum((first + 1e-3 * low).astype(np.float64), first)
    exact = np.linalg.svd(1e-3 * low, compute_uv=False)
    assert np.all(np.abs(found.sigma - exact[:10]) < 1e-6 * exact[0])


def test_the_plan_says_what_the_second_read_takes(tmp_path: Path) -> None:
    checkpoints = walk(SHAPES, "float16")
    source = str(written(tmp_path / "run", checkpoints))
    done = hallmarks("plan", source, "--executor", "local", "--spectra", "3", "--json")
    second = json.loads(done.stdout)["spectra"]
    assert second["checkpoints"] == ["step0", "step10", "step50"] and second["matrices"] == 4
    assert second["bytes"] == 3 * sum(w.nbytes for n, w in checkpoints[0].items() if n != NORM)
    said = hallmarks("plan", source, "--executor", "local", "--spectra", "3").stdout
    assert "4 matrices of 3 checkpoints (step0, step10, step50) in a second read" in said
    assert json.loads(hallmarks("plan", source, "--json").stdout)["spectra"] is None


@pytest.mark.slow
def test_on_ray(tmp_path: Path) -> None:
    checkpoints = walk(SHAPES, "bfloat16")
    source = written(tmp_path / "run", checkpoints)
    options = {"spectra": 4, "statistics": "rows"}
    summary = analysed(source, tmp_path / "store", executor="ray", **options)
    assert summary.complete and summary.workers > 0
    ks = chosen_checkpoints([10.0 * k for k in range(COUNT)], 4)
    assert_spectra(opened(tmp_path / "store"), UP, [c[UP] for c in checkpoints], ks)
    analysed(source, tmp_path / "here", **options)
    for view in ("rows", "matrix_spectrum"):
        local, ray = (
            opened(tmp_path / name).sql(f"SELECT * FROM {view} ORDER BY ALL").fetchall()
            for name in ("here", "store")
        )
        assert local and local == ray
