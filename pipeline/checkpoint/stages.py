"""The stages of a series of checkpoints: which numbers and words its names have, and in which order.

One name says what its stage is called (`names.py`); which stage came first is told by the series: by
steps that continue, by tokens, or else by the order in which trainings have such stages.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from pipeline.checkpoint.names import STAGE_WORDS, Position

Stage = tuple[int | None, str]
"""Its number, if it has one, and its word."""
_RANKS = [re.compile(rf"(?:{words})(?![a-z])", re.IGNORECASE) for words in STAGE_WORDS]
_CONTINUES = 2.0
"""Spacings of the stage before, at most, to the first step of one that counts on."""


def staged(positions: Sequence[Position]) -> tuple[list[Position], str]:
    """Return positions whose stages are numbers in the order of training, and how they were ordered.

    Stages that have numbers keep them; those that are words are numbered after what they follow. The
    text is empty where names alone give the order.
    """
    stages: dict[Stage, list[Position]] = defaultdict(list)
    for where in positions:
        if where.is_known:
            stages[where.stage, where.word].append(where)
    if all(not word for _, word in stages):
        return _by_epoch(positions)
    if len(stages) == 1:  # a word of the network's name, or one stage alone
        return list(positions), ""
    order, how = _ordered(stages)
    numbers = _numbered(order)
    shown = " < ".join(_called(stage) for stage in order)
    return [
        replace(where, stage=numbers.get((where.stage, where.word), where.stage))
        for where in positions
    ], f"stages ordered by {how}: {shown}"


def counting_epochs(positions: Sequence[Position]) -> list[Position]:
    """Return those whose step is an epoch, where others state both: fairseq's `checkpoint2.pt` beside
    `checkpoint_2_12000.pt`."""
    last = max(
        (p.epoch for p in positions if p.epoch is not None and p.step is not None), default=-1
    )
    return [
        where
        for where in positions
        if where.epoch is None and not where.word and where.stage is None
        if where.tokens is None and where.time is not None and where.time <= last
    ]


def _ordered(stages: dict[Stage, list[Position]]) -> tuple[list[Stage], str]:
    """Return the stages in order, and by what."""
    steps = _bounds(stages, lambda where: where.time)
    if steps is not None and all(
        steps[b][0] - steps[a][1] <= _CONTINUES * (_spacing(stages[a]) or steps[a][0])
        and steps[b][0] > _spacing(stages[b])  # else it counts from 0 itself
        for a, b in pairwise(steps)
    ):
        return list(steps), "steps, which continue"
    tokens = _bounds(stages, lambda where: where.tokens)
    if tokens is not None:
        return list(tokens), "tokens"
    return sorted(stages, key=_rank), "what trainings usually do, since steps restart"


def _bounds(
    stages: dict[Stage, list[Position]], what: Callable[[Position], float | None]
) -> dict[Stage, tuple[float, float]] | None:
    """Return the first and last value of each stage, in order; None: unknown, or not one after another."""
    bounds: dict[Stage, tuple[float, float]] = {}
    for stage, positions in stages.items():
        values = [value for where in positions if (value := what(where)) is not None]
        if len(values) < len(positions):
            return None
        bounds[stage] = min(values), max(values)
    ordered = dict(sorted(bounds.items(), key=lambda item: item[1]))
    apart = all(before[1] < after[0] for before, after in pairwise(ordered.values()))
    return ordered if apart else None


def _spacing(positions: Sequence[Position]) -> float:
    """Return the largest step from one checkpoint of a stage to the next; 0 if there is one alone."""
    times = sorted(where.time for where in positions if where.time is not None)
    return max((b - a for a, b in pairwise(times)), default=0.0)


def _rank(stage: Stage) -> tuple[int, int, list[tuple[float, str]]]:
    number, word = stage
    rank = next((r for r, pattern in enumerate(_RANKS) if pattern.match(word)), 0)
    parts = re.findall(r"(\d+)|(\D+)", word)
    natural = [(float(digits), "") if digits else (-1.0, text) for digits, text in parts]
    return rank, -1 if number is None else number, natural


def _numbered(order: Sequence[Stage]) -> dict[Stage, int | None]:
    """Return the number of each stage: its own, or one more than what it follows."""
    numbers: dict[Stage, int | None] = {}
    last = 0
    for stage in order:
        number, word = stage
        if not word and number is None and not numbers:
            numbers[stage] = None  # most of the run, as a rule: it is called nothing
            last = 1
        else:
            last = number if not word and number is not None and number > last else last + 1
            numbers[stage] = last
    return numbers


def _called(stage: Stage) -> str:
    number, word = stage
    if word:
        return word if number is None else f"{word} {number}"
    return "(no word)" if number is None else f"stage {number}"


def _by_epoch(positions: Sequence[Position]) -> tuple[list[Position], str]:
    """Take epochs for stages where steps start anew in each."""
    known = [where for where in positions if where.epoch is not None and where.stage is None]
    in_order = sorted(known, key=lambda where: (where.epoch, where.time))
    times = [where.time for where in in_order if where.time is not None]
    restart = any(b <= a for a, b in pairwise(times))
    if not restart or len(known) < sum(where.is_known for where in positions):
        return list(positions), ""
    how = "steps restart in each epoch: epochs are taken for stages"
    return [
        replace(where, stage=where.epoch) if where.is_known else where for where in positions
    ], how
