"""The memory of one worker: the user's budget, or a share of the machine's."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from dataclasses import replace

from pipeline.errors import PlanDoesNotFit
from pipeline.planning.machine import available_cores, total_memory
from pipeline.planning.memory import (
    FIGURES,
    Memory,
    default_budget,
    idle_bytes,
    project,
    show_size,
    too_small,
)
from pipeline.planning.plan import Plan
from pipeline.planning.request import Resources
from pipeline.reduce.groups import grouping
from pipeline.reduce.memory import Buffers, buffers, largest_estimate, least, projected

LEAST_TILES = 10
"""Before so many have been read no estimate is shown: fewer draws tell too little of their spread."""


def worker_memory(
    plan: Plan,
    resources: Resources,
    calls: int,
    workers: int = 1,
    largest_block: int | None = None,
) -> Memory:
    """Return how one worker with `calls` tiles in hand spends its budget.

    Args:
        workers: how many share a machine.
        largest_block: what an object store takes, if blocks travel through one.

    Raises:
        PlanDoesNotFit: the budget, the machine or the store is too small.
    """
    total, on_ray = total_memory(), resources.executor == "ray"
    budget = resources.memory or default_budget(total, workers, on_ray)
    if plan.matrices:
        half = matrix_room(budget)
        return project(plan.tensors, plan.tiles, half, calls, largest_block=largest_block)
    grouped = grouping(plan)
    figures = least(plan, grouped)
    shared = not on_ray or resources.memory  # else the driver has a share of its own
    memory = project(
        plan.tensors,
        plan.tiles,
        budget,
        calls,
        plan.statistics,
        largest_block,
        afterwards=figures if shared else 0,
        rows=plan.rows,
    )
    if on_ray:  # the driver makes figures and tables, and holds no tiles
        assure_room_for_figures(plan, resources)
        return replace(
            memory,
            least=max(memory.least, figures),
            for_estimates=driver_budget(resources),
        )
    available = total - idle_bytes(1, on_ray)
    divided = buffers(plan, grouped, budget, available_cores())
    needed = max(memory.projected, projected(plan, grouped, divided))
    if needed > available:
        raise PlanDoesNotFit(
            f"--memory {show_size(budget)}: the plan needs {show_size(needed)} on top of the"
            f" {show_size(idle_bytes(1, on_ray))} of an idle process, but this machine or container"
            f" has {show_size(total)}",
            "leave --memory out, or raise the limit",
        )
    left = min(budget, available) - memory.projected
    beside = largest_estimate(plan, grouped, divided) if len(plan.tiles) >= LEAST_TILES else 0
    with_estimate = memory.projected + min(beside, left)
    return replace(memory, projected=max(needed, with_estimate), for_estimates=left)


def matrix_room(budget: int) -> int:
    """Return the bytes of a worker's budget that are for matrices; the rest is for reading them."""
    return budget // 2


def reduction_buffers(plan: Plan, resources: Resources) -> Buffers:
    """Return what figures and tables are made with: of as much as a worker has for tiles."""
    threads = resources.threads or available_cores()
    return buffers(plan, grouping(plan), driver_budget(resources), threads)


def assure_room_for_figures(plan: Plan, resources: Resources) -> None:
    """See that figures and tables can be made.

    Raises:
        PlanDoesNotFit: the budget is too small for them.
    """
    budget, needed = driver_budget(resources), least(plan, grouping(plan))
    if budget < needed:
        raise too_small(budget, len(plan.checkpoints), FIGURES, needed)


def driver_budget(resources: Resources) -> int:
    """Return the budget of a process that has no share of a machine with others."""
    return resources.memory or default_budget(total_memory(), 1, resources.executor == "ray")


def give_back() -> None:
    """Return to the system what tiles and figures have taken and freed, which allocators keep for later.

    An estimate of 154 checkpoints left a job 190 MB larger; after this it was 140 MB smaller than before.
    A worker and its reader refer to each other: blocks and scratch of 154 checkpoints, 340 MB, outlived it.
    """
    import pyarrow  # what only plans does without it

    gc.collect()
    pyarrow.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError, OSError):  # glibc's; other systems do without
        ctypes.CDLL(None).malloc_trim(0)
