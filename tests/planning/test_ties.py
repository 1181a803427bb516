"""Ties: what is stored decides, the configuration only says what should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline
from pipeline.api import analyze_joint
from pipeline.execute.work.byte_ranges import byte_ranges
from pipeline.planning.blocks import block_layouts, piece_bytes
from pipeline.planning.make import make_plan
from pipeline.planning.request import Request
from tests.planning.test_bridge import COUNT, states, write

EMBED, HEAD, LAYER = (
    "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight",
)  # fmt: skip
ROWS = 6000
TIED = {"tie_word_embeddings": True}
State = dict[str, torch.Tensor]


def run(
    head: Any, config: Any, where: Path, **options: Any
) -> tuple[dict[str, Any], list[Any], Any]:
    """Analyse a run whose head is `head(k, state)`, if any; return tensors, findings, the summary."""
    made = states({EMBED: (ROWS, 8), LAYER: (16, 8)})
    for k, state in enumerate(made):
        if (values := head(k, state)) is not None:
            state[HEAD] = values
    source = write(where / "run", made, config)
    summary = pipeline.analyze(str(source), str(where / "store"), executor="local", **options)
    store = pipeline.open_store(str(where / "store"))
    tensors = {row[0]: row[1:] for row in store.sql(
        "SELECT tensor, included, reason FROM tensors").fetchall()}  # fmt: skip
    findings = store.sql(
        "SELECT severity, kind, k FROM findings WHERE kind <> 'starts_late' ORDER BY ALL"
    ).fetchall()
    return tensors, findings, summary


def equal(k: int, state: State) -> torch.Tensor:
    return state[EMBED].clone()


def apart(k: int, state: State) -> torch.Tensor:
    return state[EMBED].flip(0).contiguous()


def one_row_from_2(k: int, state: State) -> torch.Tensor:
    values = state[EMBED].clone()
    if k >= 2:
        values[7, 3] += 1e-3
    return values


CONFIGS = {
    "stated": TIED,
    "nested": {"model_type": "x", "text_config": TIED},
    "deeper": {"thinker_config": {"text_config": TIED}},
}


@pytest.mark.parametrize("config", [*CONFIGS, "silent"])
def test_equal_values_count_once(config: str, tmp_path: Path) -> None:
    """Whoever says so, and if nobody does."""
    tensors, findings, summary = run(equal, CONFIGS.get(config), tmp_path)
    assert tensors[HEAD] == (False, f"tied to {EMBED}")
    assert findings == [("info", "tied_weights", None)]
    assert (summary.tensors, summary.parameters) == (2, ROWS * 8 + 16 * 8)
    norm = pipeline.open_store(str(tmp_path / "store")).sql(
        "SELECT norm FROM path WHERE scope = 'model' AND k = 0").fetchall()[0][0]  # fmt: skip
    assert norm**2 == pytest.approx(
        sum(
            float((v.double() ** 2).sum())
            for v in states({EMBED: (ROWS, 8), LAYER: (16, 8)})[0].values()
        )
    )


@pytest.mark.parametrize("config", CONFIGS)
def test_a_head_that_was_trained_apart_counts_by_itself(config: str, tmp_path: Path) -> None:
    tensors, findings, summary = run(apart, CONFIGS[config], tmp_path)
    assert tensors[HEAD] == (True, None)
    assert findings == [("warning", "not_tied", 0)]
    assert summary.tensors == 3


def test_one_value_of_one_checkpoint_is_enough(tmp_path: Path) -> None:
    tensors, findings, _ = run(one_row_from_2, TIED, tmp_path)
    assert tensors[HEAD] == (True, None)
    assert findings == [("warning", "not_tied", 2)]


def test_heads_that_nobody_ties_stay_apart_without_a_word(tmp_path: Path) -> None:
    for number, config in enumerate((None, {"tie_word_embeddings": False})):
        tensors, findings, _ = run(apart, config, tmp_path / str(number))
        assert tensors[HEAD] == (True, None)
        assert findings == []


@pytest.mark.parametrize("config", [TIED, None])
def test_stored_in_some_checkpoints_only(config: Any, tmp_path: Path) -> None:
    """Tied in the others; values that differ where it is stored are a head's own, or it is missing."""
    tensors, findings, _ = run(lambda k, s: equal(k, s) if k % 2 else None, config, tmp_path / "a")
    assert tensors[HEAD] == (False, f"tied to {EMBED}")
    assert findings == [("info", "tied_weights", None)]
    tensors, findings, _ = run(lambda k, s: apart(k, s) if k % 2 else None, config, tmp_path / "b")
    if config:
        assert tensors[HEAD] == (True, None)
        assert ("warning", "not_tied", 1) in findings
    else:
        assert tensors[HEAD] == (False, "absent from 2 checkpoints, first step0")
        assert findings == [("warning", "missing_tensor", 0)]


STORED = 4 * (ROWS * 8 + 16 * 8) * COUNT, 4 * ROWS * 8
"""Bytes of embeddings and layers, and of one head."""


