"""Trainings on a GPU: recorded, followed and analysed there as on the processor."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("obstore", reason="writes stores: `make gpu-check` installs nothing")
pytest.importorskip("duckdb", reason="reads stores: `make gpu-check` installs nothing")

import pipeline
from pipeline.follow.sketcher import Sketcher
from pipeline.sweep.settings import settings_of
from pipeline.sweep.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_spec("sklearn") is None, reason="it has the images"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("network", ["mlp", "cnn", "vit", "lm"])
def test_the_same_seed_gives_the_same_weights(network: str, tmp_path: Path) -> None:
    settings = settings_of({"network": network, "steps": 20, "checkpoints": 2})
    for name in ("one", "other"):
        train(settings, tmp_path / name, device="cuda")
    files = [
        path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.safetensors")
    ]
    assert len(files) == 3
    for file in files:
        one, other = load_file(tmp_path / "one" / file), load_file(tmp_path / "other" / file)
        assert all(torch.equal(one[name], other[name]) for name in one | other)


def test_a_network_that_is_trained_there_is_recorded_and_followed(tmp_path: Path) -> None:
    """Within the errors that are stated; figures made on the GPU are the processor's, to its accuracy."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.Linear(1024, 1024)).cuda()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    inputs = torch.randn(256, 1024, device="cuda")
    store = str(tmp_path / "store")
    with (
        pipeline.Recorder(network, tmp_path / "run", "linear:5", last_step=50) as recorder,
        Sketcher(network, store, run="followed") as sketcher,
    ):
        for step in range(51):
            recorder.step(step)
            if step % 5 == 0:
                sketcher.update(step)
            optimizer.zero_grad()
            (network(inputs) - inputs.flip(1)).square().mean().backward()
            optimizer.step()
    for device in ("cpu", "cuda"):
        pipeline.analyze(
            str(tmp_path / "run"), store=store, run=device, executor="local", device=device
        )
    opened = pipeline.open_store(store)
    cosines = {
        run: np.array(
            opened.sql(
                f"SELECT cosine FROM similarity WHERE run = '{run}' AND scope = 'model' ORDER BY i, j"
            ).fetchall()
        )
        for run in ("cpu", "cuda", "followed")
    }
    ((error,),) = opened.sql(
        "SELECT max(cosine_stderr) FROM similarity WHERE run = 'followed' AND scope = 'model'"
    ).fetchall()
    assert np.abs(cosines["cpu"] - cosines["cuda"]).max() < 2e-7
    assert np.abs(cosines["cpu"] - cosines["followed"]).max() < 5 * error
