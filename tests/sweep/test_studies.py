"""A short version of a study, and a table of several grids."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pipeline.store.query import Store
from tests.commands import hallmarks

STUDIES = Path(__file__).parents[2] / "jobs" / "studies"


@pytest.mark.slow
def test_momentum_and_weight_decay_at_the_ends_of_their_ranges(tmp_path: Path) -> None:
    """Two seeds, two epochs: together they explore more directions, by what no seed makes."""
    full = tomllib.loads((STUDIES / "momentum-weight-decay.toml").read_text())
    ends = {key: [values[0], values[-1]] for key, values in full["grid"].items()}
    config = tmp_path / "short.toml"
    config.write_text(
        f'name = "short"\nseeds = 2\n[fixed]\nnetwork = "{full["fixed"]["network"]}"\n'
        f"width = {full['fixed']['width']}\nepochs = 2\ncheckpoints = 10\n[grid]\n"
        + "\n".join(f"{key} = {values}" for key, values in ends.items())
    )
    store = tmp_path / "store"
    done = hallmarks("sweep", config, "--store", store, "--executor", "local")
    assert done.returncode == 0, done.stderr
    rows = {
        settings: (seeds, mean, stderr)
        for settings, seeds, mean, stderr in Store(str(store))
        .sql("SELECT settings, seeds, mean, stderr FROM over_seeds('mds')")
        .fetchall()
    }
    assert len(rows) == 4 and all(seeds == 2 for seeds, _, _ in rows.values())
    neither = rows['{"momentum": 0, "weight_decay": 0}']
    both = rows['{"momentum": 0.97, "weight_decay": 0.02}']
    assert neither[1] - both[1] > 3 * (neither[2] + both[2])


def test_grids_of_different_settings_are_one_table(tmp_path: Path) -> None:
    config = tmp_path / "two.toml"
    config.write_text(
        'name = "two"\nseeds = 1\n[fixed]\nnetwork = "mlp"\nwidth = 4\ndepth = 1\nsteps = 4\n'
        "checkpoints = 2\n[[grid]]\nmomentum = [0.5]\n[[grid]]\nwarmup = [0.5]\n"
    )
    one_process = ("--executor", "local", "--max-workers", "1")
    done = hallmarks("sweep", config, "--store", tmp_path / "store", *one_process)
    assert done.returncode == 0, done.stderr
    head, _, *rows = done.stdout.splitlines()[:4]
    assert head.split()[:3] == ["momentum", "warmup", "seeds"]
    assert [row.split()[:2] for row in rows] == [["0.5", "1"], ["0.5", "1"]]
