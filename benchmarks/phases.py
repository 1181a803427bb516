"""Are the changes of a training seen where they are, and none where there are none?

    PYTHONPATH=. python benchmarks/phases.py [--walks 14400]

Small networks are trained on the text of Python's own library, with changes of the rate, the data and
the optimizer at known steps; their increments are judged as `analyze` judges them, in the whole model
and in every tensor of 1,000 weights or more. Then random walks, in which nothing happens.
"""

from __future__ import annotations

import argparse
import math
import pydoc_data.topics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from benchmarks.markdown import table
from pipeline.numerics.decay import decay_starts
from pipeline.numerics.phases import jumps
from pipeline.numerics.trajectory import Trajectory
from tests import walks
from tests.reference import increment_gram, labels

LETTERS = 96
CONTEXT = 32
LEAST_WEIGHTS = 1000
NEAR = 2
"""Checkpoints that a change may be off and still be the one that was made."""
Rate = Callable[[float], float]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """One training. Places are shares of the whole."""

    network: str
    optimizer: str
    happens: str
    """As the table calls it."""
    rate: Rate
    changes: tuple[float, ...] = ()
    """Where the rate, the data or the optimizer is changed."""
    data_at: float | None = None
    """English text takes the place of code."""
    permuted_at: float | None = None
    """Letters to predict are renamed."""
    reset_at: float | None = None
    """The optimizer forgets its state."""
    decay: float | None = None
    """Where a decay to the end begins."""
    checkpoints: int = 41
    every: int = 20
    rounded: bool = False
    """Stored in bf16."""


def constant(x: float) -> float:
    return min(1.0, (x + 0.001) / 0.05)


def drops(*places: tuple[float, float]) -> Rate:
    """Constant, times a factor at each place."""
    return lambda x: constant(x) * math.prod(factor for at, factor in places if x >= at)


def restarts(cycles: int) -> Rate:
    return lambda x: 0.55 + 0.45 * math.cos(math.pi * (x * cycles % 1))


def wsd(start: float, shape: Rate) -> Rate:
    """Warm-up, constant, and a decay to nothing of this shape."""
    return lambda x: constant(x) * (1 if x < start else shape((x - start) / (1 - start)))


CLEAN: dict[str, Rate] = {
    "constant rate": constant,
    "cosine": lambda x: constant(x) * (0.55 + 0.45 * math.cos(math.pi * x)),
    "linear fall": lambda x: constant(x) * (1 - x),
    "rate falls as 1/√t": lambda x: constant(x) * (1 + 20 * x) ** -0.5,
}
RATES = {("transformer", "adamw"): 2e-3, ("cnn", "adamw"): 2e-3,
         ("mlp", "adamw"): 2e-3, ("mlp", "sgd"): 0.1, ("cnn", "sgd"): 0.1}  # fmt: skip
KINDS = (
    ("transformer", "adamw"),
    ("mlp", "sgd"),
    ("cnn", "adamw"),
    ("cnn", "sgd"),
    ("mlp", "adamw"),
)


def series() -> Iterator[Series]:
    """Yield all trainings."""
    for (network, optimizer), (name, rate) in product(KINDS, CLEAN.items()):
        if name in ("constant rate", "cosine") or optimizer == "adamw":
            yield Series(network, optimizer, name, rate)
    for network, optimizer in KINDS:
        for factor, at in ((0.3, 0.4), (0.1, 0.5), (0.01, 0.6)):
            yield Series(network, optimizer, f"rate × {factor}", drops((at, factor)), (at,))
        yield Series(
            network, optimizer, "warm restarts", restarts(3), (1 / 3, 2 / 3), checkpoints=61
        )
        for shape, fall in (("linear", lambda x: 1 - x), ("1 − √", lambda x: 1 - math.sqrt(x))):
            yield Series(
                network, optimizer, f"decay at the end, {shape}", wsd(0.7, fall), decay=0.7
            )
    for network, optimizer in KINDS[:3]:
        yield Series(network, optimizer, "code → English", constant, (0.5,), data_at=0.5)
        yield Series(network, optimizer, "letters renamed", constant, (0.6,), permuted_at=0.6)
    for network in ("transformer", "cnn"):
        yield Series(network, "adamw", "state of Adam reset", constant, (0.5,), reset_at=0.5)
        yield Series(
            network, "adamw", "rate × 0.3, then × 0.3", drops((0.3, 0.3), (0.6, 0.3)), (0.3, 0.6),
            checkpoints=61,
        )  # fmt: skip
    yield Series("transformer", "adamw", "rate × 0.3", drops((0.5, 0.3)), (0.5,), rounded=True)
    yield Series(
        "transformer", "adamw", "decay at the end, linear", wsd(0.75, lambda x: 1 - x), decay=0.75,
        checkpoints=61, rounded=True,
    )  # fmt: skip


