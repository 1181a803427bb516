"""`hallmarks average`: combinations written as checkpoints, against means made by hand."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pipeline
from pipeline.averaging.rounding import rounded
from pipeline.averaging.weights import weights_of
from pipeline.checkpoint.dtypes import WEIGHT_DTYPES
from pipeline.errors import RequestError
from pipeline.planning.choose import choose
from pipeline.planning.request import Request
from pipeline.sources import open_source
from tests.commands import hallmarks
from tests.hub import Hub
from tests.suites import write_suite

Weights = dict[str, torch.Tensor]
STEPS = [0, 10, 20, 40, 50]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


def network(k: int, dtype: torch.dtype) -> Weights:
    """A tensor of several pieces, small ones, and what is no weight."""
    numbers = torch.Generator().manual_seed(k)

    def drawn(*shape: int) -> torch.Tensor:
        return (0.02 * torch.randn(shape, generator=numbers)).to(dtype)

    return {
        "model.embed_tokens.weight": drawn(500, 96),
        "model.layers.0.mlp.up_proj.weight": drawn(96, 64),
        "model.layers.0.input_layernorm.weight": drawn(96).float(),
        "model.layers.0.scale": drawn(1)[0],
        "bn.num_batches_tracked": torch.tensor(100 * k),
        "bn.running_mean": drawn(5),
        "mask": torch.ones(3, 5, dtype=torch.bool).tril(),
    }


def write(folder: Path, weights: Weights, form: str) -> None:
    """Write a checkpoint as trainers do: in one file or two, safetensors or pickles."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"torch_dtype": "bfloat16", "vocab_size": 500}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("# a model")
    (folder / "optimizer.pt").write_bytes(b"none")
    save, whole, suffix = (
        (save_file, "model", "safetensors")
        if "safetensors" in form
        else (torch.save, "pytorch_model", "bin")
    )
    if "sharded" not in form:
        save(weights, folder / f"{whole}.{suffix}")
        return
    names = list(weights)
    shards = {f"{whole}-0000{n}-of-00002.{suffix}": names[n - 1 :: 2] for n in (1, 2)}
    for shard, held in shards.items():
        save({name: weights[name] for name in held}, folder / shard)
    index = {name: shard for shard, held in shards.items() for name in held}
    (folder / f"{whole}.{suffix}.index.json").write_text(json.dumps({"weight_map": index}))


def read(folder: Path) -> Weights:
    return {
        name: value
        for file in folder.glob("*.safetensors")
        for name, value in load_file(file).items()
    }


def by_hand(
    rows: Sequence[torch.Tensor], weights: Sequence[float], dtype: torch.dtype
) -> torch.Tensor:
    """The float64 sum, rounded by a table of all numbers of the format, or by NumPy."""
    total = sum(weight * row.double().numpy() for weight, row in zip(weights, rows, strict=True))
    if dtype is torch.float32:
        return torch.from_numpy(np.asarray(total, np.float32))
    if dtype is torch.float16:
        return torch.from_numpy(np.asarray(total, np.float16))
    return nearest(np.asarray(total), dtype)


def nearest(values: np.ndarray[Any, Any], dtype: torch.dtype) -> torch.Tensor:
    """The nearest number of a format of at most 16 bits, of two the one whose code is even."""
    bits = 8 * torch.tensor([], dtype=dtype).element_size()
    codes = torch.arange(1 << (bits - 1)).to(torch.uint8 if bits == 8 else torch.int16)  # from 0 up
    sizes = codes.view(dtype).double().numpy()
    sizes = sizes[np.isfinite(sizes)]
    above = np.searchsorted(sizes, np.abs(values)).clip(1, len(sizes) - 1)
    up, down = sizes[above] - np.abs(values), np.abs(values) - sizes[above - 1]
    code = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, above - 1)
    return torch.from_numpy(np.asarray(np.copysign(sizes[code], values))).to(dtype)


