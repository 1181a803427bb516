"""Mutates whole stores, and asks for what the program promises of any: `python -m tests.store_fuzz`.

A store has two finished runs and one that was interrupted with all its tiles done. One or a few of its
files are changed (bits, bytes, lengths, contents of other files, links, directories, JSON), strangers
are put beside them, and then

- every answer about a run is what it was, or the run is named and left out: never another figure;
- the job started again gives the same figures, or an error of one line; with --fresh, too;
- nothing outside the store is written, changed or removed;
- no case takes more memory or time than the limits set here, on top of an idle process.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import random
import resource
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pipeline
from pipeline.errors import DamagedRun, HallmarksError, Interrupted, StoreUnusable
from pipeline.job import patience
from pipeline.job.analyze import analyze
from pipeline.planning.request import Request, Resources
from pipeline.store.folder import Folder
from pipeline.store.progress import records
from tests.suites import trajectory, write_suite

VIEWS = {
    "runs": "SELECT * EXCLUDE (created_at, seconds, bytes_read) FROM runs",
    **{
        view: f"FROM {view}"
        for view in (
            "checkpoints", "tensors", "similarity", "path", "indicators", "spectrum", "projection",
            "findings",
        )
    },
}  # fmt: skip
RUNS = ("r", "x", "t")
MEMORY = 2 << 30
SECONDS = 60
Answers = dict[str, dict[str, list[str]]]


class Stopped(Interrupted):
    """Raised when all tiles are done."""


class Stopping:
    """Stops a job before its tables are written; is told of everything else."""

    def reducing(self) -> None:
        raise Stopped("before the tables")

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class Fuzz:
    """Cases of one seed, each from its own number."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory, self.seed = directory, seed
        values = trajectory("walk", 5, 200, 0.1)
        self.suite = write_suite(
            directory / "suite", {"layers.0.w.weight": values, "b": values[:, :5]}
        )
        self.base, self.store = directory / "base", directory / "store"
        for run in RUNS:
            progress = Stopping() if run == "t" else None
            try:
                self.analyze(self.base, run, progress=progress)
            except Stopped:
                assert list(self.base.glob("_tiles/run=t/*/*.safetensors"))
        finished = directory / "finished"
        for run in RUNS:
            self.analyze(finished, run)
        self.expected = self.answers(finished)
        self.outside = directory / "outside"
        self.outside.mkdir()
        (self.outside / "precious").write_text("mine")
        os.chdir(directory)
        self.before = self.beside()

    def analyze(self, store: Path, run: str, **options) -> bool:
        """Run the job; False if it says that it could not do all of it."""
        request = Request(source=str(self.suite), run=run)
        summary = analyze(request, str(store), Resources(executor="local", threads=1), **options)
        assert summary.complete or summary.lost
        return summary.complete

    def answers(self, store: Path) -> Answers:
        """Return the rows of all views by run and view, as texts."""
        opened = pipeline.open_store(str(store))
        found: Answers = {}
        for view, query in VIEWS.items():
            columns, rows = opened.rows(query)
            for row in rows:
                values = dict(zip(columns, row, strict=True))
                found.setdefault(values["run"], {}).setdefault(view, []).append(repr(values))
        return {run: {v: sorted(rows) for v, rows in views.items()} for run, views in found.items()}

    def case(self, number: int) -> None:
        rng = random.Random(f"{self.seed} {number}")
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(self.base, self.store, symlinks=True)
        done = [mutate(self.store, self.outside, rng) for _ in range(rng.choice((1, 1, 1, 2, 5)))]
        try:
            self.check(rng)
        except BaseException:  # a limit of memory or time, too: the case is named
            print(f"seed {self.seed}, case {number}: {done}", file=sys.stderr)
            raise

    def check(self, rng: random.Random) -> None:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", DamagedRun)
            try:
                found = self.answers(self.store)
            except HallmarksError as error:
                assert one_line(error)
                found = {}
        named = [str(each.message) for each in said]
        for run in ("r", "x"):
            views, expected = found.get(run, {}), self.expected[run]
            assert all(views.get(view) in (None, rows) for view, rows in expected.items()), run
            lacks = views != expected
            known = any(f"run {run} " in each for each in named) or not self.looks_whole(run)
            assert not lacks or known, f"run {run} is left out without a word"
        with contextlib.suppress(StoreUnusable):  # a link
            records(Folder(str(self.store)))
        self.rerun(rng.choice(RUNS))
        assert [file.name for file in self.outside.iterdir()] == ["precious"]
        assert (self.outside / "precious").read_text() == "mine"
        assert self.beside() == self.before

    def beside(self) -> set[str]:
        """Return what lies where the program runs, but for the store."""
        return {file.name for file in self.directory.iterdir()} - {"store"}

    def looks_whole(self, run: str) -> bool:
        """False if a link, a directory or nothing stands where a run is looked for."""
        folder = self.store / f"runs/run={run}"
        links = any(place.is_symlink() for place in (folder, *folder.parents[:1]))
        rows = [] if links or not folder.is_dir() else folder.glob("*.final.parquet")
        return any(row.is_file() and not row.is_symlink() for row in rows)

    def rerun(self, run: str) -> None:
        for fresh in (False, True):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    if not self.analyze(self.store, run, fresh=fresh):
                        return
                    assert self.answers(self.store)[run] == self.expected[run], (
                        f"run {run} made again"
                    )
                return
            except HallmarksError as error:
                assert one_line(error)


def one_line(error: HallmarksError) -> bool:
    return error.message.isprintable() and error.hint.isprintable()


