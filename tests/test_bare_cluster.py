"""A cluster that has Ray and nothing else, as infra/README.md says it is used: nodes install the rest."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest

import pipeline
from pipeline.version import VERSION
from tests import canary
from tests.canary import Cluster
from tests.suites import trajectory, write_suite
from tests.test_bits import everything
from tests.test_infra import INFRA, LOCK
from tests.test_jobs import submitted

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

NEEDED = ("hallmarks", "numpy", "torch", "duckdb", "obstore", "rich")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True)
    pip = [folder / "bin/pip", "install", "--quiet", f"ray[default]=={LOCK['ray']}"]
    subprocess.run([*pip, f"--constraint={INFRA.parent}/constraints.txt"], check=True)
    assert not {name for site in sites(folder) for name in versions(site)} & set(NEEDED)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)  # what it names would be on the nodes
        with canary.cluster(str(folder / "bin/python")) as found:
            yield found


def sites(folder: Path) -> list[Path]:
    return list(folder.glob("**/lib/python*/site-packages"))


def versions(site: Path) -> dict[str, str]:
    """Return what is installed in a directory."""
    found = distributions(path=[str(site)])
    return {each.name.lower().replace("-", "_"): each.version.split("+")[0] for each in found}


def documented(installer: str) -> str:
    """Return the option that the documentation has for one of Ray's two installers."""
    if installer == "pip":
        return f"--runtime-env={INFRA / 'runtime-env.yaml'}"
    text = (INFRA / "README.md").read_text()
    [packages] = re.findall(r"--runtime-env-json '\{\"pip\": (.*?)\}'", text, re.DOTALL)
    return f"--runtime-env-json={json.dumps({installer: json.loads(packages)})}"


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_job_brings_what_it_needs(cluster: Cluster, tmp_path: Path, installer: str) -> None:
    suite = write_suite(tmp_path / "suite", {"layers.0.w.weight": trajectory("walk", 5, 9000, 0.1)})
    store, local = str(tmp_path / "store"), str(tmp_path / "local")
    command = ["python", "-m", "jobs.analyze", str(suite), "--store", store]
    job = submitted(cluster, documented(installer), *command, "--run=r", "--memory=1GiB", "--json")
    about, logs = job.wait(), job.logs()
    assert about["status"] == "SUCCEEDED" and about["driver_exit_code"] == 0, (about, logs)
    summary = json.loads(logs.strip().splitlines()[-1])
    assert summary["complete"] and summary["executor"] == "ray"
    assert "Traceback" not in logs
    [site] = sites(cluster.folder / "session_latest/runtime_resources" / installer)
    installed = versions(site)
    locked = {name.lower().replace("-", "_"): version for name, version in LOCK.items()}
    locked["hallmarks"] = VERSION
    assert installed.keys() >= set(NEEDED) and "pytest" not in installed
    assert {name: locked.get(name, version) for name, version in installed.items()} == installed
    pipeline.analyze(str(suite), local, executor="local", run="r")
    assert everything(store) == everything(local)
    asked = [sys.executable, "-m", "jobs.sql", "--store", store, "SELECT version FROM runs"]
    told = subprocess.run([*asked, "--format=csv"], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["version", VERSION]
