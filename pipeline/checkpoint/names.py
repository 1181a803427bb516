"""From the name of a checkpoint (branch, tag, folder, title of a commit) to where it stands in training.

Names are read by a table of patterns, as data; `EXAMPLES` says what each is there for and is
what the tests run. All patterns that match contribute, so `stage1-step140000-tokens294B` gives
stage, step and tokens. What only the names of a whole series tell is in `stages.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
# A longer number is no step of a training run.
_COUNT = r"(\d{1,9}(?:\.\d{1,9})?)([kmbt]?)(?![a-z0-9])"
_GAP = r"[-_=: ]{0,2}"
_UNITS_OF_TOKENS = "mbt"
"""`chck_10M` and `anneal-50B` count tokens: no run has saved itself by millions of steps. `10k` is a step."""

# The first pattern of a list that matches is taken; a match starts at a word's start.
_PATTERNS: dict[str, tuple[re.Pattern[str], ...]] = {
    field: tuple(
        re.compile(rf"(?<![a-z0-9]){prefix}{_COUNT}", re.IGNORECASE) for prefix in prefixes
    )
    for field, prefixes in {
        "stage": (r"stage[-_]?", r"phase[-_]?"),
        "branch": (r"ingredient[-_]?",),
        "step": (
            rf"(?:global[-_]?)?steps?{_GAP}",
            rf"(?:iter(?:ation)?s?|updates?|ba|it){_GAP}",
            r"checkpoint[-_]\d{1,6}[-_](?=\d)",  # fairseq: epoch, then update
        ),
        "save": (
            rf"(?:checkpoints?|ckpts?|chkpts?|chck|snapshot){_GAP}",
            r"^model[-_]?(?=\d+[kmbt]?$)",
        ),
        "epoch": (rf"(?:epochs?|ep){_GAP}", r"checkpoint[-_](?=\d{1,6}[-_]\d)"),
        "tokens": (rf"tok(?:en)?s?{_GAP}", r"steps?[-_]?\d+[kmb]?[-_](?=\d+(?:\.\d+)?[kmbt])"),
    }.items()
}
_COUNTED_TOKENS = re.compile(
    r"(?<![a-z0-9.])(\d{1,9}(?:\.\d{1,9})?)([kmbt]?)[-_ ]?tok(?:en)?s?(?![a-z])", re.IGNORECASE
)
_BARE_NUMBER = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([kmbt]?)", re.IGNORECASE)

STAGE_WORDS = (
    r"base|pre[-_]?train(?:ing|ed)?|stable",
    r"mid(?:[-_]?train(?:ing|ed)?)?|anneal(?:ing|ed)?|ext",  # Ettin extends, then decays
    r"decay|cool[-_]?down",
    r"lc|long[-_]?(?:ctx|context)|(?:context[-_]?)?extension",
    r"sft|instruct",
    r"dpo",
    r"rl(?:vr|hf)?|ppo|grpo",
)
"""Stages that are called by a word, in the order in which trainings have them."""
_WORD = re.compile(rf"(?<![a-z])(?:{'|'.join(STAGE_WORDS)})(?![a-z])", re.IGNORECASE)
_COUNT_OF_WORD = re.compile(rf"[-_=]?(?:\d{{1,3}}[-_](?=\d))?{_COUNT}(?![-_][a-z])", re.IGNORECASE)
_HAS_TOKENS = re.compile("|".join(STAGE_WORDS[1:3]), re.IGNORECASE)
"""Stages that are named with their tokens, like `anneal-50B`; behind `sft` such a number is a network's."""
_END_OF_STAGE = re.compile(r"[-_](?:final|latest|last|best)(?![a-z])", re.IGNORECASE)
_PARALLEL = re.compile(
    r"(?<![a-z])(?:seed[-_=]?(?=[a-z0-9])|(?=(?:run|trial|fold|replica|rep|member)[-_=]?\d))",
    re.IGNORECASE,
)
_SOUPED = re.compile(r"(?<![a-z])soup(?:ed)?(?![a-z])", re.IGNORECASE)
LAST_BRANCH = 1_000_000  # an average of branches counts as a branch after all others