@pytest.mark.parametrize("config", [TIED, None])
@pytest.mark.parametrize("head", [equal, apart])
def test_what_a_head_shares_with_the_embedding_is_read_once(
    head: Any, config: Any, tmp_path: Path
) -> None:
    tensors, _, summary = run(lambda k, s: head(k, s) if k % 2 else None, config, tmp_path)
    without, of_head = STORED
    assert summary.bytes_read == summary.bytes_total == without + 2 * of_head
    if tensors[HEAD][0]:  # tied in checkpoint 0, apart in 1
        rows = pipeline.open_store(str(tmp_path / "store")).sql(
            f"SELECT k, norm FROM path WHERE scope = 'tensor' AND tensor IN ('{HEAD}', '{EMBED}')"
            " AND k = 0"
        )
        assert len({norm for _, norm in rows.fetchall()}) == 1
        (dot,) = pipeline.open_store(str(tmp_path / "store")).sql(
            f"SELECT dot FROM similarity WHERE tensor = '{HEAD}' AND i = 0 AND j = 1"
        ).fetchall()[0]  # fmt: skip
        made = [state[EMBED].double() for state in states({EMBED: (ROWS, 8), LAYER: (16, 8)})]
        assert dot == pytest.approx(float((made[0] * made[1].flip(0)).sum()), rel=1e-6)


@pytest.mark.parametrize("pieces", [1, 1.5, 3, 100])
@pytest.mark.parametrize("fraction", [None, 0.4])
def test_no_byte_is_read_twice_whatever_a_block_holds(
    pieces: float, fraction: float | None, tmp_path: Path
) -> None:
    """Though the next tensor in the file begins where the embedding ends."""
    made = states({EMBED: (ROWS, 8), LAYER: (16, 8), "model.norm.weight": (8,)})
    for k, state in enumerate(made):
        if k in (1, 2):
            state[HEAD] = state[EMBED].clone()
    plan, _ = make_plan(Request(str(write(tmp_path / "run", made)), fraction=fraction))
    row_bytes = int(pieces * piece_bytes(plan.tensors)) // 64 * 64
    covered: dict[int, int] = {}
    for tile in plan.tiles:
        once: set[tuple[int, int, int]] = set()
        for layout in block_layouts(tile, plan.tensors, row_bytes):
            assert layout.row_bytes <= row_bytes
            ranges = byte_ranges(layout, plan.tensors)
            for row in range(COUNT):  # every column of a range is filled
                of_row = sum(r.stop - r.start for r in ranges if r.row == row)
                assert of_row == sum(4 * (p.range.stop - p.range.first) for p in layout.ranges)
            of_block = {(r.file, r.start, r.stop) for r in ranges}
            assert not once & of_block
            once |= of_block
        for file, start, stop in once:
            covered[file] = covered.get(file, 0) + stop - start
    assert sum(covered.values()) == plan.bytes_to_read
    head = [n for n, tensor in enumerate(plan.tensors) if tensor.name == HEAD]
    assert any(range_.tensor in head for tile in plan.tiles for range_ in tile.ranges)
    if fraction is None:
        assert plan.bytes_to_read == 4 * (ROWS * 8 * (COUNT + 2) + (16 * 8 + 8) * COUNT)


@pytest.mark.parametrize("config", [TIED, None])
def test_in_a_sample_where_some_lack_it(config: Any, tmp_path: Path) -> None:
    tensors, findings, _ = run(
        lambda k, s: equal(k, s) if k % 2 else None, config, tmp_path, fraction=0.3
    )
    assert tensors[HEAD] == (False, f"tied to {EMBED}")
    assert findings == [("info", "tied_weights", None)]


@pytest.mark.parametrize("head", [equal, apart])
def test_in_a_sample(head: Any, tmp_path: Path) -> None:
    """A pair is drawn alike, and compared where it was drawn."""
    tensors, findings, summary = run(head, TIED, tmp_path, fraction=0.3)
    assert summary.fraction < 1
    assert tensors[HEAD][0] is (head is apart)
    assert [kind for _, kind, _ in findings] == ["not_tied" if head is apart else "tied_weights"]


def test_left_out_embeddings_tie_nothing(tmp_path: Path) -> None:
    tensors, findings, _ = run(equal, TIED, tmp_path, exclude="embed_tokens")
    assert tensors[HEAD] == (True, None)
    assert findings == []


def test_before_values_are_read_the_configuration_counts(tmp_path: Path) -> None:
    made = states({EMBED: (ROWS, 8), LAYER: (16, 8)})
    for state in made:
        state[HEAD] = state[EMBED].flip(0)
    source = write(tmp_path / "run", made, TIED)
    plan, _ = make_plan(Request(str(source)))
    assert [entry.reason for entry in plan.all_left_out] == [f"tied to {EMBED}"]
    assert plan.parameters == ROWS * 8 + 16 * 8
    assert len(plan.tensors) == 3  # all are read: once


def test_a_second_run_says_the_same(tmp_path: Path) -> None:
    """From the store, and for the runs of a joint read."""
    _, _, summary = run(apart, TIED, tmp_path)
    again = pipeline.analyze(str(tmp_path / "run"), str(tmp_path / "store"), executor="local")
    assert again.already_complete
    assert (again.tensors, again.parameters) == (summary.tensors, summary.parameters)
    assert again.checkpoints == COUNT
    other = write(tmp_path / "other", states({EMBED: (ROWS, 8), HEAD: (ROWS, 8), LAYER: (16, 8)}))
    assert json.loads((tmp_path / "run" / "step0" / "config.json").read_text()) == TIED
    joint = analyze_joint(
        [str(tmp_path / "run"), str(other)], tmp_path / "joint", executor="local", run="both"
    )
    assert [each.tensors for each in joint] == [3, 3, 3]
