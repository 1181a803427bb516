"""Which tensors have rows that figures are made of, and where these lie among their elements."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.planning.align import AlignedTensor
from pipeline.statistics.rows import RowTable

_COMPONENTS = frozenset({"embed", "position", "unembed"})


def row_tables(tensors: Sequence[AlignedTensor]) -> dict[int, RowTable]:
    """Return the tables among tensors, by number: embeddings and output heads, in one part.

    A row is what one token, position or class has: an index of the first dimension, of the second in a head
    whose shape is that of an embedding transposed.
    """
    embeddings = {
        (tensor.role.stack, tensor.shape) for tensor in tensors if tensor.role.component == "embed"
    }
    tables: dict[int, RowTable] = {}
    for number, tensor in enumerate(tensors):
        role, shape = tensor.role, tensor.shape
        if role.component not in _COMPONENTS or role.kind != "weight" or len(tensor.parts) > 1:
            continue
        if len(shape) < 2:
            continue
        axis = 0
        while shape[axis] == 1 and len(shape) - axis > 2:
            axis += 1
        if role.component == "unembed" and (role.stack, shape) not in embeddings:
            axis += (role.stack, shape[::-1]) in embeddings
        order = tensor.order or tuple(range(len(shape)))
        run = math.prod(shape[d] for d in order[order.index(axis) + 1 :])
        if tensor.ranks > 1 and axis > 0:
            continue  # of which ranks divide the rows: no run mod rows
        tables[number] = RowTable(shape[axis], run // tensor.ranks)
    return tables
