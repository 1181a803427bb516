"""Configurations of sweeps: what is a sweep, and what is wrong with one, all of it at once."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import RequestError
from pipeline.sweep.config import MOST_RUNS, ConfigError, checked, read_sweep
from pipeline.sweep.grid import Sweep
from pipeline.sweep.settings import KEYS
from tests.commands import hallmarks

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "jobs" / "studies").glob("*.toml"))
SOUND = """
name = "m"
seeds = 2
[fixed]
network = "mlp"
[grid]
momentum = [0, 0.9]
weight_decay = [1e-5, 0.1]
"""


def read(folder: Path, text: str | bytes) -> Sweep:
    """Read a configuration from a file."""
    path = folder / "c.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_sweep(str(path))


def mistakes(folder: Path, text: str | bytes) -> list[str]:
    """Return what is told of a configuration, without the name of its file."""
    with pytest.raises(ConfigError) as raised:
        read(folder, text)
    told = raised.value.mistakes or (raised.value.message,)
    assert all("\n" not in each and len(each) < 600 for each in told)
    start = f"'{folder}/c.toml': "
    assert all(each.startswith(start) for each in told)
    return [each.removeprefix(start) for each in told]


def test_a_run_for_each_combination_and_seed_one_seed_after_the_other(tmp_path: Path) -> None:
    sweep = read(tmp_path, SOUND)
    assert (sweep.name, sweep.varied) == ("m", ("momentum", "weight_decay"))
    assert [run.name for run in sweep.runs] == [
        f"m--momentum-{momentum}--weight_decay-{decay}--seed-{seed}"
        for seed in (0, 1)
        for momentum in ("0", "0.9")
        for decay in ("1e-05", "0.1")
    ]
    last = sweep.runs[-1]
    assert (last.settings.momentum, last.settings.weight_decay, last.settings.seed) == (0.9, 0.1, 1)
    assert last.stated["sweep"] == "m"
    assert last.stated["batch_size"] == 64  # a default is stated, too
    assert {key for run in sweep.runs for key in run.stated} <= {"sweep", *KEYS}


def test_several_grids_one_after_the_other(tmp_path: Path) -> None:
    text = """
    name = "o"
    seeds = [7]
    [[grid]]
    optimizer = ["sgd"]
    learning_rate = [0.1]
    [[grid]]
    optimizer = ["adamw", "muon"]
    """
    sweep = read(tmp_path, text)
    assert sweep.varied == ("optimizer", "learning_rate")
    assert [run.name for run in sweep.runs] == [
        "o--optimizer-sgd--learning_rate-0.1--seed-7",
        "o--optimizer-adamw--seed-7",
        "o--optimizer-muon--seed-7",
    ]
    assert [run.settings.learning_rate for run in sweep.runs] == [0.1, 0.003, 0.003]


def test_everything_that_is_wrong_is_told_with_its_key_and_what_is_allowed(tmp_path: Path) -> None:
    text = """
    name = "two words"
    sedes = 3
    learning_rate = 0.1
    [fixed]
    momentum = [0.1, 0.2]
    width = true
    seed = 3
    depth = "2"
    [grid]
    momentun = [0.9]
    momentum = [0.5]
    weight_decay = [nan, -1, 0.1]
    batch_size = 32
    warmup = [0.1, 0.1]
    network = []
    """
    told = mistakes(tmp_path, text)
    for pattern in (
        r"name: expected letters, digits.* found 'two words'",
        r"seeds: expected how many, 1 or more, .* found none",
        r"'sedes': not known \(is seeds meant\?\); expected name, seeds, fixed, grid",
        r"'learning_rate': not known \(a setting: it stands in \[fixed\] or \[grid\]\); .*",
        r"\[fixed\] momentum: expected one value, found a list; .*",
        r"\[fixed\] width: expected a whole number from 1 to 4,096, found 'True'",
        r"\[fixed\] seed: expected above the tables, as seeds",
        r"\[fixed\] depth: expected a whole number .*, found '2'",
        r"\[grid\] 'momentun': no such setting \(is momentum meant\?\); there are network, .*",
        r"\[grid\] momentum: expected once, found in \[fixed\] too",
        r"\[grid\] weight_decay: expected a number from 0 to 100, found 'nan'",
        r"\[grid\] weight_decay: expected a number from 0 to 100, found '-1'",
        r"\[grid\] batch_size: expected a list of values, found '32'",
        r"\[grid\] warmup: expected different values, found '0.1' twice",
        r"\[grid\] network: expected a list of values, found an empty list",
    ):
        (place,) = [n for n, each in enumerate(told) if re.fullmatch(pattern, each)] or [None]
        assert place is not None, (pattern, told)
        del told[place]
    assert told == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seeds = 0", "seeds: expected how many"),
        ("seeds = true", "seeds: expected how many"),
        ("seeds = [0, 0]", "seeds: expected how many"),
        ("seeds = []", "seeds: expected how many"),
        ("seeds = [0.5]", "seed: expected a whole number"),
        ("seeds = [-1]", "seed: expected a whole number"),
        ("seeds = 1\nfixed = 3", "fixed: expected a table"),
        ("seeds = 1\ngrid = 3", "grid: expected a table"),
        ("seeds = 1\ngrid = [3]", "grid: expected a table"),
        ("seeds = 1\nfixed.steps = 10\nfixed.epochs = 2", "steps, epochs: expected one of them"),
        ("seeds = 1\nfixed.network = 'vit'\ngrid.width = [16, 17]", "width: expected a multiple"),
        ("seeds = 1\ngrid = [{momentum = [0.5]}, {momentum = [0.5]}]", "grid: expected different"),
        ("seeds = 1\nfixed.momentum = {a = 1}", "momentum: expected a number"),
        ("seeds = 1\nfixed.momentum = 1979-05-27", "momentum: expected a number"),
        ("seeds = 1\nfixed.momentum = inf", "momentum: expected a number"),
        (f"seeds = 1\nfixed.steps = 0x{'f' * 5000}", "found a number of 20,000 bits"),
        (f"seeds = 0x{'f' * 5000}", "found a number of 20,000 bits"),
        (f"seeds = 1\nfixed.steps = {'9' * 5000}", "not valid TOML"),
        ("seeds = 1\nseeds = 2", "not valid TOML"),
        ("seeds = 1\n[grid]\nmomentum = [0]\nmomentum = [0]", "not valid TOML"),
        ("seeds = 1\nx = " + "[" * 100_000, "not valid TOML"),
        ("seeds = 10_001", "seeds: expected how many"),
    ],
)
def test_hostile_values(tmp_path: Path, text: str, told: str) -> None:
    assert any(told in each for each in mistakes(tmp_path, f'name = "n"\n{text}'))


def test_too_many_runs_are_counted_and_not_made(tmp_path: Path) -> None:
    lists = "\n".join(
        f"{key} = [{', '.join(str(n / 200) for n in range(1, 100))}]"
        for key in ("momentum", "weight_decay", "warmup", "label_smoothing", "sam_rho")
    )
    (told,) = mistakes(tmp_path, f'name = "n"\nseeds = 3\n[grid]\n{lists}')
    assert told.startswith(f"{3 * 99**5:,} runs") and f"at most {MOST_RUNS:,}" in told


def test_a_name_that_would_be_too_long(tmp_path: Path) -> None:
    (told,) = mistakes(tmp_path, f'name = "{"n" * 195}"\nseeds = 1\n[grid]\nmomentum = [0.5]')
    assert told.startswith("name: expected a shorter one")


def test_thousands_of_mistakes_are_cut_short(tmp_path: Path) -> None:
    lines = "\n".join(f"k{n} = 1" for n in range(5000))
    told = mistakes(tmp_path, f'name = "n"\nseeds = 1\n[fixed]\n{lines}')
    assert len(told) == 21 and told[-1] == "and 4,980 more"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\xff\xfe", "expected UTF-8"),
        (b"name = ", "not valid TOML"),
        (b"#" * (1 << 20) + b"#", "expected at most 1 MiB"),
        (b"\x00", "not valid TOML"),
    ],
)
def test_what_is_no_toml(tmp_path: Path, data: bytes, told: str) -> None:
    assert told in mistakes(tmp_path, data)[0]


@pytest.mark.parametrize("name", ["", ".", "no/such.toml", "a\0b"])
def test_what_is_no_file(name: str) -> None:
    with pytest.raises(ConfigError):
        read_sweep(name)


def test_the_command_tells_each_mistake_in_a_line_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('name = "n"\nseeds = 0\n[fixed]\nwidth = 0\nbatch = 3\n')
    done = hallmarks("sweep", tmp_path / "c.toml", "--store", tmp_path / "store")
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.partition("': ")[2].split(":")[0] for line in lines] == [
        "seeds", "[fixed] width", "[fixed] 'batch'",
    ]  # fmt: skip
    assert all(line.startswith("error: ") for line in lines)
    assert not (tmp_path / "store").exists()


def test_a_study_is_known_by_its_name(tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = hallmarks("sweep", "momentum-weight-decay", "--store", store, "--dry-run", "--json")
    assert len(json.loads(done.stdout)["runs"]) == 4 * 4 * 5
    unknown = hallmarks("sweep", "momentum", "--store", store)
    assert unknown.returncode == 2 and "momentum-weight-decay" in unknown.stderr


def test_an_error_crosses_processes(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as raised:
        read(tmp_path, "x = 1")
    assert pickle.loads(pickle.dumps(raised.value)).message == raised.value.message


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_values = _scalars | st.lists(_scalars, max_size=3)
_keys = st.sampled_from(["name", "seeds", "fixed", "grid", *KEYS]) | st.text(max_size=5)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_keys, _values | st.dictionaries(_keys, _values, max_size=4), max_size=5))
def test_whatever_is_stated_is_a_sweep_or_refused(content: dict[str, object]) -> None:
    if isinstance(seeds := content.get("seeds"), int):
        content["seeds"] = seeds % 9  # thousands of runs take their time
    try:
        sweep = checked(content, "'c'")
    except ConfigError as error:
        assert error.mistakes and error.message.isprintable()
    else:
        assert len({run.name for run in sweep.runs}) == len(sweep.runs) > 0


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies(path: Path) -> None:
    sweep = read_sweep(str(path))
    assert sweep.name == path.stem
    assert len({run.settings.seed for run in sweep.runs}) >= 5
    assert sweep.varied


def test_all_studies_are_documented() -> None:
    guide = (ROOT / "docs" / "sweeps.md").read_text("utf-8")
    assert [path.stem for path in STUDIES if f"`{path.stem}`" not in guide] == []
