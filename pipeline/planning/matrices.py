"""The plan of a second read: whole matrices of some checkpoints, for their spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from pipeline.checkpoint.parts import Part
from pipeline.numerics.matrices import MOST_SIDE
from pipeline.planning.align import AlignedTensor
from pipeline.planning.blocks import width
from pipeline.planning.memory import show_size
from pipeline.planning.plan import Plan
from pipeline.planning.select import LeftOut
from pipeline.planning.tiles import TensorRange, Tile
from pipeline.statistics.matrices import Shape, matrix_bytes


class MatrixPlan(NamedTuple):
    """What the second read is, and what is left out of it."""

    plan: Plan
    """Of the chosen checkpoints: a tile for each tensor, called by its number in the run's plan."""
    checkpoints: tuple[int, ...]
    """Their numbers in the run."""
    left_out: tuple[LeftOut, ...]

    def needed(self, number: int) -> int:
        """Return the bytes that a worker takes for one of its tiles, beside blocks."""
        tensor, shapes = self.plan.tensors[number], self.plan.matrices[number]
        return matrix_bytes(shapes, len(self.checkpoints), width(tensor))

    def too_large(self, room: int) -> dict[int, LeftOut]:
        """Return the tiles that take more than so many bytes, and what is said of them."""
        sizes = {tile.index: self.needed(tile.index) for tile in self.plan.tiles}
        return {
            number: LeftOut(
                self.plan.tensors[number].name,
                f"takes {show_size(size, up=True)} of memory, and --memory leaves {show_size(room)}",
            )
            for number, size in sizes.items()
            if size > room
        }


def matrix_plan(plan: Plan) -> MatrixPlan:
    """Return how the matrices of a plan are read whole, at as many checkpoints as it asks for.

    Args:
        plan: whose ties are settled, as far as that is known.
    """
    times = [checkpoint.elapsed for checkpoint in plan.checkpoints]
    ks = chosen_checkpoints(times, plan.spectra)
    tensors, numbers, shapes, left_out = [], [], [], []
    for number, tensor in plan.counted:
        if tensor.role.kind != "weight" or sum(d > 1 for d in tensor.shape) < 2:
            continue
        of_parts = [matrix_shape(tensor, part) for part in tensor.parts]
        known = [shape for shape in of_parts if shape is not None]
        if len(known) < len(of_parts):
            left_out.append(
                LeftOut(tensor.name, "stored in an order in which its matrices do not lie")
            )
        elif max(map(min, known)) > MOST_SIDE:
            left_out.append(LeftOut(tensor.name, f"both sides are above {MOST_SIDE:,}"))
        else:
            tensors.append(_at(tensor, ks))
            numbers.append(number)
            shapes.append(tuple(known))
    return MatrixPlan(
        replace(
            plan,
            checkpoints=tuple(plan.checkpoints[k] for k in ks),
            tensors=tuple(tensors),
            tiles=tuple(
                _tile(index, number, tensor)
                for index, (number, tensor) in enumerate(zip(numbers, tensors, strict=True))
            ),
            unread=(),
            content=f"{plan.content}-{'-'.join(map(str, ks))}",
            statistics_asked=(),
            matrices=tuple(shapes),
            apart={},
        ),
        ks,
        tuple(left_out),
    )


def chosen_checkpoints(times: Sequence[float | None], most: int) -> tuple[int, ...]:
    """Return the checkpoints whose spectra are computed: the first, the last, and evenly in ln t between.

    Args:
        times: of all checkpoints, ascending; where one is unknown, evenly by number.
        most: how many; at least 2.
    """
    count = len(times)
    if count <= most:
        return tuple(range(count))
    known = [time for time in times if time is not None]
    places = np.arange(count, dtype=float)
    begin = 0
    if len(known) == count and known[-1] > 0:
        begin = next(k for k, time in enumerate(known) if time > 0)
        places = np.log(np.maximum(known, known[begin]))
    if begin:
        targets = np.linspace(places[begin], places[-1], most - 1)[:-1]
    else:
        targets = np.linspace(places[0], places[-1], most)[1:-1]
    chosen = {0, count - 1}
    for target in targets:
        left = [k for k in range(count) if k not in chosen]
        chosen.add(min(left, key=lambda k, target=target: (abs(places[k] - target), k)))
    return tuple(sorted(chosen))


def matrix_shape(tensor: AlignedTensor, part: Part) -> Shape | None:
    """Return the shape of the matrix that a part's elements are, row by row; None if they are none.

    Transposed, or with rows or columns in another order, it has the same singular values. Of a convolution the
    rows are its outputs.
    """
    shape = [tensor.shape[d] for d in tensor.order or range(len(tensor.shape))]
    numel = tensor.numel // part.period * (part.stop - part.start)
    if tensor.ranks > 1:
        return None
    if len(tensor.parts) == 1:
        if not tensor.order or tensor.order[0] == 0:
            return tensor.shape[0], numel // tensor.shape[0]
        return (numel // tensor.shape[0], tensor.shape[0]) if tensor.order[-1] == 0 else None
    if part.expert is not None and len(shape) == 3:
        return (shape[1], shape[2]) if numel == shape[1] * shape[2] else None
    columns = math.prod(shape[1:])
    if not any(edge % columns for edge in (part.period, part.start, part.stop)):
        return numel // columns, columns
    return (shape[0], numel // shape[0]) if columns % part.period == 0 else None


def _tile(index: int, number: int, tensor: AlignedTensor) -> Tile:
    return Tile(index, (TensorRange(index, 0, tensor.numel),), tensor.num_bytes, f"{number:06d}")


def _at(tensor: AlignedTensor, ks: Sequence[int]) -> AlignedTensor:
    """Return a tensor at some checkpoints."""
    places = {k: place for place, k in enumerate(ks)}
    return replace(
        tensor,
        dtypes=tuple(tensor.dtypes[k] for k in ks),
        files=tuple(tensor.files[k] for k in ks),
        starts=tuple(tensor.starts[k] for k in ks),
        scattered={places[k]: each for k, each in tensor.scattered.items() if k in places},
        scales={places[k]: each for k, each in tensor.scales.items() if k in places},
        rows=(),
        twin=None,
    )
