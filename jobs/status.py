"""`hallmarks status`: how far each run of a store is, from any machine that sees the store."""

from __future__ import annotations

import time
from typing import Any

import click

from jobs.console import Result, console, run, say
from jobs.options import debug_option, json_option, store_option
from pipeline.errors import StoreUnusable
from pipeline.store.attempts import token_of
from pipeline.store.folder import Folder
from pipeline.store.progress import Record, as_dict, records
from pipeline.store.query import Store

LOST_TOUCH_S = 60.0
"""A driver renews its record every five seconds while tiles end: after this long something is slow, or
it is gone. Clocks of two machines may differ, which is why the age is always said."""


@click.command()
@store_option
@json_option
@debug_option
def status(store: str, as_json: bool, debug: bool) -> int:
    """Print how far each run is."""
    del debug
    folder = Folder(store)
    finished, ended = _finished(store)
    states = {name: state.partition(",")[0] for name, state in finished.items()}
    under_way = {
        record.run: record
        for record in records(folder)
        if record.token > ended.get(record.run, 0)  # else its driver did not come to remove it
    }
    if not under_way and not finished:
        Store(store)  # says what it is that is missing
    if as_json:
        runs = [{"run": name, "state": state} for name, state in states.items()]
        runs = [entry for entry in runs if entry["run"] not in under_way]
        Result().print_json({"runs": [*runs, *map(as_dict, under_way.values())]})
        return 0
    screen = console()
    for name in sorted(finished.keys() | under_way.keys()):
        record = under_way.get(name)
        say(screen, f"{name}: {_told(record) if record else finished[name]}")
    return 0


def _finished(store: str) -> tuple[dict[str, str], dict[str, int]]:
    """Return the runs that have tables, and whether they are whole; and the leases that ended them."""
    try:
        rows: list[tuple[Any, ...]] = (
            Store(store)
            .sql(
                "SELECT run, complete, final, attempt, followed, checkpoints FROM attempts ORDER BY run"
            )
            .fetchall()
        )
    except StoreUnusable:
        return {}, {}  # none is finished yet
    states = {run: _state(complete, followed, k) for run, complete, _, _, followed, k in rows}
    return states, {run: token_of(attempt) for run, _, final, attempt, *_ in rows if final}


def _state(complete: bool, followed: bool | None, checkpoints: int) -> str:
    if followed:
        return f"followed, {checkpoints} checkpoints so far"
    return "complete" if complete else "incomplete"


def _told(record: Record) -> str:
    # planning takes a tenth of a second to import, and most runs are finished
    from pipeline.planning.memory import show_size

    age = max(0.0, time.time() - record.renewed)
    busy = record.state in ("reading", "following")
    silent = " (possibly dead)" if busy and age > LOST_TOUCH_S else ""
    heard = f"last heartbeat {age:.0f} s ago, process {record.pid} on {record.host}{silent}"
    if record.state == "following":
        return f"following, nothing new; {heard}"
    lost = f", {record.tiles_lost} tiles lost" if record.tiles_lost else ""
    return (
        f"{record.state}, {show_size(record.bytes_done)} of {show_size(record.bytes)},"
        f" {record.tiles_done} of {record.tiles} tiles{lost}, {record.workers} workers; {heard}"
    )


if __name__ == "__main__":
    run(status)
