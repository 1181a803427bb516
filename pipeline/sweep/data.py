"""What the networks learn: data that packages ship, so that nothing is downloaded.

Digits: scikit-learn's 1,797 images of 8 × 8 pixels. Text: the reference of the Python language as `pydoc`
shows it, `pydoc_data.topics`: half a megabyte of English prose that lies on every machine with CPython
(PSF licence); a token is a byte. It differs from one version of Python to another, as the digest says.

Both are split the same way for every seed. N = examples, T = tokens of a sequence.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pipeline.errors import PackageMissing

VOCABULARY = 256
CONTEXT = 64
"""Tokens of a sequence."""
SIDE = 8
"""Pixels."""
DIGITS = 10

_SPLIT_SEED = 0
_HELD_OUT = 0.2
_HELD_OUT_TEXT = 0.1
"""The end of the text, as neighbouring sequences have words in common."""
_MEASURED_SEQUENCES = 128
"""8,192 bytes. The standard error of the mean loss is some 0.02; all of them would take as long as the training."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Inputs, and what is to be said of them."""

    inputs: Tensor
    """(N, 1, 8, 8) float32 images, mean 0 and variance 1; or (N, T) int64 tokens."""
    targets: Tensor
    """(N,) int64 digits; or (N, T) int64, the tokens one later."""

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, which: Tensor | slice) -> Examples:
        """Return some of them, by number."""
        return Examples(self.inputs[which], self.targets[which])

    def to(self, device: str) -> Examples:
        """Return them in the memory of a device."""
        return Examples(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True, slots=True)
class Data:
    """What one network learns, and is measured by."""

    name: str
    digest: str
    """SHA-256 of the values of all examples, shortened: the data are the same where it is."""
    train: Examples
    validation: Examples
    measured: int
    """How many of each are evaluated at a checkpoint: the first."""

    def to(self, device: str) -> Data:
        """Return them in the memory of a device."""
        train, validation = self.train.to(device), self.validation.to(device)
        return Data(self.name, self.digest, train, validation, self.measured)


def data_of(network: str) -> Data:
    """Return what a network learns, in the main memory.

    Raises:
        PackageMissing: scikit-learn is not installed, and it learns digits.
    """
    return _text() if network == "lm" else _digits()


def order(count: int, batch: int, seed: int, step: int) -> Tensor:
    """Return the numbers of the examples of one step: all in random order, then all in another.

    A function of the step alone, so that a training goes on anywhere.
    """
    first = step * batch
    epochs = range(first // count, (first + batch - 1) // count + 1)
    endless = torch.cat([_shuffled(count, seed, epoch) for epoch in epochs])
    start = first - epochs[0] * count
    return endless[start : start + batch]


def _shuffled(count: int, seed: int, epoch: int) -> Tensor:
    text = f"{seed} {epoch}".encode()
    number = int.from_bytes(hashlib.sha256(text).digest()[:8], "little", signed=True)
    return torch.randperm(count, generator=torch.Generator().manual_seed(number))


@cache
def _digits() -> Data:
    try:
        from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise PackageMissing(
            "the images of digits are scikit-learn's, which is not installed",
            "pip install 'hallmarks[sweep]'; network = lm does without",
        ) from None
    pixels, digits = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    mixed = torch.randperm(len(digits), generator=generator)
    images = torch.from_numpy(pixels).float()[mixed].reshape(-1, 1, SIDE, SIDE)
    examples = Examples(images, torch.from_numpy(digits).long()[mixed])
    digest = _digest(images, examples.targets)
    held_out = round(_HELD_OUT * len(examples))
    mean, deviation = images[held_out:].mean(), images[held_out:].std()
    examples = Examples((images - mean) / deviation, examples.targets)
    validation, train = examples.take(slice(held_out)), examples.take(slice(held_out, None))
    return Data("digits", digest, train, validation, measured=held_out)


@cache
def _text() -> Data:
    text = reference_text()
    sequences = len(text) // (CONTEXT + 1)
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    tokens = tokens[: sequences * (CONTEXT + 1)].reshape(sequences, CONTEXT + 1)
    examples = Examples(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    learned = sequences - round(_HELD_OUT_TEXT * sequences)
    train, validation = examples.take(slice(learned)), examples.take(slice(learned, None))
    return Data("text", _digest(tokens), train, validation, _MEASURED_SEQUENCES)


def reference_text() -> bytes:
    """Return the reference of the Python language."""
    from pydoc_data import topics

    return "\n".join(topics.topics.values()).encode()


def _digest(*values: Tensor) -> str:
    sha = hashlib.sha256()
    for each in values:
        sha.update(each.numpy().tobytes())
    return sha.hexdigest()[:16]
