"""Fixtures that several modules share."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # a bare machine with a GPU runs tests that need no Hub (`make gpu-check`)
    from tests.hub import Authority, Hub

# Whatever the user has set must not reach a test, and no test may reach the network.
for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "RAY_"))]:
    del os.environ[name]
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]
os.environ["HF_ENDPOINT"] = "http://localhost:9"  # the discard port: nothing answers
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# Threads of torch that wait for each other give their core away, else a network of a few layers trains
# fifty times as long on a machine that has something else to do.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

# Nor do those of NumPy's OpenBLAS turn in circles for 2**26 cycles after each product: a quarter of the
# time of decompositions of small matrices. 4 is its least; there are as many threads as ever.
os.environ["OPENBLAS_THREAD_TIMEOUT"] = "4"

# Ray's workers are as good as the tests beside them, which else take the cores from them: of two cores
# that others want they get a thirtieth, and cases of a minute took six.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as Ray spells it

# Processes that tests start find the package compiled, whatever the user prefers: each of some three
# hundred took a quarter of a second for that.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(scope="module", autouse=True)
def spared() -> None:
    """Spare garbage collection what was imported so far: 600,000 objects that stay.

    Every analysis ends with a collection, which took a third of a second, more than all the rest of
    a small one.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let collections see it again: duckdb's classes are said to leak by what frees them last."""
    gc.unfreeze()


@pytest.hookimpl(optionalhook=True)  # a bare machine with a GPU has no pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have one process take all modules that start Ray, and never divide a module.

    One cluster at a time: each is several processes with deadlines of their own. Module by module,
    since the process that hands tests out knows their names only; xdist's own groups, which are marks,
    have no effect with pytest 9.2, which no longer lets it change a test's id.
    """
    from xdist.scheduler import LoadFileScheduling

    @cache
    def starts_ray(module: str) -> bool:
        return "pytest.mark.ray" in (config.rootpath / module).read_text()

    class Modules(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = super()._split_scope(nodeid)
            return "ray" if starts_ray(module) else module

    return Modules(config, log)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of really trained checkpoints, by name (tests/trained.py)."""
    from tests.trained import write_all

    return write_all(tmp_path_factory.mktemp("trained"))


TILE_BYTES = 4 << 20


@pytest.fixture(scope="module")
def twelve_tiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Four checkpoints of 3 million float32 weights, and tiles that are a sixteenth as large as else.

    What is stopped half-way need not take seconds to read.
    """
    from tests.suites import trajectory, write_suite

    suite = {"layers.0.w.weight": trajectory("walk", 4, 3_000_000, 0.1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.planning.tiles.MIN_TILE_BYTES", TILE_BYTES)
        yield write_suite(tmp_path_factory.mktemp("twelve") / "suite", suite)


@contextmanager
def serving(hub: Hub, tls: Authority | None = None) -> Iterator[None]:
    """Have the client of this process talk to a Hub, with the password that it may ask for.

    With an account of its own: what another Hub said of its windows does not pace this one.
    """
    from pipeline.transport.limits import Limits

    # the client reads its endpoint when it is imported
    with hub.serve(tls) as endpoint, pytest.MonkeyPatch.context() as patch:
        endpoint = endpoint.replace("://", f"://{hub.password}@") if hub.password else endpoint
        patch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        patch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", endpoint)
        patch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        patch.setattr("pipeline.sources.hub_session._limits", Limits())
        yield


@pytest.fixture
def served_hub() -> Iterator[Hub]:
    """An empty Hub on loopback, which the client of this process talks to."""
    from tests.hub import Hub

    served = Hub()
    with serving(served):
        yield served


class Clock:
    """Time that passes at once where the main thread sleeps; others sleep as ever."""

    def __init__(self) -> None:
        self.slept = 0.0
        self._monotonic, self._sleep = time.monotonic, time.sleep

    def monotonic(self) -> float:
        return self._monotonic() + self.slept

    def sleep(self, seconds: float) -> None:
        if threading.current_thread() is threading.main_thread():
            self.slept += seconds
        else:
            self._sleep(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of this process, on which no test has to wait."""
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What planning learns in one test is not known in the next, nor left with the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