MOST_STAGES = 2**30
"""The column holds twice as many: stages that are words are numbered behind those that have numbers."""
_LONGEST = 4096
"""Characters of a path, where there are file systems: a longer name says nothing."""
_SUFFIX = re.compile(r"(?:\.(?:safetensors|bin|pt|pth|ckpt|tar))+$", re.IGNORECASE)
_BEING_WRITTEN = re.compile(
    r"\..*|(?:tmp|incomplete)[-_.].*"
    r"|.*[-_.](?:tmp|temp|partial|incomplete|orbax-checkpoint-tmp[-_.].*)",
    re.IGNORECASE,
)
_UNPLACED = {
    "final": re.compile(r"main|(?:.*[-_])?(?:final|latest|last)(?:[-_](?:model|v\d+))*", re.I),
    "best": re.compile(r"(?:.*[-_])?best(?:[-_](?:model|v\d+))*", re.I),
}


@dataclass(frozen=True, slots=True)
class Position:
    """Where a checkpoint stands in its training run, as far as its name tells."""

    stage: int | None = None
    step: int | None = None
    tokens: float | None = None
    branch: int | None = None
    """Number of one of several parallel branches of a stage."""
    word: str = ""
    """What a stage without a number is called."""
    seed: str = ""
    """Which of several runs side by side."""
    epoch: int | None = None
    """Where a step is stated besides."""
    fraction: float | None = None
    """The step, or epoch, where it is no whole number."""

    @property
    def time(self) -> float | None:
        """The step, whole or not."""
        return self.fraction if self.step is None else self.step

    @property
    def is_known(self) -> bool:
        """True if the name orders the checkpoint at all."""
        return self.time is not None or self.tokens is not None

    @property
    def order(self) -> tuple[float, float, float]:
        """Sort key: by stage, then step, then tokens, unknown ones first."""
        stage, step, tokens = (
            -1.0 if value is None else float(value)
            for value in (self.stage, self.time, self.tokens)
        )
        return stage, step, tokens


EXAMPLES: dict[str, Position] = {
    "step0": Position(step=0),
    "step143000": Position(step=143_000),
    "step-160000": Position(step=160_000),
    "step_0025": Position(step=25),
    "global_step5000": Position(step=5000),
    "global_step_100": Position(step=100),
    "checkpoint-500": Position(step=500),
    "checkpoint_0005000": Position(step=5000),
    "checkpoint-300000 contents": Position(step=300_000),
    "ckpt_007": Position(step=7),
    "iter_0001000": Position(step=1000),
    "state_step000125.pt": Position(step=125),
    "model_000250.pt": Position(step=250),
    "checkpoint-1.pth.tar": Position(step=1),
    "000250": Position(step=250),
    "000250.safetensors": Position(step=250),
    "checkpoints/000250": Position(step=250),
    "epoch_3": Position(step=3),
    "epoch 3": Position(step=3),
    "epoch_0.5": Position(fraction=0.5),
    "epoch=3-step=1000": Position(step=1000, epoch=3),
    "epoch_0_step_10": Position(step=10, epoch=0),
    "ep2-ba160": Position(step=160, epoch=2),
    "checkpoint_1_6000.pt": Position(step=6000, epoch=1),
    "step1000-unsharded": Position(step=1000),
    "step0.5k": Position(step=500),
    "step1000-tokens4B": Position(step=1000, tokens=4e9),
    "step-480k-token-1007B": Position(step=480_000, tokens=1007e9),
    "intermediate-step-1431k-3T": Position(step=1_431_000, tokens=3e12),
    "TinyLlama-1.1B-intermediate-step-480k-1T": Position(step=480_000, tokens=1e12),
    "10B": Position(tokens=10e9),
    "1.5T": Position(tokens=1.5e12),
    "10k": Position(step=10_000),
    "20B-tokens": Position(tokens=20e9),
    "chck_10M": Position(tokens=10e6),
    "stage1-step140000-tokens294B": Position(1, 140_000, 294e9),
    "stage1-step-40000": Position(1, 40_000),
    "CrystalCoder_phase1_checkpoint_055500": Position(1, 55_500),
    "mdl_phase2_step_1000": Position(2, 1000),
    "stage2-ingredient3-step11931-tokens50B": Position(2, 11_931, 50e9, branch=3),
    "base_0020000": Position(step=20_000, word="base"),
    "mid_1_0001000": Position(step=1000, word="mid_1"),
    "ext1000": Position(step=1000, word="ext"),
    "decay100": Position(step=100, word="decay"),
    "anneal-50B": Position(tokens=50e9, word="anneal"),
    "longctx-step50": Position(step=50, word="longctx"),
    "extension_step0000500": Position(step=500, word="extension"),
    "lc-4k-to-32k-step-4000": Position(step=4000, word="lc-4k-to-32k"),
    "sft/checkpoint-100": Position(step=100, word="sft"),
    "step100-SFT": Position(step=100, word="sft"),
    "sft-seed-1-step100": Position(step=100, word="sft", seed="1"),
    "multiberts-seed_0-step_20k": Position(step=20_000, seed="0"),
    "step69369-seed-default": Position(step=69_369, seed="default"),
    "step6250-seed-small-aux-2": Position(step=6250, seed="small-aux-2"),
    "run2/step100": Position(step=100, seed="run2"),
    "fold0_epoch3.ckpt": Position(step=3, seed="fold0"),
    "tmp-checkpoint-1500": Position(),
    "checkpoint-1500.tmp": Position(),
    ".cache/step100": Position(),
    "llama-base-7b": Position(word="base"),
    "sft-7B": Position(word="sft"),
    "temp-0.7-step100": Position(step=100),
    "main": Position(),
    "mid_4_final": Position(word="mid_4"),
    "model-00001-of-00002": Position(),
    "stepping-stone": Position(),
    "v2": Position(),
}