@cache
def _texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Code and English of the standard library, as letters."""
    library = Path(sysconfig.get_path("stdlib"))
    names = ("argparse.py", "ast.py", "dataclasses.py", "inspect.py", "pydoc.py", "typing.py")
    code = "".join((library / name).read_text() for name in names)
    english = "".join(pydoc_data.topics.topics.values())
    code_letters, english_letters = (
        torch.tensor([min(max(ord(c) - 31, 0), LETTERS - 1) for c in text])
        for text in (code, english)
    )
    return code_letters, english_letters


class Transformer(nn.Module):
    """One block; predicts the letter after each."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(LETTERS, width)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.block = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, LETTERS)

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        return self.head(self.block(self.embed(letters) + self.position, mask, is_causal=True))


class Cnn(nn.Module):
    """Convolutions over the letters before each, with batch normalization."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(LETTERS, width)
        self.first, self.second = (nn.Conv1d(width, width, 4) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(2))
        self.head = nn.Linear(width, LETTERS)

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        rows = self.embed(letters).swapaxes(1, 2)
        for layer, norm in zip((self.first, self.second), self.norms, strict=True):
            rows = norm(functional.relu(layer(functional.pad(rows, (3, 0)))))
        return self.head(rows.swapaxes(1, 2))


class Mlp(nn.Module):
    """Predicts the letter after each eight."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.embed = nn.Embedding(LETTERS, 16)
        self.layers = nn.Sequential(
            nn.Linear(8 * 16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, LETTERS),
        )  # fmt: skip

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        rows = self.embed(functional.pad(letters, (7, 0))).unfold(1, 8, 1)
        return self.layers(rows.flatten(2))


def trained(run: Series, seed: int) -> dict[str, Array]:
    """Return (K, P) values of every tensor."""
    torch.manual_seed(seed)
    network = {"transformer": Transformer, "cnn": Cnn, "mlp": Mlp}[run.network]()
    peak = RATES[run.network, run.optimizer]

    def fresh() -> torch.optim.Optimizer:
        if run.optimizer == "adamw":
            return torch.optim.AdamW(network.parameters(), peak, weight_decay=0.1)
        return torch.optim.SGD(network.parameters(), peak, momentum=0.9)

    optimizer = fresh()
    code, english = _texts()
    renamed = torch.randperm(LETTERS)
    saved: dict[str, list[torch.Tensor]] = {name: [] for name, _ in network.named_parameters()}
    steps = (run.checkpoints - 1) * run.every
    reset = None if run.reset_at is None else round(run.reset_at * steps)
    for step in range(steps + 1):
        if step % run.every == 0:
            for name, values in network.named_parameters():
                stored = values.detach().bfloat16() if run.rounded else values.detach().clone()
                saved[name].append(stored)
        if step == reset:
            optimizer = fresh()
        x = step / steps
        for group in optimizer.param_groups:
            group["lr"] = peak * run.rate(x)
        text = code if run.data_at is None or x < run.data_at else english
        starts = torch.randint(len(text) - CONTEXT - 1, (16,))
        letters = text[starts[:, None] + torch.arange(CONTEXT + 1)]
        targets = letters[:, 1:]
        if run.permuted_at is not None and x >= run.permuted_at:
            targets = renamed[targets]
        loss = functional.cross_entropy(network(letters[:, :-1]).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: torch.stack(values).double().flatten(1).numpy() for name, values in saved.items()}


@dataclass
class Seen:
    """What was seen in one group of weights."""

    changes: tuple[int, ...]
    decay: float
    """The checkpoint; NaN for none."""


def judged(weights: Array) -> Seen:
    """Judge the path, (K, P), as `analyze` does."""
    numbers = np.arange(float(len(weights)))
    trajectory = Trajectory.from_increments(
        increment_gram(weights)[np.newaxis], labels(weights)[np.newaxis]
    )
    changes = jumps(trajectory, numbers, numbers)
    (decay,) = decay_starts(trajectory, numbers, numbers, numbers, changes)
    return Seen(tuple(np.flatnonzero(np.nan_to_num(changes[0])).tolist()), float(decay))