@pytest.mark.parametrize("form", ["safetensors", "safetensors sharded", "bin", "bin sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_against_means_made_by_hand(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    networks = [network(k, dtype) for k in range(5)]
    for step, weights in zip(STEPS, networks, strict=True):
        write(tmp_path / "run" / f"step{step}", weights, form)
    out = tmp_path / "mean"
    done = hallmarks(
        "average",
        tmp_path / "run",
        "--weights",
        "last:3",
        "--out",
        out,
        "--memory",
        "4MB",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [(each["step"], each["weight"]) for each in told["checkpoints"]] == [
        (step, 1 / 3) for step in STEPS[2:]
    ]
    found = read(out)
    assert list(found) == list(found) and found.keys() == networks[0].keys()
    copied = {"bn.num_batches_tracked", "bn.running_mean", "mask"}
    for name, value in found.items():
        rows = [weights[name] for weights in networks[2:]]
        assert value.dtype == rows[0].dtype and value.shape == rows[0].shape
        expected = rows[-1] if name in copied else by_hand(rows, [1 / 3] * 3, value.dtype)
        assert torch.equal(value, expected), name
    assert told["tensors"] == 4 and told["copied"] == 3
    assert told["differing"] == ["bn.num_batches_tracked", "bn.running_mean"]
    assert "2 tensors that are not averaged differ between the checkpoints" in done.stderr
    weights = {"model.safetensors"}
    if "sharded" in form:
        weights = {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == found.keys()
        for name, shard in index["weight_map"].items():
            assert name in load_file(out / shard)
        weights.add("model.safetensors.index.json")
    held = {file.name for file in out.iterdir()}
    assert held == {*weights, "config.json", "tokenizer.json", "average.json"}
    assert (out / "config.json").read_bytes() == (tmp_path / "run/step50/config.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("mean")] == ["mean"]
    for file in out.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    "dtype", [n for n in WEIGHT_DTYPES if n not in ("INT8", "E2M1", "NF4", "FP4")]
)
def test_rounding_is_done_once(dtype: str) -> None:
    """Numbers, those half-way between them, and what is just beside these; float32 on the way errs."""
    format = getattr(torch, WEIGHT_DTYPES[dtype].torch)
    drawn = np.random.default_rng(0).standard_normal(4000) * 2.0 ** np.random.default_rng(
        1
    ).integers(-20, 8, 4000)
    numbers = torch.from_numpy(drawn).to(format).double().numpy()
    nexts = torch.from_numpy(numbers * (1 + 2.0 ** -WEIGHT_DTYPES[dtype].fraction_bits)).to(format)
    middles = (numbers + nexts.double().numpy()) / 2
    values = np.concatenate(
        [
            numbers,
            middles,
            np.nextafter(middles, np.inf),
            np.nextafter(middles, -np.inf),
            drawn,
            [0.0, -0.0],
        ]
    )
    found = rounded(torch.from_numpy(values.copy()), dtype)
    if dtype == "F64":
        expected = torch.from_numpy(values)
    elif dtype in ("F32", "F16"):
        expected = torch.from_numpy(values.astype(np.float32 if dtype == "F32" else np.float16))
    else:
        expected = nearest(values, format)
        twice = torch.from_numpy(values).float().to(format)
        assert not torch.equal(twice.double(), expected.double())
    assert found.dtype == format and torch.equal(found.double(), expected.double())
    if dtype != "F64":
        with pytest.raises(OverflowError):
            rounded(torch.tensor([1.0, -1e300], dtype=torch.float64), dtype)


def test_formats(tmp_path: Path) -> None:
    """Mixed within the run; another one is asked for; configurations say which it is."""
    networks = [network(0, torch.float32), network(1, torch.bfloat16), network(2, torch.bfloat16)]
    for k, weights in enumerate(networks):
        write(tmp_path / "run" / f"step{k}", weights, "safetensors sharded")
    (tmp_path / "w.csv").write_text("step,weight\n0,0.25\n1,-0.25\n2,1\n")
    for dtype in ("F32", "F8_E4M3", None):
        out = tmp_path / f"out-{dtype}"
        stated = {} if dtype is None else {"dtype": dtype}
        summary = pipeline.average(tmp_path / "run", tmp_path / "w.csv", out, **stated)
        assert summary.out == str(out)
        format = getattr(torch, WEIGHT_DTYPES[dtype].torch) if dtype else torch.bfloat16
        name = "model.embed_tokens.weight"
        expected = by_hand([weights[name] for weights in networks], [0.25, -0.25, 1], format)
        assert torch.equal(read(out)[name].double(), expected.double())
        config = json.loads((out / "config.json").read_text())
        assert config["torch_dtype"] == str(format).removeprefix("torch.")
    assert read(tmp_path / "out-F32")["bn.num_batches_tracked"] == 200
    assert (
        read(tmp_path / "out-None")["model.layers.0.input_layernorm.weight"].dtype == torch.float32
    )


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_it(tied: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    models = []
    for step in (100, 200, 300):
        torch.manual_seed(step)
        model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
        model.save_pretrained(tmp_path / "run" / f"checkpoint-{step}", max_shard_size="6KB")
        models.append(model.state_dict())
    summary = pipeline.average(tmp_path / "run", "last:2", tmp_path / "mean")
    assert len(summary.files) > 4
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "mean")
    assert loaded.dtype == torch.bfloat16
    for name, value in loaded.state_dict().items():
        rows = [model[name] for model in models[1:]]
        assert torch.equal(value, by_hand(rows, [0.5, 0.5], torch.bfloat16)), name
    assert loaded(torch.arange(5)[None]).logits.isfinite().all()


def test_names_that_share_a_tensor(tmp_path: Path) -> None:
    """As torch saves tied weights: both names are there, with the same values."""
    rows = []
    for k in range(2):
        shared = torch.randn(40, 8, generator=torch.Generator().manual_seed(k))
        folder = tmp_path / "run" / f"step{k}"
        folder.mkdir(parents=True)
        torch.save(
            {"embed.weight": shared, "head.weight": shared, "part": shared[3:7]},
            folder / "pytorch_model.bin",
        )
        rows.append(shared)
    pipeline.average(tmp_path / "run", [0.75, 0.25], tmp_path / "out")
    mean, found = by_hand(rows, [0.75, 0.25], torch.float32), read(tmp_path / "out")
    assert torch.equal(found["embed.weight"], mean) and torch.equal(found["head.weight"], mean)
    assert torch.equal(found["part"], mean[3:7])


def test_other_sources_give_what_a_directory_gives(served_hub: Hub, tmp_path: Path) -> None:
    """A repository with a branch for each checkpoint, a manifest, files that are a checkpoint each."""
    run, flat = tmp_path / "run", tmp_path / "flat"
    flat.mkdir()
    repository = served_hub.repository("org/small")
    for k, step in enumerate(STEPS[:3]):
        write(run / f"step{step}", network(k, torch.bfloat16), "bin sharded")
        repository.commit_folder(run / f"step{step}", branch=f"step{step}")
        torch.save(network(k, torch.bfloat16), flat / f"step{step}.pt")
    repository.branches["main"] = repository.branches["step20"]
    rows = [f"{run / f'step{step}'},{step}" for step in STEPS[:3]]
    (tmp_path / "manifest.csv").write_text("\n".join(["uri,step", *rows]))
    pipeline.average(run, "ema:0.5", tmp_path / "mean")
    expected = {file.name: file.read_bytes() for file in (tmp_path / "mean").iterdir()}
    del expected["average.json"]
    for source in ("org/small", tmp_path / "manifest.csv"):
        out = tmp_path / Path(source).stem
        pipeline.average(source, "ema:0.5", out)
        for name, data in expected.items():
            assert (out / name).read_bytes() == data, name
    names = [
        each["commit"]
        for each in json.loads((tmp_path / "small/average.json").read_text())["checkpoints"]
    ]
    assert names == [repository.branches[f"step{step}"] for step in STEPS[:3]]
    pipeline.average(flat, "ema:0.5", tmp_path / "of-files")
    mean, found = read(tmp_path / "mean"), read(tmp_path / "of-files")
    assert [file.name for file in (tmp_path / "of-files").glob("*.safetensors")] == [
        "model.safetensors"
    ]
    assert mean.keys() == found.keys() and all(
        torch.equal(mean[name], found[name]) for name in mean
    )


def selected(folder: Path) -> Any:
    request = Request(str(folder))
    return choose(open_source(request.source), request).checkpoints


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = np.random.default_rng(5).standard_normal((5, 3000))
    folder = tmp_path_factory.mktemp("average") / "run"
    return write_suite(folder, {"layers.0.up_proj.weight": rows, "norm": rows[:, :7]}, steps=STEPS)


def test_weights_are_those_of_the_views(small: Path, tmp_path: Path) -> None:
    pipeline.analyze(small, tmp_path / "store", executor="local", run="a")
    store = pipeline.open_store(tmp_path / "store")
    checkpoints = selected(small)
    for words in ("last:1", "last:4", "ema:0", "ema:0.9", "warmdown:1", "warmdown:4"):
        rows = store.sql(
            f"SELECT weight FROM average_weights('a', '{words}') ORDER BY k"
        ).fetchall()
        assert np.allclose(
            weights_of(words, checkpoints), [row[0] for row in rows], rtol=0, atol=1e-15
        )
    table = tmp_path / "w.csv"
    rows = store.sql("SELECT k, step, name, weight FROM average_weights('a', 'ema:0.5')").fetchall()
    lines = [",".join(map(str, row)) for row in rows]
    table.write_text("\n".join(["k,step,name,weight", *lines]))
    assert np.allclose(
        weights_of(str(table), checkpoints), weights_of("ema:0.5", checkpoints), atol=1e-15
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name,weight\nstep40,0.5\nstep10,0.5\n", [0, 0.5, 0, 0.5, 0]),
        ("\ufeffk,weight\n4,2\n0,-1\n", [-1, 0, 0, 0, 2]),
        ("weight,step,name\n1,50,step50\n", [0, 0, 0, 0, 1]),
        ("step,weight\n10,1\n50,1\n", "expected weights that add up to 1, found 2"),
        ("step,weight\n10,0.5\n10,0.5\n", "line 3: step '10' is there twice"),
        ("step,weight\n11,1\n", "line 2: no checkpoint with step '11'"),
        ("k,name,weight\n0,step10,1\n", "line 2: no checkpoint with name 'step10', k '0'"),
        ("step,weight\n10,nan\n", "line 2: expected a number as weight, found 'nan'"),
        ("step,weight\n10\n", "line 2: expected a number as weight, found 'None'"),
        ("step,w\n10,1\n", "expected the columns weight and name, step or k"),
        ("", "expected the columns weight and name, step or k"),
        ("step,weight\n", "expected the columns weight and name, step or k"),
    ],
)
def test_tables_of_weights(
    text: str, expected: list[float] | str, small: Path, tmp_path: Path
) -> None:
    table = tmp_path / "weights.csv"
    table.write_text(text, "utf-8")
    if isinstance(expected, list):
        assert weights_of(table, selected(small)).tolist() == expected
        return
    with pytest.raises(RequestError) as error:
        weights_of(table, selected(small))
    assert expected in error.value.message


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("mean", "expected last:M, ema:DECAY, warmdown:M or a .csv file"),
        ("none.csv", "No such file or directory"),
        ("last:0", "expected last:M, M from 1 to 5, found 'last:0'"),
        ("last:6", "expected last:M, M from 1 to 5, found 'last:6'"),
        ("last:1.5", "expected last:M, M from 1 to 5, found 'last:1.5'"),
        ("warmdown:5", "expected warmdown:M, M from 1 to 4, found 'warmdown:5'"),
        ("ema:1", "expected ema:DECAY, from 0 to below 1, found 'ema:1'"),
        ("ema:nan", "expected ema:DECAY, from 0 to below 1, found 'ema:nan'"),
    ],
)
def test_weights_that_are_none(weights: str, said: str, small: Path, tmp_path: Path) -> None:
    done = hallmarks("average", small, "--weights", weights, "--out", tmp_path / "out")
    error, *_ = done.stderr.splitlines()
    assert done.returncode == 2 and said in error and error.startswith("error: --weights")
    assert not [*tmp_path.iterdir()]


def altered(folder: Path, step: int, change: Any) -> None:
    path = folder / f"step{step}" / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("norm"), "step50 holds 'norm', which step40 does not"),
        (lambda w: w.update(more=w["norm"].clone()), "step40 holds 'more', which step50 does not"),
        (lambda w: w.update(norm=torch.ones(8)), "step40: tensor 'norm': expected the shape [7]"),
        (
            lambda w: w.update(norm=torch.ones(7, dtype=torch.int32)),
            "step40: tensor 'norm': expected weights",
        ),
        (lambda w: w["norm"].fill_(math.nan), "step40: tensor 'norm' holds NaN or infinity"),
        (lambda w: w["norm"].fill_(-math.inf), "step40: tensor 'norm' holds NaN or infinity"),
    ],
)
def test_what_does_not_align_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(5).standard_normal((5, 100))
    run = write_suite(tmp_path / "run", {"up_proj.weight": rows, "norm": rows[:, :7]}, steps=STEPS)
    altered(run, 40, change)
    done = hallmarks("average", run, "--weights", "last:2", "--out", tmp_path / "out")
    error, *_ = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 2 and said in error
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    kept = hallmarks(
        "average", run, "--weights", "last:2", "--out", tmp_path / "out", "--exclude", "norm|more"
    )
    assert kept.returncode == 0
    assert torch.equal(
        read(tmp_path / "out")["norm"].double(), torch.from_numpy(rows[4, :7]).float().double()
    )
    without = hallmarks(
        "average", run, "--weights", "last:2", "--out", tmp_path / "other", "--steps", ":20"
    )
    assert without.returncode == 0