@lru_cache(maxsize=16_384)
def position(name: str) -> Position:
    """Return what a checkpoint's name states."""
    if len(name) > _LONGEST or is_being_written(name):
        return Position()
    name = _SUFFIX.sub("", name)
    matches = {field: _first(patterns, name) for field, patterns in _PATTERNS.items()}
    stated = {field: None if m is None else _value(m) for field, m in matches.items()}
    if stated["tokens"] is None and (m := _COUNTED_TOKENS.search(name)):
        stated["tokens"] = _value(m)
    if m := matches["save"]:
        _count(m, stated)
    if m := _BARE_NUMBER.fullmatch(name.rpartition("/")[2]):
        _count(m, stated)
    starts = [m.start() for m in matches.values() if m is not None]
    seed, word = _seed(name, starts), ""
    if m := _WORD.search(name):
        end = _END_OF_STAGE.search(name, m.end())
        word = name[m.start() : end.start()] if end else m[0]
        if after := [start for start in starts if start >= m.end()]:
            word = name[m.start() : min(after)]
        elif (
            not starts
            and (count := _COUNT_OF_WORD.match(name, m.end()))
            and (not count[2] or _HAS_TOKENS.match(word))
        ):
            _count(count, stated)
            word = name[m.start() : count.start(1)]
    time = stated["epoch"] if stated["step"] is None else stated["step"]
    is_whole = time is not None and time == round(time)
    return Position(
        _whole(stated["stage"], MOST_STAGES),
        _whole(time, 2**63) if is_whole else None,
        stated["tokens"],
        LAST_BRANCH if _SOUPED.search(name) else _whole(stated["branch"], 2**31),
        _PARALLEL.split(word)[0].strip("-_=/ ").lower(),
        seed,
        None if stated["step"] is None else _whole(stated["epoch"], 2**31),
        None if is_whole else time,
    )


def is_being_written(name: str) -> bool:
    """Return whether a name says that what it names is hidden, or not finished."""
    return any(_BEING_WRITTEN.fullmatch(part) for part in name[:_LONGEST].split("/"))


def unplaced(name: str) -> str | None:
    """Return `final` or `best` for a name without a step that says only this of itself."""
    if len(name) > _LONGEST:
        return None
    last = _SUFFIX.sub("", name).rpartition("/")[2]
    kinds = (kind for kind, pattern in _UNPLACED.items() if pattern.fullmatch(last))
    return None if position(name).is_known else next(kinds, None)


def _seed(name: str, starts: list[int]) -> str:
    """Return the name of one of several runs: up to what else is stated, or a folder's end."""
    match = _PARALLEL.search(name)
    if match is None:
        return ""
    end = name.find("/", match.end())
    ends = [start for start in (*starts, end) if start > match.end()]
    return name[match.end() : min(ends, default=len(name))].strip("-_=/ .")


def _count(match: re.Match[str], stated: dict[str, float | None]) -> None:
    """Take a number that no word says the meaning of, if none is stated: steps, or tokens by its unit."""
    what = "tokens" if match[2] and match[2].lower() in _UNITS_OF_TOKENS else "step"
    if stated[what] is None and (what == "tokens" or stated["epoch"] is None):
        stated[what] = _value(match)


def _value(match: re.Match[str]) -> float:
    return float(match[1]) * _SCALE[match[2].lower()]


def _whole(value: float | None, limit: int) -> int | None:
    """Return a whole number, or None where the column that it goes to could not hold it."""
    return None if value is None or value >= limit else round(value)


def _first(patterns: tuple[re.Pattern[str], ...], name: str) -> re.Match[str] | None:
    return next((match for pattern in patterns if (match := pattern.search(name))), None)