@dataclass
class Tally:
    made: int = 0
    seen: int = 0
    false: tuple[int, ...] = ()
    """Checkpoints at which nothing was changed."""
    decays: int = 0
    decays_seen: int = 0
    false_decays: int = 0
    off: tuple[int, ...] = ()
    off_decay: tuple[int, ...] = ()

    def add(self, run: Series, seen: Seen) -> None:
        """Count what was seen of what was made."""
        last = run.checkpoints - 1
        left = list(seen.changes)
        for at in run.changes:
            self.made += 1
            near = [k for k in left if abs(k - at * last) <= NEAR]
            if near:
                best = min(near, key=lambda k, at=at: abs(k - at * last))
                left.remove(best)
                self.seen += 1
                self.off += (round(best - at * last),)
        self.false += tuple(left)
        decayed = not math.isnan(seen.decay)
        if run.decay is None:
            self.false_decays += decayed
        else:
            self.decays += 1
            self.decays_seen += decayed
            if decayed:
                self.off_decay += (round(seen.decay - run.decay * last),)

    def cells(self) -> Sequence[object]:
        changes = f"{self.seen} of {self.made}" if self.made else "–"
        decays = f"{self.decays_seen} of {self.decays}" if self.decays else "–"
        return [
            changes, _range(self.off), _places(self.false),
            decays, _range(self.off_decay), self.false_decays,
        ]  # fmt: skip


def _range(off: Sequence[int]) -> str:
    if not off:
        return "–"
    return "exact" if not any(off) else f"{min(off):+d}…{max(off):+d}"


def _places(checkpoints: Sequence[int]) -> str:
    said = ", ".join(map(str, sorted(set(checkpoints))))
    return f"{len(checkpoints)} (k = {said})" if checkpoints else "0"


HEADS = ["changes seen", "place", "false", "decays seen", "place", "false"]


def of_trainings() -> None:
    """Print what is seen in trained networks."""
    models: dict[str, Tally] = {}
    tensors: dict[str, Tally] = {}
    rows = []
    for seed, run in enumerate(series()):
        started = time.process_time()
        weights = trained(run, seed)
        seen = judged(np.concatenate(list(weights.values()), axis=1))
        models.setdefault(run.happens, Tally()).add(run, seen)
        large = [values for values in weights.values() if values.shape[1] >= LEAST_WEIGHTS]
        for values in large:
            tensors.setdefault(run.happens, Tally()).add(run, judged(values))
        one = Tally()
        one.add(run, seen)
        numel = sum(values.shape[1] for values in weights.values())
        stored = ", stored in bf16" if run.rounded else ""
        rows.append(
            [f"{run.network}, {run.optimizer}{stored}", run.happens, f"{numel:,}", run.checkpoints,
             *one.cells()]
        )  # fmt: skip
        print(rows[-1], f"{time.process_time() - started:.0f} s", file=sys.stderr)
    for title, tallies in (("Whole models", models), ("Tensors of 1,000 weights or more", tensors)):
        print(f"{title}\n")
        print(table(["", *HEADS], [[name, *tally.cells()] for name, tally in tallies.items()]))
    print("Each training, the whole model\n")
    print(table(["network", "", "weights", "checkpoints", *HEADS], rows))


def of_walks(number: int) -> None:
    """Print what is seen in random walks."""
    kinds = list(product((20, 40, 60, 100, 150), walks.MEMORIES, walks.LENGTHS, (100, 2000)))
    each = math.ceil(number / len(kinds))
    false: dict[tuple[int, str], list[int]] = {}
    for seed, (increments, memory, lengths, weights) in enumerate(kinds):
        for first in range(0, each, 20):
            count = min(20, each - first)
            changes, decays = walks.judged(
                count, increments, memory, lengths, weights, 1000 * seed + first
            )
            cell = false.setdefault((increments, lengths), [0, 0, 0])
            cell[0] += count
            cell[1] += int((np.nan_to_num(changes) != 0).any(axis=1).sum())
            cell[2] += int(np.isfinite(decays).sum())
    total, changed = (sum(cell[n] for cell in false.values()) for n in (0, 1))
    print(f"Random walks: {changed} of {total:,} show a change. Decays seen, of each kind:\n")
    names = list(walks.LENGTHS)
    rows = [
        [increments, *(f"{false[increments, name][2]} of {false[increments, name][0]}" for name in names)]
        for increments in sorted({increments for increments, _ in false})
    ]  # fmt: skip
    print(table(["increments", *names], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--walks", type=int, default=14_400)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    of_trainings()
    of_walks(arguments.walks)


if __name__ == "__main__":
    main()
