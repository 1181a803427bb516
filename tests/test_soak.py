"""Random faults: see tests/soak.py. One in `make test`, two hundred in `make test-all`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests import soak
from tests.nodes import two_nodes

LOCAL, ON_RAY = 150, 50


def test_a_fault(tmp_path: Path) -> None:
    """The seed is fixed: the machinery of the soak works."""
    with soak.soak(tmp_path, 5) as made:
        soak.run(made, range(2, 3))  # on object storage


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_faults(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}: python -m tests.soak --seed {seed} --faults {LOCAL}")
    with soak.soak(tmp_path, seed) as made:
        soak.run(made, range(LOCAL))
        print(made.table())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_many_faults_on_a_cluster(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}: python -m tests.soak --ray --seed {seed} --faults {ON_RAY}")
    with soak.soak(tmp_path, seed) as made, two_nodes() as nodes:
        soak.run(made, range(ON_RAY), nodes)
        print(made.table())
