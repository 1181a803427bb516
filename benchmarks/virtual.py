"""Pythia's checkpoints as they would be served, at full size, from a few hundred megabytes of memory.

Every tensor at checkpoint k holds the values of one row of `Blocks`, round(a_k A + b_k B) in float16, begun at a
place of its own and again from the start where the row ends. So what is stored is known, and the true Gram matrix
of any part of any tensor, of the stored values, is a sum of products of pieces of the rows, made in float64.

K = checkpoints. Places and lengths are in elements.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = (0, *(1 << n for n in range(10)), *range(1000, 143_001, 1000))
"""Pythia's revisions."""
LENGTH = 1 << 20
"""Elements of a row: matrices of both networks are whole multiples of it, or nearly."""
UNIT = 1024
"""Places are multiples of it, so that sums of whole pieces serve all matrices."""
_SLACK = 1 << 16  # beyond the end the row is repeated: a short read is one view
_PIECE = 64  # units multiplied at once

Interval = tuple[int, int]


@dataclass(frozen=True)
class Network:
    """A network of Pythia's."""

    name: str
    layers: int
    width: int
    heads: int
    vocabulary: int
    shards: int

    @property
    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox",
            "hidden_size": self.width, "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers, "vocab_size": self.vocabulary,
            "intermediate_size": 4 * self.width, "torch_dtype": "float16",
        }  # fmt: skip