def test_a_sum_beyond_the_range_of_its_format(tmp_path: Path) -> None:
    run = write_suite(tmp_path / "run", {"w": np.array([[6e4], [-6e4]])}, dtype="F16")
    done = hallmarks(
        "average", run, "--weights", write_csv(tmp_path, "0,-1\n1,2\n"), "--out", tmp_path / "out"
    )
    assert done.returncode == 2
    assert "tensor 'w': a sum is beyond the range of F16\nhint: use --dtype F32\n" in done.stderr


def write_csv(folder: Path, rows: str) -> Path:
    table = folder / "weights.csv"
    table.write_text("step,weight\n" + rows)
    return table


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    for k in range(2):
        folder = tmp_path / "run" / f"step{k}"
        folder.mkdir(parents=True)
        codes = torch.randn(128, 128).to(torch.float8_e4m3fn)
        save_file(
            {"w.weight": codes, "w.weight_scale_inv": torch.ones(1, 1)},
            folder / "model.safetensors",
        )
    done = hallmarks("average", tmp_path / "run", "--weights", "last:2", "--out", tmp_path / "out")
    assert done.returncode == 2 and "tensor 'w.weight' is quantized" in done.stderr


def test_a_directory_of_another_request_stays(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    first = pipeline.average(small, "last:2", out)
    stat = (out / "model.safetensors").stat()
    again = pipeline.average(small, "last:2", out)
    assert again.bytes_read == 0 and (out / "model.safetensors").stat() == stat
    assert again.as_dict() | {"seconds": 0, "bytes_read": 0} == first.as_dict() | {
        "seconds": 0,
        "bytes_read": 0,
    }
    with pytest.raises(RequestError, match="is of another request") as refused:
        pipeline.average(small, "last:3", out)
    assert "--replace" in refused.value.hint
    assert (out / "model.safetensors").stat() == stat
    pipeline.average(small, "last:3", out, replace=True)
    assert len(json.loads((out / "average.json").read_text())["checkpoints"]) == 3
    (out / "results.txt").write_text("loss 2.0")
    with pytest.raises(RequestError, match=r"results\.txt' was not written by average"):
        pipeline.average(small, "last:2", out, replace=True)
    assert (out / "results.txt").exists() and (out / "average.json").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    pipeline.average(small, "last:1", foreign)  # it was empty
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("")
    for target in (tmp_path / "mine", tmp_path / "mine/notes.txt", small / "step50"):
        with pytest.raises(RequestError, match="is there, and not made by average"):
            pipeline.average(small, "last:2", target, replace=True)
    with pytest.raises(RequestError, match="expected a directory"):
        pipeline.average(small, "last:2", "s3://bucket/out")


def start(run: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    words = ["average", str(run), "--weights", "last:3", "--out", str(out), "--json", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.average", *words[1:]],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of 24 MiB, in two shards."""
    folder = tmp_path_factory.mktemp("large") / "run"
    for step in (1, 2, 3):
        numbers = torch.Generator().manual_seed(step)
        weights = {f"layers.{n}.w": torch.randn(1 << 20, generator=numbers) for n in range(6)}
        write(folder / f"step{step}", weights, "safetensors sharded")
    return folder


def test_memory_stays_within_the_budget(large: Path, small: Path, tmp_path: Path) -> None:
    """Of checkpoints larger than it, beyond what a process takes that averages next to nothing."""
    peaks = []
    for run in (small, large):
        out = tmp_path / ("out" if run is large else "little")
        code = (
            "import resource, pipeline\n"
            f"pipeline.average({str(run)!r}, 'last:3', {str(out)!r}, memory='16MiB')\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
        peaks.append(1024 * int(done.stdout))
    assert (tmp_path / "out" / "average.json").exists()
    assert peaks[1] - peaks[0] < 16 << 20, peaks
    with pytest.raises(pipeline.PlanDoesNotFit, match="3 checkpoints with a piece of each"):
        pipeline.average(large, "last:3", tmp_path / "other", memory="1MiB")


def killed(process: subprocess.Popen[str], out: Path) -> None:
    """Kill it once some of the pieces are written."""
    digests = out.with_name(out.name + ".partial") / ".average" / "digests"
    while process.poll() is None:
        if digests.exists() and digests.stat().st_size > 8 * 20:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    process.communicate()


def test_killed_half_way_it_goes_on(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(large, out, "--memory", "4MiB")
    killed(process, out)
    assert process.returncode == -signal.SIGKILL and not out.exists()
    partial = tmp_path / "out.partial"
    written = (partial / ".average" / "digests").stat().st_size // 8
    assert 20 < written < 6 * 64
    with pytest.raises(RequestError, match=r"out\.partial' is of another request"):
        pipeline.average(large, "last:2", out)
    with (partial / ".average" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RequestError, match="another process writes"):
            pipeline.average(large, "last:3", out)
    with (partial / ".average" / "digests").open("ab") as torn:
        torn.write(b"abc")
    summary = pipeline.average(large, "last:3", out, memory="8MiB")
    assert summary.bytes_read == (6 * 64 - written) * 3 * 4 * 16384
    assert not partial.exists() and not (out / ".average").exists()
    pipeline.average(large, "last:3", tmp_path / "whole")
    for file in out.iterdir():
        assert file.read_bytes() == (tmp_path / "whole" / file.name).read_bytes()


def test_what_is_read_back_differs(large: Path, tmp_path: Path) -> None:
    """A byte that the disk has lost is found, and written again."""
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    killed(start(large, out, "--memory", "4MiB"), out)
    path = partial / "model-00001-of-00002.safetensors"
    with path.open("r+b") as file:
        file.seek(20_000)
        byte = file.read(1)
        file.seek(20_000)
        file.write(bytes([byte[0] ^ 1]))
    done = hallmarks("average", large, "--weights", "last:3", "--out", out)
    assert done.returncode == 1 and "what was read back is not what was written" in done.stderr
    assert not out.exists()
    assert hallmarks("average", large, "--weights", "last:3", "--out", out).returncode == 0
    pipeline.average(large, "last:3", tmp_path / "whole")
    assert (out / path.name).read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


def test_a_source_that_changes_is_told(large: Path, small: Path, tmp_path: Path) -> None:
    run = write_suite(tmp_path / "run", {"w": np.ones((2, 10))})
    (run / "step1/model.safetensors").rename(tmp_path / "away")
    done = hallmarks("average", run, "--weights", "last:2", "--out", tmp_path / "out")
    assert done.returncode == 2 and not (tmp_path / "out").exists()


def test_interrupted_it_says_how_to_go_on(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(large, out, "--memory", "4MiB")
    digests = tmp_path / "out.partial" / ".average" / "digests"
    while process.poll() is None and not (digests.exists() and digests.stat().st_size):
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 130 and not out.exists()
    assert (
        "interrupted (SIGTERM): what was written is kept; rerun the same command to resume"
        in errors
    )
