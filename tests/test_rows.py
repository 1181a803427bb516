"""The rows of embeddings and output heads against slow references, from the weights as they are stored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pipeline
from pipeline.execute.drive.local import run_local
from pipeline.execute.work.urls import UrlBroker
from pipeline.execute.work.worker import Worker
from pipeline.planning.make import make_plan
from pipeline.planning.memory import project
from pipeline.planning.request import Request
from pipeline.statistics.parts import Sums
from pipeline.statistics.pieces import CHUNK, PIECE
from pipeline.store.query import Store
from pipeline.store.tiles import encode
from tests.commands import hallmarks

EMBED, HEAD, POSITION = "model.embed_tokens.weight", "lm_head.weight", "wpe.weight"
BODY = "model.layers.0.mlp.up_proj.weight"
COUNT = 6
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Checkpoints = Sequence[Mapping[str, torch.Tensor]]


def walk(shapes: Mapping[str, tuple[int, ...]], dtype: str, seed: int = 0) -> list[dict[str, Any]]:
    """Tensors whose rows stop moving one after the other; every sixth never moves."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(shape: Sequence[int]) -> torch.Tensor:
        return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)

    theta = {name: 0.02 * drawn(shape) for name, shape in shapes.items()}
    checkpoints = []
    for k in range(COUNT):
        checkpoints.append({n: w.to(getattr(torch, dtype)) for n, w in theta.items()})
        for values in theta.values():
            moving = torch.arange(len(values)) % COUNT > k
            values[moving] += 0.01 * drawn(values.shape)[moving]
    return checkpoints


def written(folder: Path, checkpoints: Checkpoints, name: str = "model.safetensors") -> Path:
    for k, tensors in enumerate(checkpoints):
        (folder / f"step{10 * k}").mkdir(parents=True)
        if name.endswith(".bin"):
            torch.save(dict(tensors), folder / f"step{10 * k}" / name)
        else:
            save_file(dict(tensors), folder / f"step{10 * k}" / name)
    return folder


def analysed(source: Path, store: Path, **options: Any) -> Store:
    options = {"executor": "local", "statistics": "rows", "run": "run", **options}
    pipeline.analyze(str(source), store=str(store), **options)
    return pipeline.open_store(str(store))


def seen(store: Store, tensor: str, run: str = "run") -> dict[str, np.ndarray]:
    columns = "row, norm_first, norm_last, cosine_first_last, last_moved_k"
    where = f"run = '{run}' AND tensor = '{tensor}'"
    table = store.sql(f"SELECT {columns} FROM rows WHERE {where} ORDER BY row").fetchall()
    each = zip(*table, strict=True) if table else [[]] * 5
    return dict(zip(columns.split(", "), (np.array(c, float) for c in each), strict=True))


def expected(tables: Sequence[torch.Tensor]) -> dict[str, np.ndarray]:
    """Four numbers of each row of (R, C) tables, one a checkpoint, row by row in float64."""
    first, last = (t.double().numpy() for t in (tables[0], tables[-1]))
    bits = [t.contiguous().view(INTEGERS[t.itemsize]).numpy() for t in tables]
    out: dict[str, list[float]] = {
        n: [] for n in ("row", "norm_first", "norm_last", "cosine_first_last", "last_moved_k")
    }
    for row, (a, b) in enumerate(zip(first, last, strict=True)):
        norms = np.sqrt(np.sum(a * a)), np.sqrt(np.sum(b * b))
        known = np.isfinite(norms)
        moved = [k for k in range(1, len(bits)) if (bits[k][row] != bits[k - 1][row]).any()]
        cosine = np.dot(a, b) / (norms[0] * norms[1]) if known.all() and all(norms) else np.nan
        out["row"].append(row)
        out["norm_first"].append(norms[0] if known[0] else np.nan)
        out["norm_last"].append(norms[1] if known[1] else np.nan)
        out["cosine_first_last"].append(cosine)
        out["last_moved_k"].append(moved[-1] if moved else np.nan)
    return {name: np.array(values, float) for name, values in out.items()}