NETWORKS = {
    "410m": Network("EleutherAI/pythia-410m", 24, 1024, 16, 50_304, 1),
    "12b": Network("EleutherAI/pythia-12b", 36, 5120, 40, 50_688, 3),
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of every checkpoint."""

    name: str
    shape: tuple[int, ...]
    first: int
    """Where in a row it begins."""
    layer: int | None = None
    buffer: str = ""
    """Format of what is no weight: zeros."""

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.numel * (1 if self.buffer == "U8" else 2)

    def parts(self, network: Network) -> dict[str, list[Interval]]:
        """Return the weights' intervals by the name of the part that they belong to."""
        if self.buffer:
            return {}
        if "query_key_value" not in self.name:
            return {self.name: [(0, self.numel)]}
        third = self.numel // network.heads // 3  # of each head: queries, keys, values
        return {
            f"{self.name}[{label}]": [
                ((3 * head + n) * third, (3 * head + n + 1) * third)
                for head in range(network.heads)
            ]
            for n, label in enumerate("qkv")
        }


def tensors(network: Network) -> list[Tensor]:
    """Return a checkpoint's tensors, buffers included, each begun at another place."""
    width = network.width
    shapes: list[tuple[str, tuple[int, ...], int | None, str]] = []
    shapes.append(("gpt_neox.embed_in.weight", (network.vocabulary, width), None, ""))
    for layer in range(network.layers):
        prefix = f"gpt_neox.layers.{layer}."
        named: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (width,), "input_layernorm.bias": (width,),
            "post_attention_layernorm.weight": (width,), "post_attention_layernorm.bias": (width,),
            "attention.query_key_value.weight": (3 * width, width),
            "attention.query_key_value.bias": (3 * width,),
            "attention.dense.weight": (width, width), "attention.dense.bias": (width,),
            "mlp.dense_h_to_4h.weight": (4 * width, width), "mlp.dense_h_to_4h.bias": (4 * width,),
            "mlp.dense_4h_to_h.weight": (width, 4 * width), "mlp.dense_4h_to_h.bias": (width,),
        }  # fmt: skip
        shapes += [(prefix + name, shape, layer, "") for name, shape in named.items()]
        shapes.append((prefix + "attention.bias", (1, 1, 2048, 2048), layer, "U8"))
        shapes.append((prefix + "attention.masked_bias", (), layer, "F16"))
    shapes += [(f"gpt_neox.final_layer_norm.{x}", (width,), None, "") for x in ("weight", "bias")]
    shapes.append(("embed_out.weight", (network.vocabulary, width), None, ""))
    places = np.random.default_rng(1).integers(0, LENGTH // UNIT, len(shapes)) * UNIT
    return [
        Tensor(name, shape, int(first), layer, buffer)
        for (name, shape, layer, buffer), first in zip(shapes, places, strict=True)
    ]


class Blocks:
    """What the checkpoints of some steps hold."""

    def __init__(self, steps: Sequence[int]) -> None:
        one, other = 0.02 * np.random.default_rng(0).standard_normal((2, LENGTH))
        # an arc: early checkpoints are close to each other, and every step is beyond rounding
        angles = 1.2 * (np.array(steps) / STEPS[-1]) ** 0.3
        self.rows = np.empty((len(steps), LENGTH + _SLACK), np.float16)
        for row, angle in zip(self.rows, angles, strict=True):
            row[:LENGTH] = np.cos(angle) * one + np.sin(angle) * other
            row[LENGTH:] = row[:_SLACK]

    @cached_property
    def _sums(self) -> NDArray[np.float64]:
        """(units + 1, K, K) products of all elements before each unit."""
        count, units = len(self.rows), LENGTH // UNIT
        sums = np.zeros((units + 1, count, count))
        for start in range(0, units, _PIECE):
            piece = self.rows[:, start * UNIT : (start + _PIECE) * UNIT].astype(np.float64)
            piece = piece.reshape(count, _PIECE, UNIT).transpose(1, 0, 2)
            np.matmul(piece, piece.transpose(0, 2, 1), out=sums[start + 1 : start + _PIECE + 1])
        return np.cumsum(sums, axis=0, out=sums)

    def gram(self, first: int, intervals: Iterable[Interval]) -> NDArray[np.float64]:
        """Return (K, K) products of the stored values of intervals of a tensor begun at `first`."""
        total = np.zeros((len(self.rows), len(self.rows)))
        for start, stop in intervals:
            if (stop - start) % UNIT or (first + start) % UNIT:
                columns = np.arange(first + start, first + stop) % LENGTH
                values = self.rows[:, columns].astype(np.float64)
                total += values @ values.T
            else:
                total += self._before(first + stop) - self._before(first + start)
        return total

    def _before(self, place: int) -> NDArray[np.float64]:
        rounds, rest = divmod(place, LENGTH)
        return rounds * self._sums[-1] + self._sums[rest // UNIT]


class Shard:
    """What is in one file of every checkpoint."""

    def __init__(self, held: Sequence[Tensor]) -> None:
        self.tensors = list(held)
        entries, stop = {}, 0
        for tensor in held:
            start, stop = stop, stop + tensor.num_bytes
            entries[tensor.name] = {
                "dtype": tensor.buffer or "F16",
                "shape": tensor.shape,
                "data_offsets": [start, stop],
            }
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text
        sizes = [len(self.header), *(tensor.num_bytes for tensor in held)]
        self.bounds: list[int] = np.cumsum(sizes).tolist()
        """Where the tensors begin, and the end."""


class File:
    """One file of one checkpoint, made as it is read."""

    def __init__(self, shard: Shard, row: NDArray[np.float16], what: str) -> None:
        self._shard, self._row = shard, row.view(np.uint8).data
        self.size = shard.bounds[-1]
        self.sha256 = hashlib.sha256(what.encode()).hexdigest()
        """Of what it is, not of its 3 to 10 gigabytes."""

    def read(self, start: int, stop: int) -> bytes | memoryview:
        found = list(self._views(start, min(stop, self.size)))
        return found[0] if len(found) == 1 else b"".join(found)

    def _views(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        shard = self._shard
        if start < len(shard.header):
            yield shard.header[start:stop]
            start = len(shard.header)
        while start < stop:
            number = bisect_right(shard.bounds, start) - 1
            tensor, end = shard.tensors[number], min(stop, shard.bounds[number + 1])
            if tensor.buffer:
                yield bytes(end - start)
                start = end
                continue
            while start < end:
                place = 2 * (tensor.first + (start - shard.bounds[number]) // 2) % (2 * LENGTH)
                odd = (start - shard.bounds[number]) % 2
                piece = self._row[place + odd : place + odd + end - start]
                yield piece
                start += len(piece)


def shards(network: Network, held: Sequence[Tensor]) -> dict[str, Shard]:
    """Return a checkpoint's files of weights, tensors in order, about equally large."""
    if network.shards == 1:
        return {"model.safetensors": Shard(held)}
    whole, before = sum(tensor.num_bytes for tensor in held), 0
    divided: list[list[Tensor]] = [[] for _ in range(network.shards)]
    for tensor in held:
        divided[before * network.shards // whole].append(tensor)
        before += tensor.num_bytes
    count = network.shards
    return {
        f"model-{number:05d}-of-{count:05d}.safetensors": Shard(each)
        for number, each in enumerate(divided, 1)
    }