def mutate(store: Path, outside: Path, rng: random.Random) -> str:
    """Change something in a store, and return what."""
    files = sorted(file for file in store.rglob("*") if file.is_file() and not file.is_symlink())
    # every kind of file as often as another
    kind = rng.choice(sorted({file.relative_to(store).parts[0] for file in files}))
    file = rng.choice([file for file in files if file.relative_to(store).parts[0] == kind])
    name = rng.choice(sorted(_MUTATIONS))
    _MUTATIONS[name](file, store, outside, rng)
    return f"{name} {file.relative_to(store)}"


def _bytes(change: Callable[[bytearray, random.Random], bytes]):
    def mutation(file: Path, store: Path, outside: Path, rng: random.Random) -> None:
        file.write_bytes(change(bytearray(file.read_bytes()), rng))

    return mutation


def _bit(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 3)) if data else 0):
        # what describes a file lies at its ends
        end = rng.choice((len(data), min(len(data), 64)))
        place = rng.randrange(end)
        data[rng.choice((place, -1 - place))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _number(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(1 if len(data) > 8 else 0):
        place = rng.choice((0, len(data) - 8, rng.randrange(len(data) - 8)))
        data[place : place + 8] = rng.choice((0, 1, 2**31 - 1, 2**63 - 1, 2**64 - 1)).to_bytes(
            8, "little"
        )
    return bytes(data)


def _splice(data: bytearray, rng: random.Random) -> bytes:
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return bytes(
        rng.choice((data[:a] + data[b:], data[:b] + data[a:c] + data[b:], data[a:], data[:c]))
    )


def _json(data: bytearray, rng: random.Random) -> bytes:
    values = [
        None,
        "x" * 10_000,
        -1,
        10**400,
        float("nan"),
        [],
        {},
        [[]],
        True,
        "\x1b[2J\nerror: fake",
    ]
    try:
        found = json.loads(bytes(data))
        found[rng.choice(sorted(found))] = rng.choice(values)
    except (ValueError, AttributeError, TypeError, IndexError, RecursionError):
        found = rng.choice([*values, {"id": 1, "host": [], "pid": "x", "renewed": "y"}])
    return rng.choice((json.dumps(found).encode(), b"[" * 100_000, b'{"a":' * 50_000, b""))


def _other(file: Path, store: Path, outside: Path, rng: random.Random) -> None:
    files = sorted(each for each in store.rglob("*") if each.is_file() and not each.is_symlink())
    shutil.copyfile(rng.choice(files), store / "_other")
    (store / "_other").replace(file)


def _gone(file: Path, store: Path, outside: Path, rng: random.Random) -> None:
    place = rng.choice((file, file.parent))
    shutil.rmtree(place) if place.is_dir() and place != store else file.unlink()


def _link(file: Path, store: Path, outside: Path, rng: random.Random) -> None:
    place = rng.choice([file, *(parent for parent in file.parents if store in parent.parents)])
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    targets = (
        outside,
        outside / "precious",
        outside / "absent",
        store,
        place,
        store / "runs/run=r",
    )
    place.symlink_to(rng.choice(targets))


def _directory(file: Path, store: Path, outside: Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()
    (file / "within").write_bytes(b"x")


def _stray(file: Path, store: Path, outside: Path, rng: random.Random) -> None:
    name = rng.choice((
        b"run=x' OR '1'='1", b"run=%27%3BCOPY", b"run=\x1b[2J\nerror: fake", b"run=caf\xe9", b"run=..",
        b"stray.parquet", b"run=r/stray.parquet", b"run=x/0000000009.final.parquet", b"run=y", b"#1", b"x#1", b"*", b"",
    ))  # fmt: skip
    table = rng.choice(sorted(each.name for each in store.iterdir() if each.is_dir()))
    target = Path(os.fsdecode(bytes(store / table) + b"/" + (name or b"empty")))
    if rng.random() < 0.5:
        target = target / rng.choice(
            (file.name, "0000000009.final.parquet", "0000000009", "progress")
        )
    if not target.exists() and target.resolve().is_relative_to(store):
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


_MUTATIONS: dict[str, Callable[[Path, Path, Path, random.Random], object]] = {
    "bits of": _bytes(_bit),
    "more bits of": _bytes(_bit),
    "a number in": _bytes(_number),
    "pieces of": _bytes(_splice),
    "JSON instead of": _bytes(_json),
    "another file instead of": _other,
    "nothing instead of": _gone,
    "a link instead of": _link,
    "a directory instead of": _directory,
    "strangers beside": _stray,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=random.randrange(10**9))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--case", type=int, help="only this one")
    options = parser.parse_args()
    started = time.monotonic()
    fuzz = Fuzz(options.directory, options.seed)
    fuzz.case(-1) if options.case is None else None  # everything is imported before it is measured
    held = Path("/proc/self/statm").read_text().split()
    patience.PAUSES_S = ()  # a store that fails here does so for good
    limit = int(held[5]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    count = 0
    while time.monotonic() - started < options.seconds or not count:
        number = count if options.case is None else options.case
        print(f"seed {options.seed}, case {number}", flush=True)  # the last is the one that hung
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        fuzz.case(number)
        faulthandler.cancel_dump_traceback_later()
        count += 1
        if options.case is not None:
            break
    print(f"seed {options.seed}: {count} stores")


if __name__ == "__main__":
    try:
        main()
    except BaseException:  # an ordinary exit would wait for the threads of a job that was cut off
        traceback.print_exc()
        os._exit(1)
