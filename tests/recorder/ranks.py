"""One rank of several that train together and record: DIRECTORY RANKS RANK."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import HallmarksError
from pipeline.recorder.recorder import Recorder

STEPS = 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 6), nn.BatchNorm1d(6), nn.Linear(6, 5, bias=False))


def whole(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a state dict, which ranks put together."""
    return {
        name.removeprefix("module."): getattr(tensor, "full_tensor", tensor.clone)().clone()
        for name, tensor in model.state_dict().items()
    }


def train(model: nn.Module, directory: Path, rank: int, first: int = 0) -> None:
    """Train with data of each rank's own, and leave what the weights were."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    states: list[dict[str, Tensor]] = []
    generator = torch.Generator().manual_seed(rank)
    with Recorder(model, directory, "linear:1", resume=first or None) as recorder:
        for step in range(first, first + STEPS):
            recorder.step(step, rank=rank)
            states.append(whole(model))
            optimizer.zero_grad()
            model(torch.randn(8, 7, generator=generator)).square().sum().backward()
            optimizer.step()
    if rank == 0:
        torch.save(states, directory.with_name(f"{directory.name}-{first}.pt"))


def fail(model: nn.Module, directory: Path, rank: int) -> None:
    """Leave what each rank is told of a directory that is another's, of weights that are others than were
    recorded, and of a part that cannot be written."""
    try:
        Recorder(model, directory / "taken", "linear:1")
    except HallmarksError as error:
        (directory / f"taken-{rank}").write_text(error.message)
    for _ in range(2):  # recorded, then compared
        with Recorder(model, directory / "fsdp", "linear:1", resume=2 * STEPS) as recorder:
            recorder.step(2 * STEPS)
    try:
        with Recorder(model, directory / "fsdp", [0], resume=2 * STEPS - 1) as recorder:
            recorder.step(2 * STEPS - 1)
    except HallmarksError as error:
        (directory / f"moved-{rank}").write_text(error.message)
    try:
        with Recorder(model, directory / "full", "linear:1") as recorder:
            if rank == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
            recorder.step(0)
    except HallmarksError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        (directory / f"full-{rank}").write_text(error.message)


def main(directory: Path, ranks: int, rank: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(directory / "rendezvous"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    train(DistributedDataParallel(network()), directory / "ddp", rank)
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    train(model, directory / "fsdp", rank)
    train(model, directory / "fsdp", rank, first=STEPS)
    if rank == 0:
        (directory / "taken" / "step-0").mkdir(parents=True)
    fail(model, directory, rank)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
