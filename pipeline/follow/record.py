"""A record: what one checkpoint was, and where its sums lie, as the text of its file says."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.checkpoint.names import Position
from pipeline.checkpoint.parts import Part
from pipeline.checkpoint.roles import Role
from pipeline.checkpoint.shards import weight_suffix
from pipeline.planning.align import AlignedTensor, LeftOutTensor
from pipeline.planning.network import Network
from pipeline.planning.plan import Plan
from pipeline.planning.ties import Twin
from pipeline.reduce.groups import order_of
from pipeline.sources.base import Candidate, File
from pipeline.statistics.parts import PartKey, Sums
from pipeline.store.records import Stored


@dataclass(frozen=True, slots=True)
class Record:
    """One checkpoint that was read."""

    stored: Stored
    candidate: Candidate
    """As it was listed when it was read."""
    files: tuple[File, ...]
    """Those that were read."""
    listed: frozenset[str]
    """Paths of all files that looked like weights."""
    bytes: int
    dtype: str
    """The format that most of its weights are stored in."""
    network: Network
    """What roles and parts of its tensors were made from."""
    tensors: Mapping[str, AlignedTensor]
    """By name; all of them of one checkpoint."""
    left_out: Mapping[str, LeftOutTensor]
    rows: Mapping[tuple[str, int], int]
    """Where the sums of each part lie, by the tensor's name and the part's number in it."""

    def is_of(self, files: Sequence[File]) -> bool:
        """Return whether it was made from files that are listed now, as far as these still are there.

        A trainer that keeps the last few removes a checkpoint file by file.
        """
        known = {file.path: (file.size, file.identity) for file in self.files}
        return all(
            known[file.path] == (file.size, file.identity)
            if file.path in known
            else file.path in self.listed or not weight_suffix(file.path)
            for file in files
        )


def version_of(files: Iterable[File]) -> str:
    """Return what tells the files of a checkpoint from those that may come in their place."""
    told = sorted((file.path, file.size, file.identity) for file in files)
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def in_order(plan: Plan, stacks: Iterable[Sums]) -> Sums:
    """Return the sums of all parts of a plan as one, neighbours in a layer side by side.

    Args:
        stacks: each part in one of them.
    """
    held = list(stacks)
    keys = [key for stack in held for key in stack.keys]
    order = sorted(
        range(len(keys)), key=lambda row: order_of(plan.tensors[keys[row].tensor], keys[row].part)
    )
    arrays = {
        spec.name: np.concatenate([stack.arrays[spec.name] for stack in held])[order]
        for spec in plan.specs
    }
    devices = sorted({stack.device for stack in held})
    return Sums(tuple(keys[row] for row in order), arrays, " + ".join(devices))


def text_of(
    plan: Plan, candidate: Candidate, listed: Iterable[str], keys: Sequence[PartKey]
) -> str:
    """Return what the record of a plan of one checkpoint says of it.

    Args:
        listed: paths of the checkpoint's files.
        keys: what the rows of its sums are of.
    """
    (planned,) = plan.checkpoints
    return json.dumps(
        {
            "name": candidate.name,
            "commit": candidate.commit,
            "path": candidate.path,
            "is_file": candidate.is_file,
            "stated": candidate.stated and asdict(candidate.stated),
            "files": [(f.path, f.where, f.size, f.identity) for f in plan.files],
            "listed": sorted(path for path in listed if weight_suffix(path)),
            "bytes": planned.bytes,
            "dtype": planned.dtype,
            "network": asdict(plan.network),
            "tensors": [_of_tensor(tensor) for tensor in plan.tensors],
            "left_out": [asdict(tensor) for tensor in plan.left_out_tensors],
            "rows": [(key.tensor, key.part) for key in keys],
        }
    )


def _of_tensor(tensor: AlignedTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": tensor.shape,
        "role": asdict(tensor.role),
        "parts": [asdict(part) for part in tensor.parts],
        "dtype": tensor.dtypes[0],
        "file": tensor.files[0],
        "start": tensor.starts[0],
        "twin": tensor.twin and {"name": tensor.twin.name, "stated": tensor.twin.stated},
    }


def parsed(stored: Stored) -> Record | None:
    """Return the record that a text tells of; None: it is of another version, or damaged."""
    try:
        about = json.loads(stored.text)
        candidate = Candidate(
            str(about["name"]),
            about["commit"],
            str(about["path"]),
            bool(about["is_file"]),
            stated=about["stated"] and Position(**about["stated"]),
        )
        tensors = [_tensor(**each) for each in about["tensors"]]
        left_out = [_left_out(**each) for each in about["left_out"]]
        return Record(
            stored,
            candidate,
            tuple(File(candidate, *entry) for entry in about["files"]),
            frozenset(map(str, about["listed"])),
            int(about["bytes"]),
            str(about["dtype"]),
            _network(**about["network"]),
            {tensor.name: tensor for tensor in tensors},
            {tensor.name: tensor for tensor in left_out},
            {(tensors[t].name, int(part)): row for row, (t, part) in enumerate(about["rows"])},
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _network(
    shapes: dict[str, list[int]], configs: list[str], stated: str, by_head: bool
) -> Network:
    by_name = {name: tuple(shape) for name, shape in shapes.items()}
    return Network(by_name, tuple(configs), stated, by_head)


def _tensor(
    name: str,
    shape: list[int],
    role: dict[str, Any],
    parts: list[dict[str, Any]],
    dtype: str,
    file: int,
    start: int,
    twin: dict[str, Any] | None,
) -> AlignedTensor:
    return AlignedTensor(
        name,
        tuple(shape),
        math.prod(shape),
        Role(**role),
        tuple(Part(**part) for part in parts),
        (dtype,),
        (file,),
        (start,),
        twin=None if twin is None else Twin(str(twin["name"]), bool(twin["stated"])),
    )


def _left_out(
    name: str,
    shape: list[int],
    dtype: str,
    role: dict[str, Any],
    reason: str,
    kind: str | None,
    k: int | None,
) -> LeftOutTensor:
    return LeftOutTensor(name, tuple(shape), dtype, Role(**role), reason, kind, k)
