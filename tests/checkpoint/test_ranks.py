"""Parts of tensors as ranks write them, put together: against the whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pipeline
from pipeline.checkpoint.formats import FORMATS, read_header
from pipeline.errors import FormatError
from tests.checkpoint import in_memory

WRITER = """
import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
folder, copies = Path(sys.argv[1]), int(sys.argv[2])
for rank in range(4):
    dist.init_process_group("fake", rank=rank, world_size=4, store=FakeStore())
    shape, names = ((4,), ("fsdp",)) if copies == 1 else ((2, 2), ("ddp", "fsdp"))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for k in range(3):
        state = {}
        for name, rows, dim in (("layers.0.w", 6, 0), ("layers.1.w", 5, 1), ("norm", 3, 0)):
            value = torch.arange(rows * 7.0).view(rows, 7) * (k + 1)
            placements = [Replicate()] * (copies > 1) + [Shard(dim)]
            state[name] = distribute_tensor(value, mesh, placements, src_data_rank=None)
        state["plain"] = torch.ones(2) * k
        (folder / f"global_step_{k}").mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / f"global_step_{k}" / f"model_world_size_4_rank_{rank}.pt")
    dist.destroy_process_group()
"""


@pytest.mark.parametrize("copies", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_parts_make_the_whole(copies: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path), str(copies)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    files = sorted((tmp_path / "global_step_1").iterdir())
    memory = [in_memory(file.read_bytes(), file.name, file.name) for file in files]
    memory[0].others = tuple(memory[1:])
    (row,) = [row for row in FORMATS if row.name == "parts of ranks"]
    tensors = row.read(memory[0])
    for name, rows in (("layers.0.w", 6), ("layers.1.w", 5), ("norm", 3)):
        stored, expected = tensors[name], torch.arange(rows * 7.0) * 2
        assert stored.shape == (rows, 7)
        ends = [*(extent.first for extent in stored.extents[1:]), rows * 7]
        for extent, end in zip(stored.extents, ends, strict=True):
            data = files[extent.file].read_bytes()
            count = end - extent.first
            values = torch.frombuffer(bytearray(data), dtype=torch.float32, count=count,
                                      offset=extent.start)  # fmt: skip
            assert torch.equal(values, expected[extent.first : end])
    plan = pipeline.plan(tmp_path)
    assert sorted(t.name for t in plan.tensors) == ["layers.0.w", "layers.1.w", "norm", "plain"]
    with pytest.raises(FormatError, match="one rank's part"):
        read_header(in_memory(files[0].read_bytes(), "x.pt"))
