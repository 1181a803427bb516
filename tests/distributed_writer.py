"""One rank of several that write distributed checkpoints together: DIRECTORY RANKS RANK."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tests.test_formats import COUNT, weights


def main(directory: Path, ranks: int, rank: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    store = dist.FileStore(str(directory.parent / "rendezvous"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    for k in range(COUNT):
        state = {
            name: distribute_tensor(value, mesh, [Shard(1 if name == "head.weight" else 0)])
            for name, value in weights(k).items()
        }
        moments = {"state": torch.ones(5)}
        folder = directory / f"step{10 * k}" / "model_and_optim"
        save({"model": state, "optim": moments}, checkpoint_id=folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
