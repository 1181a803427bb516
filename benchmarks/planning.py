"""Planning over a suite as long as the longest public one.

    PYTHONPATH=. python benchmarks/planning.py [--revisions 1475] [--shards 6] [--tensors 500]

A Hub repository of that many branches is served on loopback by a process of its own (tests/hub);
headers are real, the tensors behind them tiny. Prints the time of `make_plan`, the requests by
class, the same for a second plan (which knows the commits), and the largest resident size of the planning process. An anonymous account may make 500
api and 3,000 resolver requests in five minutes: `paced_minutes` is what that would take.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from typing import Any

API_IN_FIVE_MINUTES = 500
RESOLVERS_IN_FIVE_MINUTES = 3000
NAME = "org/long"


def serve(revisions: int, shards: int, tensors: int, ready: Any, done: Any) -> None:
    """Serve the suite until told to stop."""
    import torch
    from safetensors.torch import save

    from tests.hub import Hub

    hub = Hub()
    repository = hub.repository(NAME)
    names = [f"model.layers.{i // 10}.part{i % 10}.weight" for i in range(tensors)]
    files = {name: f"model-{1 + i % shards:05d}-of-{shards:05d}.safetensors"
             for i, name in enumerate(names)}  # fmt: skip
    index = json.dumps({"weight_map": files}).encode()
    for number in range(revisions):
        contents: dict[str, Any] = {"model.safetensors.index.json": index, "config.json": b"{}"}
        for file in set(files.values()):
            state = {n: torch.full((2,), float(number)) for n, f in files.items() if f == file}
            contents[file] = save(state)
        branch = f"stage1-step{1000 * number}-tokens{4 * number}B"
        repository.commit(contents, branch=branch)
    with hub.serve() as endpoint:
        ready.send(endpoint)
        done.recv()


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--revisions", type=int, default=1475)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--tensors", type=int, default=500)
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(options.revisions, options.shards, options.tensors, there, there)
    )
    server.start()
    endpoint = here.recv()
    os.environ["HF_ENDPOINT"] = endpoint  # read when the client is imported
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="hallmarks-planning-")
    from pipeline.planning.make import make_plan
    from pipeline.planning.request import Request

    started = time.perf_counter()
    plan, source = make_plan(Request(NAME))
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    again, asked = make_plan(Request(NAME))
    seconds_again = time.perf_counter() - started
    assert again == plan
    here.send("stop")
    server.join()
    requests = dict(source.requests)
    paced = 5 * max(
        requests["api"] / API_IN_FIVE_MINUTES,
        requests["resolvers"] / RESOLVERS_IN_FIVE_MINUTES,
    )
    print(json.dumps({
        "revisions": len(plan.checkpoints), "files": len(plan.files),
        "tensors": len(plan.tensors), "seconds": round(seconds, 1), "requests": requests,
        "paced_minutes": round(paced, 1),
        "seconds_again": round(seconds_again, 1), "requests_again": dict(asked.requests),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
