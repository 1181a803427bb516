"""The tensors of a network of which each rank holds a part (FSDP2), written by all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from pipeline.errors import HallmarksError, quoted

T = TypeVar("T")


class ShardedSnapshot:
    """This rank's part, copied to the host.

    Of a tensor that all ranks have whole, rank 0's is written: running means of a batch norm differ between ranks.
    What ranks tell each other goes through a group of its own, so that it never comes between the messages
    of the training.
    """

    def __init__(self) -> None:
        """Agree on the group: all ranks make a snapshot."""
        self._group: Any = distributed.new_group(backend="gloo")
        self._stager = BlockingAsyncStager()
        self._taken: Mapping[str, Any] = {}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors as they are now; when this returns they may change."""
        self._taken = self._stager.stage(dict(tensors))

    def write(self, folder: Path) -> None:
        """Write a checkpoint of torch.distributed.checkpoint together with all other ranks.

        Raises:
            HallmarksError: a rank cannot write its part.
        """
        try:
            save(
                dict(self._taken),
                storage_writer=FileSystemWriter(folder),  # with fsync
                planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True),
                process_group=self._group,
            )
        except (CheckpointException, RuntimeError) as error:
            failures = error.failures if isinstance(error, CheckpointException) else {}
            reason = next((failure[0] for failure in failures.values()), error)
            raise HallmarksError(
                f"{quoted(folder)} cannot be written by all ranks: {reason}",
                "what was recorded before is kept: resume from there",
            ) from error

    def is_in(self, folder: Path) -> bool:
        """Return whether the checkpoint that is there is the one that would be written, on all ranks."""
        stored = self._stager.stage(dict(self._taken))  # is overwritten
        try:
            load(stored, storage_reader=FileSystemReader(folder), process_group=self._group)
            same = all(
                _bits_are_equal(stored[name], taken)
                for name, taken in self._taken.items()
                if isinstance(taken, DTensor) or distributed.get_rank() == 0
            )
        except (CheckpointException, RuntimeError):
            same = False
        votes: list[Any] = [None] * distributed.get_world_size(self._group)
        distributed.all_gather_object(votes, same, group=self._group)
        return all(votes)

    def agree(self, of_rank_0: Callable[[], T]) -> T:
        """Return what rank 0 does, or raise its error, on all ranks."""
        said: list[Any] = [None]
        if distributed.get_rank() == 0:
            try:
                said = [of_rank_0()]
            except (HallmarksError, OSError) as error:
                said = [error]
        distributed.broadcast_object_list(said, src=0, group=self._group)
        if isinstance(said[0], Exception):
            raise said[0]
        return said[0]


def _bits_are_equal(one: Tensor, other: Tensor) -> bool:
    first, second = (
        (each.to_local() if isinstance(each, DTensor) else each)
        .contiguous()
        .view(-1)
        .view(torch.uint8)
        for each in (one, other)
    )
    return torch.equal(first, second)
