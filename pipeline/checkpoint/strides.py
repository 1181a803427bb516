"""How the elements of a tensor lie in its storage, by its shape and its strides."""

from __future__ import annotations

import math

from pipeline.checkpoint.pickles import TensorRecord


def element_span(record: TensorRecord) -> int:
    """Return how many elements lie between a tensor's first and its last, both included."""
    if 0 in record.shape:
        return 0
    steps = zip(record.shape, record.strides, strict=True)
    return 1 + sum((length - 1) * stride for length, stride in steps)


def extents(record: TensorRecord, most: int) -> list[tuple[int, int]] | None:
    """Return (first element, offset) of each extent of a tensor with gaps or repetitions.

    Offsets count elements from the tensor's first. None if extents would be single elements, or
    more than `most`.
    """
    length, dimension = 1, len(record.shape)
    while dimension and record.strides[dimension - 1] == length:
        dimension -= 1
        length *= record.shape[dimension]
    count = math.prod(record.shape[:dimension])
    if length == 1 or count > most:
        return None
    offsets = [0]
    for size, stride in zip(record.shape[:dimension], record.strides[:dimension], strict=True):
        offsets = [offset + n * stride for offset in offsets for n in range(size)]
    return [(number * length, offset) for number, offset in enumerate(offsets)]


def storage_order(record: TensorRecord) -> tuple[int, ...] | None:
    """Return the dimensions by descending stride if the elements fill their extent, else None.

    A transposed tensor is one whose elements lie in another order; one with gaps or repetitions
    (a slice, an expanded tensor) has no order.
    """
    if 0 in record.shape:
        return ()
    dimensions = [d for d, length in enumerate(record.shape) if length > 1]
    order = sorted(dimensions, key=lambda d: -record.strides[d])
    expected = 1
    for dimension in reversed(order):
        if record.strides[dimension] != expected:
            return None
        expected *= record.shape[dimension]
    return tuple(order)
