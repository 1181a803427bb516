"""`hallmarks status`: what a store says of its runs while they are read, after, and in between."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pipeline
from pipeline.store.folder import Folder
from pipeline.store.progress import records
from tests.commands import hallmarks
from tests.suites import trajectory, write_suite
from tests.test_bits import run_command, stopped


def told(store: Path | str) -> dict[str, Any]:
    done = hallmarks("status", "--store", store, "--json")
    assert done.returncode == 0, done.stderr
    return {entry["run"]: entry for entry in json.loads(done.stdout)["runs"]}


def test_while_it_is_read_and_after(twelve_tiles: Path, tmp_path: Path) -> None:
    process = stopped(twelve_tiles, tmp_path, "--executor", "local")
    running = told(tmp_path)["r"]
    process.terminate()
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert running["state"] == "reading" and running["pid"] == process.pid
    assert running["age_s"] >= 0 and 0 <= running["tiles_done"] <= running["tiles"] == 12
    left = told(tmp_path)["r"]
    assert left["state"] == "interrupted"
    assert 0 < left["bytes_done"] < left["bytes"]
    shown = hallmarks("status", "--store", tmp_path).stdout
    assert shown.startswith("r: interrupted, ") and f"process {process.pid} on" in shown
    run_command(twelve_tiles, tmp_path, "--executor", "local")
    assert told(tmp_path) == {"r": {"run": "r", "state": "complete"}}


def test_several_runs_and_what_cannot_be_read(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite", {"w": trajectory("walk", 3, 1000, 0.1)})
    store = tmp_path / "store"
    for name in ("a", "b"):
        pipeline.analyze(str(suite), str(store), executor="local", run=name)
    record = store / "_tiles/run=c/progress"
    record.parent.mkdir(parents=True)
    record.write_text('{"run": "c", "surprise": 1}')
    assert records(Folder(str(store))) == []
    assert told(store).keys() == {"a", "b"}
    about = {
        "run": "c", "state": "reading", "tiles": 9, "tiles_done": 4, "tiles_lost": 1, "bytes": 900,
        "bytes_done": 400, "workers": 2, "token": 1, "host": "there", "pid": 7, "started": 0.0,
        "renewed": time.time() - 3600,
    }  # fmt: skip
    record.write_text(json.dumps(about))
    shown = hallmarks("status", "--store", store).stdout
    said = r"c: reading, 400B of 900B, 4 of 9 tiles, 1 tiles lost, 2 workers; last heartbeat 36\d\d s ago"
    assert re.search(said, shown)
    assert "possibly dead" in shown


def test_no_store(tmp_path: Path) -> None:
    done = hallmarks("status", "--store", tmp_path / "none")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no such store: ")
    assert not (tmp_path / "none").exists()