def assert_rows(found: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> None:
    for exact in ("row", "last_moved_k"):
        np.testing.assert_array_equal(found[exact], truth[exact], err_msg=exact)
    for norm in ("norm_first", "norm_last"):
        np.testing.assert_allclose(found[norm], truth[norm], rtol=1e-6)
    np.testing.assert_allclose(
        found["cosine_first_last"], truth["cosine_first_last"], rtol=0, atol=1e-12
    )


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("pipeline.planning.tiles.MIN_TILE_BYTES", 1)
    yield


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.usefixtures("small_tiles")
def test_rows_that_pieces_and_tiles_cut(dtype: str, tmp_path: Path) -> None:
    """Narrow rows, rows longer than a piece and than a tile, a table of one row, and no others' rows."""
    shapes = {
        EMBED: (1100, 300),
        HEAD: (7, CHUNK // 3 + 11),
        POSITION: (64, 48),
        "score.weight": (1, 900),
        BODY: (40, 30),
        "lm_head.bias": (1100,),
    }
    checkpoints = walk(shapes, dtype)
    source = written(tmp_path / "run", checkpoints)
    plan, _ = make_plan(Request(str(source)))
    ranges = [plan.tensors[r.tensor].name for tile in plan.tiles for r in tile.ranges]
    assert ranges.count(EMBED) == 2 and ranges.count(HEAD) == 3
    assert 1100 * 300 % PIECE and CHUNK % 300
    store = analysed(source, tmp_path / "store")
    for name in (EMBED, HEAD, POSITION, "score.weight"):
        assert_rows(seen(store, name), expected([c[name] for c in checkpoints]))
    tables = store.sql("SELECT DISTINCT tensor FROM rows").fetchall()
    assert {name for (name,) in tables} == {EMBED, HEAD, POSITION, "score.weight"}


def test_rows_of_images_are_positions_and_filters(tmp_path: Path) -> None:
    shapes = {"embeddings.patch_embed.weight": (12, 3, 4, 4), "pos_embed": (1, 17, 48)}
    checkpoints = walk(shapes, "float32")
    store = analysed(written(tmp_path / "run", checkpoints), tmp_path / "store")
    for name, rows in (("embeddings.patch_embed.weight", 12), ("pos_embed", 17)):
        tables = [c[name].reshape(rows, -1) for c in checkpoints]
        assert_rows(seen(store, name), expected(tables))


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_head_of_the_other_orientation_has_a_row_for_each_token(
    file: str, tmp_path: Path
) -> None:
    """Of the shape of the embedding transposed, or stored column by column."""
    turned = {EMBED: (900, 64), HEAD: (64, 900)}
    checkpoints = walk({EMBED: (900, 64), HEAD: (900, 64)}, "bfloat16")
    truth = expected([c[HEAD] for c in checkpoints])
    if file.endswith(".bin"):
        for tensors in checkpoints:
            tensors[HEAD] = tensors[HEAD].T.contiguous().T  # strides (1, 900)
    else:
        for tensors in checkpoints:
            tensors[HEAD] = tensors[HEAD].T.contiguous()
            assert tensors[HEAD].shape == turned[HEAD]
    store = analysed(written(tmp_path / "run", checkpoints, file), tmp_path / "store")
    assert_rows(seen(store, HEAD), truth)
    assert_rows(seen(store, EMBED), expected([c[EMBED] for c in checkpoints]))


def test_tied_tables_are_one_and_untied_ones_two(tmp_path: Path) -> None:
    checkpoints = walk({EMBED: (500, 40), BODY: (30, 30)}, "float32")
    for tensors in checkpoints:
        tensors[HEAD] = tensors[EMBED].clone()
    store = analysed(written(tmp_path / "tied" / "run", checkpoints), tmp_path / "store")
    assert store.sql("SELECT DISTINCT tensor FROM rows").fetchall() == [(EMBED,)]
    checkpoints[3][HEAD][7, 7] += 1
    apart = analysed(written(tmp_path / "apart" / "run", checkpoints), tmp_path / "apart_store")
    for name in (EMBED, HEAD):
        assert_rows(seen(apart, name), expected([c[name] for c in checkpoints]))


def test_values_that_are_not_finite_and_zero_rows(tmp_path: Path) -> None:
    checkpoints = walk({EMBED: (300, 100), BODY: (30, 30)}, "float32")
    for tensors in checkpoints:
        tensors[EMBED][6] = 0.0  # never anything else
    checkpoints[0][EMBED][1, 5] = float("nan")
    checkpoints[-1][EMBED][2, 5] = float("inf")
    checkpoints[2][EMBED][3, 5] = float("nan")
    checkpoints[0][EMBED][12] = 0.0
    store = analysed(written(tmp_path / "run", checkpoints), tmp_path / "store")
    found, truth = seen(store, EMBED), expected([c[EMBED] for c in checkpoints])
    assert_rows(found, truth)
    for row, column in ((1, "norm_first"), (2, "norm_last"), (6, "cosine_first_last")):
        assert np.isnan(found[column][row])
    assert np.isnan(found["last_moved_k"][6]) and found["norm_last"][6] == 0


def test_formats_that_change_within_a_run(tmp_path: Path) -> None:
    checkpoints = walk({EMBED: (300, 100), BODY: (30, 30)}, "bfloat16")
    for k in (1, 4):
        checkpoints[k] = {name: w.float() for name, w in checkpoints[k].items()}
    store = analysed(written(tmp_path / "run", checkpoints), tmp_path / "store")
    same = [{EMBED: c[EMBED].float()} for c in checkpoints]
    assert_rows(seen(store, EMBED), expected([c[EMBED] for c in same]))


def test_each_run_of_a_joint_analysis_has_its_own_rows(tmp_path: Path) -> None:
    shapes = {EMBED: (300, 100), BODY: (30, 30)}
    runs = {f"seed{seed}": walk(shapes, "float16", seed) for seed in (1, 2)}
    for name, checkpoints in runs.items():
        written(tmp_path / name, checkpoints)
    pipeline.analyze_joint(
        [str(tmp_path / name) for name in runs],
        run="both", store=str(tmp_path / "store"), executor="local", statistics="rows",
    )  # fmt: skip
    store = pipeline.open_store(str(tmp_path / "store"))
    for name, checkpoints in runs.items():
        assert_rows(seen(store, EMBED, name), expected([c[EMBED] for c in checkpoints]))
    assert store.sql("FROM rows WHERE run = 'both'").fetchall() == []


def test_a_sample_has_the_rows_that_were_read_whole(tmp_path: Path) -> None:
    checkpoints = walk({EMBED: (6000, 64), POSITION: (20, 10), BODY: (200, 300)}, "float16")
    store = analysed(written(tmp_path / "run", checkpoints), tmp_path / "store", fraction=0.3)
    truth = expected([c[EMBED] for c in checkpoints])
    found = seen(store, EMBED)
    assert 500 < len(found["row"]) < 4000
    kept = found["row"].astype(int)
    assert_rows(found, {name: values[kept] for name, values in truth.items()})
    assert_rows(seen(store, POSITION), expected([c[POSITION] for c in checkpoints]))


def test_runs_that_do_not_ask_have_none_and_asking_reads_once(tmp_path: Path) -> None:
    source = written(tmp_path / "run", walk({EMBED: (300, 100), BODY: (30, 30)}, "float16"))

    def read(**options: Any) -> bool:
        summary = pipeline.analyze(
            str(source), run="run", store=str(tmp_path / "store"), executor="local", **options
        )
        return summary.bytes_read > 0

    assert read()
    store = pipeline.open_store(str(tmp_path / "store"))
    assert store.sql("FROM rows").fetchall() == []
    assert read(statistics="rows")
    assert not read() and not read(statistics="rows")
    assert len(seen(pipeline.open_store(str(tmp_path / "store")), EMBED)["row"]) == 300


def test_figures_made_again_from_sums_have_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "run", walk({EMBED: (300, 100), BODY: (30, 30)}, "float16"))
    before = seen(analysed(source, tmp_path / "store"), EMBED)
    monkeypatch.setattr("pipeline.job.summary.FIGURES_FORMAT", 1 << 20)
    summary = pipeline.analyze(
        str(source), run="run", store=str(tmp_path / "store"), executor="local", statistics="rows"
    )
    assert summary.recomputed and summary.bytes_read == 0
    after = seen(pipeline.open_store(str(tmp_path / "store")), EMBED)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


@pytest.mark.parametrize("turned", [False, True])
def test_memory_and_threads_decide_no_bit(turned: bool, tmp_path: Path) -> None:
    checkpoints = walk({EMBED: (3000, 211), HEAD: (3000, 211)}, "bfloat16")
    for tensors in checkpoints if turned else []:
        tensors[HEAD] = tensors[HEAD].T.contiguous()
    source = written(tmp_path / "run", checkpoints)
    plan, opened = make_plan(Request(str(source), statistics=("rows",)), least_tile_bytes=1 << 20)
    assert len(plan.tiles) > 2

    def results(threads: int, budget: int) -> dict[str, bytes]:
        kept: dict[str, bytes] = {}

        class Sink:
            def put(self, tile_name: str, result: Sums) -> None:
                kept[tile_name] = encode(result)

            def probe(self, node: str) -> None: ...

        memory = project(
            plan.tensors, plan.tiles, budget, threads + 1, plan.statistics, rows=plan.rows
        )
        worker = Worker(plan, Sink(), UrlBroker(plan, opened), "cpu", threads, memory)
        list(run_local(worker, threads + 1, [tile.index for tile in plan.tiles]))
        return kept

    least = project(plan.tensors, plan.tiles, 1 << 40, 2, plan.statistics, rows=plan.rows).least
    assert results(1, least) == results(2, 1 << 31)


def trained(vocabulary: int, used: int, dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
    """A bigram network trained by AdamW on `used` of its tokens: weight decay scales all others."""
    torch.manual_seed(0)
    embedding, head = (
        torch.nn.Embedding(vocabulary, 24),
        torch.nn.Linear(24, vocabulary, bias=False),
    )
    parameters = [*embedding.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.2)
    checkpoints = []
    for step in range(121):
        if step % 20 == 0:
            tensors = {EMBED: embedding.weight, HEAD: head.weight}
            checkpoints.append({n: w.detach().clone().to(dtype) for n, w in tensors.items()})
        tokens = torch.randint(0, used, (64,))
        loss = torch.nn.functional.cross_entropy(head(embedding(tokens)), (tokens * 7 + 3) % used)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return checkpoints


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_that_were_never_trained_are_told(dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoints = trained(160, 147, dtype)
    store = analysed(written(tmp_path / "run", checkpoints), tmp_path / "store")
    found = seen(store, EMBED)
    assert found["norm_last"][150] / found["norm_first"][150] < 0.8  # what weight decay did
    assert found["last_moved_k"].tolist() == [len(checkpoints) - 1] * 160
    query = "SELECT severity, tensor, message, evidence FROM findings WHERE kind = 'untrained_rows'"
    ((severity, tensor, message, evidence),) = store.sql(query).fetchall()
    assert (severity, tensor) == ("info", EMBED)  # every row of the head moves, by its softmax
    assert message.startswith(f"{EMBED}: 13 of 160 rows never left their direction")
    assert json.loads(evidence)["first"] == list(range(147, 160))


def test_tables_that_hardly_turn_are_not_called_untrained(tmp_path: Path) -> None:
    checkpoints = trained(60, 60, torch.float32)[:1] * 3
    checkpoints = [{n: w * (1 - 0.1 * k) for n, w in c.items()} for k, c in enumerate(checkpoints)]
    store = analysed(written(tmp_path / "run", checkpoints), tmp_path / "store")
    assert store.sql("FROM findings WHERE kind = 'untrained_rows'").fetchall() == []


def test_the_plan_says_what_statistics_cost(tmp_path: Path) -> None:
    source = written(tmp_path / "run", walk({EMBED: (300, 100), BODY: (30, 30)}, "float16"))
    done = hallmarks("plan", str(source), "--executor", "local", "--statistics", "rows,values")
    assert done.returncode == 0, done.stderr
    for name in ("values", "rows"):
        assert any(name in line and "in the store" in line for line in done.stdout.splitlines())
    described = hallmarks(
        "plan", str(source), "--json", "--executor", "local", "--statistics", "all"
    )
    costs = json.loads(described.stdout)["statistics"]
    assert costs.keys() == {"values", "sparsity", "rows"}
    assert all(cost["memory"] > 0 and cost["stored"] > 0 for cost in costs.values())
