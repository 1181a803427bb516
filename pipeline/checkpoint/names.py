"""From the name of a checkpoint (branch, tag, folder, title of a commit) to where it stands in training.

Names are read by a table of patterns, as data; `EXAMPLES` says what each is there for and is
what the tests run. All patterns that match contribute, so `stage1-step140000-tokens294B` gives
stage, step and tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
# A longer number is no step of a training run.
_COUNT = r"(\d{1,9}(?:\.\d{1,9})?)([kmbt]?)(?![a-z0-9])"

# The first pattern of a list that matches is taken; a match starts at a word's start.
_PATTERNS: dict[str, tuple[re.Pattern[str], ...]] = {
    field: tuple(
        re.compile(rf"(?<![a-z0-9]){prefix}{_COUNT}", re.IGNORECASE) for prefix in prefixes
    )
    for field, prefixes in {
        "stage": (r"stage[-_]?", r"phase[-_]?"),
        "branch": (r"ingredient[-_]?",),
        "step": (
            r"(?:global[-_]?)?steps?[-_= ]?",
            r"checkpoint[-_= ]?",
            r"ckpt[-_=]?",
            r"iter(?:ation)?[-_=]?",
            r"epoch[-_=]?",
        ),
        "tokens": (r"tokens?[-_]?", r"steps?[-_]?\d+[kmb]?[-_](?=\d+(?:\.\d+)?[kmbt])"),
    }.items()
}
# Stages that are called by a word, and come after the numbered ones: SmolLM3 has three, and then
# extends the context.
_NAMED_STAGES = ((re.compile(r"^lc[-_]", re.IGNORECASE), 4.0),)
_SOUPED = re.compile(r"(?<![a-z])soup(?:ed)?(?![a-z])", re.IGNORECASE)
_LAST_BRANCH = 1_000_000  # an average of branches counts as a branch after all others
_BARE_NUMBER = re.compile(r"\d{1,9}")

EXAMPLES: dict[str, tuple[int | None, int | None, float | None]] = {
    # name: (stage, step, tokens)
    "step0": (None, 0, None),
    "step143000": (None, 143_000, None),
    "step-160000": (None, 160_000, None),
    "global_step5000": (None, 5000, None),
    "checkpoint-500": (None, 500, None),
    "ckpt_100": (None, 100, None),
    "ckpt_007": (None, 7, None),
    "epoch_3": (None, 3, None),
    "iter_0001000": (None, 1000, None),
    "step1000-tokens4B": (None, 1000, 4e9),
    "stage1-step140000-tokens294B": (1, 140_000, 294e9),
    "stage1-step-40000": (1, 40_000, None),
    "step-480k-token-1007B": (None, 480_000, 1007e9),
    "intermediate-step-1431k-3T": (None, 1_431_000, 3e12),
    "TinyLlama-1.1B-intermediate-step-480k-1T": (None, 480_000, 1e12),
    "multiberts-seed_0-step_20k": (None, 20_000, None),
    "CrystalCoder_phase1_checkpoint_055500": (1, 55_500, None),
    "stage2-ingredient3-step11931-tokens50B": (2, 11_931, 50e9),
    "stage3-step-4710000": (3, 4_710_000, None),
    "lc-4k-to-32k-step-20000": (4, 20_000, None),
    "step50000-tokens210B": (None, 50_000, 210e9),
    "global_step_100": (None, 100, None),
    "epoch=3-step=1000": (None, 1000, None),
    "checkpoint-300000": (None, 300_000, None),
    "checkpoint-300000 contents": (None, 300_000, None),
    "Saving weights and logs of step 1000": (None, 1000, None),
    "000250": (None, 250, None),
    "main": (None, None, None),
    "stepping-stone": (None, None, None),
}


@dataclass(frozen=True, slots=True)
class Position:
    """Where a checkpoint stands in its training run, as far as its name tells."""

    stage: int | None
    step: int | None
    tokens: float | None
    branch: int | None = None
    """Number of one of several parallel branches of a stage."""

    @property
    def is_known(self) -> bool:
        """True if the name orders the checkpoint at all."""
        return self.step is not None or self.tokens is not None

    @property
    def order(self) -> tuple[float, float, float]:
        """Sort key: by stage, then step, then tokens, unknown ones first."""
        stage, step, tokens = (
            -1.0 if value is None else float(value)
            for value in (self.stage, self.step, self.tokens)
        )
        return stage, step, tokens


def position(name: str) -> Position:
    """Return the stage, step and tokens that a checkpoint's name states."""
    stated = {field: _first(patterns, name) for field, patterns in _PATTERNS.items()}
    if stated["step"] is None and _BARE_NUMBER.fullmatch(name):
        stated["step"] = float(name)
    for pattern, stage in _NAMED_STAGES:
        if pattern.search(name):
            stated["stage"] = stage
    if _SOUPED.search(name):
        stated["branch"] = _LAST_BRANCH
    return Position(
        _rounded(stated["stage"], 2**31),
        _rounded(stated["step"], 2**63),
        stated["tokens"],
        _rounded(stated["branch"], 2**31),
    )


def _rounded(value: float | None, limit: int) -> int | None:
    """Return a whole number, or None where the column that it goes to could not hold it."""
    return None if value is None or value >= limit else round(value)


def _first(patterns: tuple[re.Pattern[str], ...], name: str) -> float | None:
    for pattern in patterns:
        if match := pattern.search(name):
            return float(match[1]) * _SCALE[match[2].lower()]
    return None
