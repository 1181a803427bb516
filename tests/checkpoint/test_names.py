"""Names to steps: the table of examples, and what only a series of names tells."""

from __future__ import annotations

import random

import pytest

from pipeline.checkpoint.file_kinds import file_kind
from pipeline.checkpoint.names import EXAMPLES, Position, position, unplaced
from pipeline.checkpoint.reading import Reading
from pipeline.checkpoint.stages import staged

SERIES: dict[str, tuple[list[tuple[str, int | None]], str]] = {
    # what: names in the order of training, with the stage that each gets, and how that is told
    "numbers": ([("step5", None), ("stage1-step9", 1), ("stage1-step10", 1), ("stage2-step5", 2)], ""),
    "one word is a network's name": ([("bert-base-step1", None), ("bert-base-step10", None)], ""),
    "Ettin": (
        [("step2995", None), ("step599525", None), ("ext1000", 2), ("ext2000", 2), ("decay100", 3),
         ("decay500", 3)], "usually",
    ),
    "K2-V2": (
        [("base_0020000", 1), ("base_1245000", 1), ("mid_1_0001000", 2), ("mid_2_0001000", 3),
         ("mid_10_0001000", 4)], "usually",
    ),
    "Apertus": (
        [("step50000-tokens210B", None), ("step2627139-tokens15T", None), ("longctx-step50", 2),
         ("longctx-step1700", 2)], "usually",
    ),
    "SmolLM3": (
        [("stage1-step-40000", 1), ("stage3-step-4720000", 3), ("lc-4k-to-32k-step-4000", 4),
         ("lc-4k-to-32k-step-20000", 4), ("lc-32k-to-64k-step-4000", 5)], "usually",
    ),
    "Lucie": (
        [("step0000010", None), ("step0700000", None), ("extension_step0000250", 2)], "usually",
    ),
    "the usual order": (
        [("step100", None), ("anneal-5", 2), ("longctx-7", 3), ("sft-3", 4), ("dpo-2", 5), ("rl-1", 6)],
        "usually",
    ),
    "steps that continue": (
        [("base_0020000", 1), ("base_0040000", 1), ("decay_0050000", 2), ("decay_0060000", 2),
         ("mid_0070000", 3), ("mid_0080000", 3)], "continue",
    ),
    "tokens": (
        [("decay-100B", 1), ("decay-200B", 1), ("mid-300B", 2), ("mid-400B", 2)], "tokens",
    ),
    "epochs": (
        [("epoch_0_step_10", 0), ("epoch_0_step_20", 0), ("epoch_1_step_10", 1)], "epoch",
    ),
    "epochs whose steps go on": ([("epoch_0_step_10", None), ("epoch_1_step_20", None)], ""),
    "fractions": ([("epoch_0.25", None), ("epoch_0.5", None), ("epoch_1", None)], ""),
    "tokens alone": ([("10B", None), ("593B", None), ("1.2T", None)], ""),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_a_name_states(name: str) -> None:
    assert position(name) == EXAMPLES[name]


@pytest.mark.parametrize("what", SERIES)
def test_a_series_in_any_order(what: str) -> None:
    expected, how = SERIES[what]
    names = [name for name, _ in expected]
    random.Random(what).shuffle(names)
    positions, told = staged([position(name) for name in names])
    ordered = sorted(zip(positions, names, strict=True), key=lambda each: each[0].order)
    assert [(name, where.stage) for where, name in ordered] == expected
    assert how in told
    assert bool(how) == bool(told)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("main", "final"), ("final", "final"), ("LATEST", "final"), ("epoch_latest.pt", "final"),
        ("last.ckpt", "final"), ("last-v1.ckpt", "final"), ("last.pth.tar", "final"),
        ("final_model", "final"), ("model_best.pth.tar", "best"), ("checkpoint-best", "best"),
        ("best", "best"), ("step5-final", None), ("lasting", None), ("domain", None),
    ],
)  # fmt: skip
def test_names_of_last_and_best_checkpoints(name: str, kind: str | None) -> None:
    assert unplaced(name) == kind


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        (r"upd(?P<step>\d+)", "x-upd300", Position(step=300)),
        (r"(?P<step>[\d.]+k)$", "run 1.5k", Position(step=1500)),
        (r"(?P<step>[\d.]+)", "0.25", Position(fraction=0.25)),
        (r"(?P<tokens>\w+)", "20B", Position(tokens=20e9)),
        (r"(?P<tokens>\w+)", "1T", Position(tokens=1e12)),
        (r"(?P<tokens>\w+)", "5M", Position(tokens=5e6)),
        (r"(?P<stage>\d)/(?P<step>\d+)", "2/30", Position(2, 30)),
        (r"(?P<stage>[a-z]+)(?P<step>\d+)", "warm30", Position(step=30, word="warm")),
        (r"s(?P<seed>\d+)_(?P<step>\d+)", "s3_30", Position(step=30, seed="3")),
        (r"(?P<branch>\d+)-(?P<step>\d+)", "2-30", Position(step=30, branch=2)),
        (r"(?P<branch>[a-z]+)-(?P<step>\d+)", "ablation-30", Position(step=30, seed="ablation")),
        (r"(?P<step>\d+)x", "step30", Position()),
        (r"(?P<step>\w+)", "thirty", Position()),
        (r"(?P<step>\d+)?(?P<tokens>B)?", "x", Position()),
        (r"(?P<step>\d+)", "9" * 19, Position()),
    ],
)  # fmt: skip
def test_names_read_as_the_user_says(pattern: str, name: str, expected: Position) -> None:
    assert Reading(pattern).position(name) == expected


def test_globs_of_weights_are_of_whole_paths() -> None:
    reading = Reading(weights=("unet_ema/*.safetensors", "model_1.*"))
    assert reading.are_weights("unet_ema/a.safetensors")
    assert reading.are_weights("model_1.safetensors")
    for path in ("a.safetensors", "x/unet_ema/a.safetensors", "unet_ema/a/b.safetensors",
                 "unet_ema/a.bin", "x/model_1.bin"):  # fmt: skip
        assert not reading.are_weights(path)
    assert reading.leads_to_weights("unet_ema")
    assert not reading.leads_to_weights("unet")


@pytest.mark.parametrize("part", ["-last-v1", "_", "tmp.", "step", "9", "base_", "seed-", "/step1"])
def test_names_longer_than_any_path_say_nothing(part: str) -> None:
    name = part * 500_000
    assert (position(name), unplaced(name), file_kind(name + ".json")) == (Position(), None, None)


@pytest.mark.parametrize("stage", [2**31 - 1, 2**30 - 1])
def test_stages_are_numbered_as_far_as_the_column_goes(stage: int) -> None:
    positions, _ = staged([position(name) for name in (f"stage{stage}-step1", "sft-5", "step7")])
    assert all(where.stage is None or where.stage < 2**31 for where in positions)
