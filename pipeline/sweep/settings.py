"""Settings of one training: what there is to set, what is allowed, and what is meant by it.

A table says it once. Configurations are checked against it, and what users read is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

from pipeline.errors import RequestError, quoted

HEAD_WIDTH = 16
"""Of an attention head; the width of a network with attention is a multiple of it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one training; `settings_of` makes them, with a value for everything.

    Of `steps` and `epochs` one is None: how long the training is, in optimizer steps or in passes
    over the data.
    """

    network: str
    width: int
    depth: int
    optimizer: str
    learning_rate: float
    momentum: float
    weight_decay: float
    batch_size: int
    schedule: str
    warmup: float
    label_smoothing: float
    sam_rho: float
    steps: int | None
    epochs: float | None
    checkpoints: int
    spacing: str
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """Return the settings by name, without the length that was not stated."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}"

    def admits(self, value: object) -> bool:
        """Say whether it is one of them."""
        return isinstance(value, str) and value in self.words

    def plain(self, value: Any) -> Any:
        """Return an admitted value as it is kept."""
        return value


@dataclass(frozen=True, slots=True)
class Range:
    """A number between two others; `above` and `below` leave their end out."""

    least: int
    most: int
    whole: bool = False
    above: bool = False
    below: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        first = f"above {self.least:,}" if self.above else f"from {self.least:,}"
        return f"{kind} {first} {'to below' if self.below else 'to'} {self.most:,}"

    def admits(self, value: object) -> bool:
        """Say whether it is such a number; truth values are none."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        left_out = ({self.least} if self.above else set()) | ({self.most} if self.below else set())
        return self.least <= value <= self.most and value not in left_out  # never so for nan

    def plain(self, value: Any) -> Any:
        """Return an admitted value as it is kept: 1 is 1.0 where fractions are allowed."""
        return value if self.whole else float(value)


@dataclass(frozen=True, slots=True)
class Key:
    """What one setting may be, and means."""

    allowed: Choice | Range
    default: Any
    """A value; or one for each word of another key, as (that key, values)."""
    meaning: str

    def default_with(self, stated: Mapping[str, Any]) -> Any:
        """Return the default beside what else is stated."""
        match self.default:
            case (key, values):
                return values[stated.get(key, KEYS[key].default)]
            case value:
                return value

    @property
    def default_text(self) -> str:
        """The default in words."""
        match self.default:
            case (_, values):
                return ", ".join(f"{value:g} with {word}" for word, value in values.items())
            case None:
                return "none"
            case value:
                return str(value)


KEYS: Mapping[str, Key] = {
    "network": Key(
        Choice(("mlp", "cnn", "vit", "lm")),
        "mlp",
        "multi-layer perceptron, residual convolutional network with batch norm and vision transformer,"
        " which learn scikit-learn's digits; language model, which learns text of the standard library",
    ),
    "width": Key(
        Range(1, 4096, whole=True),
        ("network", {"mlp": 64, "cnn": 16, "vit": 32, "lm": 32}),
        "units of a hidden layer, channels of the first convolution, or length of a token's state,"
        f" which is a multiple of {HEAD_WIDTH}",
    ),
    "depth": Key(
        Range(1, 256, whole=True),
        ("network", {"mlp": 3, "cnn": 2, "vit": 3, "lm": 3}),
        "hidden layers, residual blocks, or layers of a transformer",
    ),
    "optimizer": Key(
        Choice(("sgd", "adamw", "muon")),
        "sgd",
        "torch.optim's SGD, AdamW, or Muon for the matrices within a network and AdamW for the rest",
    ),
    "learning_rate": Key(
        Range(0, 100, above=True),
        ("optimizer", {"sgd": 0.05, "adamw": 0.003, "muon": 0.003}),
        "the highest of the training; Muon's is on AdamW's scale (match_rms_adamw)",
    ),
    "momentum": Key(
        Range(0, 1, below=True),
        0.9,
        "share of the last update (SGD) or of the mean gradient (Muon; AdamW's beta1) that is kept",
    ),
    "weight_decay": Key(
        Range(0, 100),
        ("optimizer", {"sgd": 5e-4, "adamw": 0.1, "muon": 0.1}),
        "times the weights: added to the gradient by SGD, to the update by AdamW and Muon; every"
        " weight decays, norms and biases too",
    ),
    "batch_size": Key(
        Range(1, 65_536, whole=True),
        ("network", {"mlp": 64, "cnn": 64, "vit": 64, "lm": 16}),
        "examples of a step: images, or sequences",
    ),
    "schedule": Key(
        Choice(("constant", "cosine", "step", "wsd")),
        "cosine",
        "learning rate after the warmup: constant; a half cosine down to 0; a tenth after 1/2 and a"
        " hundredth after 3/4 of the steps; constant and over the last fifth linearly down to 0",
    ),
    "warmup": Key(
        Range(0, 1, below=True), 0.05, "share of the steps in which the learning rate rises from 0"
    ),
    "label_smoothing": Key(
        Range(0, 1, below=True), 0.0, "probability that is spread evenly over all classes"
    ),
    "sam_rho": Key(
        Range(0, 100),
        0.0,
        "sharpness-aware minimization: how far uphill the gradient is taken; 0 is without",
    ),
    "steps": Key(
        Range(1, 10_000_000, whole=True),
        None,
        "optimizer steps of the training, unless `epochs` says",
    ),
    "epochs": Key(
        Range(0, 100_000, above=True),
        ("network", {"mlp": 30.0, "cnn": 20.0, "vit": 20.0, "lm": 1.0}),
        "passes over the data, unless `steps` says",
    ),
    "checkpoints": Key(
        Range(2, 10_000, whole=True), 40, "how many are recorded, besides the initialization"
    ),
    "spacing": Key(
        Choice(("linear", "logarithmic")),
        "linear",
        "whether checkpoints are evenly spaced in steps or in their logarithm",
    ),
    "seed": Key(
        Range(0, 2**31 - 1, whole=True), 0, "of the initialization and the order of the data"
    ),
}
"""Default lengths: a training takes 2 s (mlp), 5 s (cnn), 6 s (vit), 13 s (lm) of one core with AdamW, its
41 checkpoints included, and ends where the loss no longer falls much: accuracies of 0.97, 1.00, 0.94 and 0.44
on data held out."""


def mistake(key: str, value: object) -> str | None:
    """Return what is wrong with one setting by itself, or None."""
    if key not in KEYS:
        near = get_close_matches(key, KEYS, 1)
        meant = f" (is {near[0]} meant?)" if near else ""
        return f"{quoted(key)}: no such setting{meant}; there are {', '.join(KEYS)}"
    allowed = KEYS[key].allowed
    return None if allowed.admits(value) else f"{key}: expected {allowed}, found {quoted(value)}"


def conflicts(stated: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with settings together, each of which is right by itself."""
    wrong: list[str] = []
    if "steps" in stated and "epochs" in stated:
        wrong.append("steps, epochs: expected one of them; both say how long the training is")
    network = stated.get("network", KEYS["network"].default)
    width = stated.get("width", HEAD_WIDTH)
    if network in ("vit", "lm") and width % HEAD_WIDTH:
        wrong.append(
            f"width: expected a multiple of {HEAD_WIDTH}, as network = {network} has attention heads"
            f" of that width, found {width}"
        )
    if network == "cnn" and stated.get("optimizer") == "muon":
        wrong.append(
            "optimizer: expected sgd or adamw, as network = cnn has no matrices but its last, which"
            " Muon could train, found muon"
        )
    return wrong


def mistakes(stated: Mapping[str, Any]) -> list[str]:
    """Return everything that is wrong with settings, each with its key and what is allowed."""
    alone = {key: wrong for key, value in stated.items() if (wrong := mistake(key, value))}
    right = {key: value for key, value in stated.items() if key not in alone}
    return [*alone.values(), *conflicts(right)]


def settings_of(stated: Mapping[str, Any]) -> Settings:
    """Return the settings of a training of which some are stated.

    Raises:
        RequestError: something is wrong with them; all of it is named.
    """
    if wrong := mistakes(stated):
        raise RequestError("settings: " + "; ".join(wrong))
    values: dict[str, Any] = {
        key: each.allowed.plain(stated[key]) if key in stated else each.default_with(stated)
        for key, each in KEYS.items()
    }
    if "steps" in stated:
        values["epochs"] = None
    return Settings(**values)
