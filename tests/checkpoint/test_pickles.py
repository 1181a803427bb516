"""What people keep beside weights, and in place of them: read, left out with a reason, or refused."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import io
import os
import pickle
import subprocess
import types
import uuid
import warnings
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from pipeline.checkpoint.formats import read_header
from pipeline.checkpoint.stored import StoredTensor
from pipeline.checkpoint.weight_file import WeightFile
from pipeline.errors import FormatError
from tests.checkpoint import in_memory
from tests.checkpoint.test_torch_file import values

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

KINDS = ["zip", "legacy"]
WEIGHTS = {"layers.0.w": torch.arange(6.0).view(2, 3), "layers.1.w": torch.ones(4).bfloat16()}


@dataclasses.dataclass
class Config:
    width: int = 8
    rates: list[float] = dataclasses.field(default_factory=lambda: [0.1, 0.2])


class Precision(enum.Enum):
    HALF = "half"


class Flags(enum.IntFlag):
    A = 1
    B = 2


class Row(NamedTuple):
    loss: float


class Attributes(dict):
    """As addict's and easydict's."""


class Losses(list):
    pass


class Slots:
    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a, self.b = 1, {"x": [1, 2]}


class Tree:
    """As OmegaConf's: its state is a dictionary of its own making, with the parent in it."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {"lr": 1e-3, "self": self}

    def __getstate__(self) -> dict[str, Any]:
        return {"_content": self.content, "_metadata": (Config(), None), "_parent": self}


class Keyed:
    """Made with keyword arguments."""

    def __new__(cls, *, size: int) -> Keyed:
        del size
        return super().__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"size": 3}


class Marked(torch.Tensor):
    pass


def with_attribute(tensor: torch.Tensor) -> torch.Tensor:
    tensor.note = "x"  # pyright: ignore[reportAttributeAccessIssue]
    return tensor


with warnings.catch_warnings():  # sparse rows and nested tensors are new to torch
    warnings.simplefilter("ignore")
    ROWS = torch.eye(3).to_sparse_csr()
    QUANTIZED = torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)
    BY_CHANNEL = torch.quantize_per_channel(
        torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.quint8
    )
    NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])

TAKEN_BY_TORCH: dict[str, Any] = {
    "set": {1, (2, 3)}, "bytes": b"abc", "bytearray": bytearray(b"abc"), "complex": 1j,
    "device": torch.device("cuda:1"), "dtype": torch.bfloat16, "odd dtype": torch.uint4,
    "layout": torch.strided, "size": torch.Size([2, 3]), "big": 2**80, "schedule": torch.optim.lr_scheduler.StepLR(
        torch.optim.SGD([torch.ones(2, requires_grad=True)]), 1).state_dict(),
    "counter": collections.Counter("abca"), "infinite": float("inf"), "nothing": None,
    "ordered": collections.OrderedDict(a=1), "half a pair": "\ud800", "long": "x" * 100_000,
    "keys": {(1, (2, 3)): 1, 2**90: 2, (1,) * 100: 3, None: 4, 1.5: 5, "x" * 70_000: 6},
    "buffer": torch.nn.Buffer(torch.ones(2)), "attribute": with_attribute(torch.ones(2)),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "parameter with attribute": with_attribute(torch.nn.Parameter(torch.ones(2))),
    "complex tensor": torch.zeros(2, dtype=torch.complex64),
    "wide complex": torch.zeros(2, dtype=torch.complex128),
    "sparse": torch.eye(3).to_sparse(), "rows": ROWS,
    "quantized": QUANTIZED,
    "by channel": BY_CHANNEL,
    "meta": torch.empty(2, device="meta"), "uint64": torch.zeros(2, dtype=torch.uint64),
    "nested": NESTED,
    "generator": torch.get_rng_state(), "expanded": torch.ones(1).expand(4),
    "float4": torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "exponents": torch.zeros(2, dtype=torch.uint8).view(torch.float8_e8m0fnu),
    "optimizer": torch.optim.AdamW([torch.ones(2, requires_grad=True)]).state_dict(),
}  # fmt: skip
OTHERS: dict[str, Any] = {
    "namespace": argparse.Namespace(lr=1, nested=argparse.Namespace(a=[1])),
    "simple namespace": types.SimpleNamespace(a=1), "dataclass": Config(), "enum": Precision.HALF,
    "flags": Flags.A | Flags.B, "row": Row(0.5), "attributes": Attributes(a=1, b=Attributes()),
    "losses": Losses([1.0, 2.0]), "slots": Slots(), "tree": Tree(), "keyed": Keyed(size=3),
    "path": Path("/x"), "pure path": PurePosixPath("a/b"), "windows": PureWindowsPath("c:/x"),
    "date": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), "took": datetime.timedelta(1),
    "array": np.arange(3), "scalar": np.float64(1.5), "random": np.random.default_rng(0),
    "numpy dtype": np.dtype("f4"), "defaults": collections.defaultdict(list, a=[1]),
    "double defaults": collections.defaultdict(functools.partial(collections.defaultdict, int)),
    "frozen": frozenset({1, frozenset({2})}), "slice": slice(1), "range": range(3),
    "queue": collections.deque([1, 2], maxlen=4), "decimal": decimal.Decimal("0.1"),
    "fraction": fractions.Fraction(1, 3), "uuid": uuid.UUID(int=7), "class": Config,
    "method": Config().__eq__, "function": argparse.ArgumentParser, "error": ValueError("x"),
    "by object": {Precision.HALF: 1, Path("/x"): 2, frozenset({1}): 3}, "state": np.random.get_state(),
    "marked": torch.ones(2).as_subclass(Marked),  # pyright: ignore[reportArgumentType]
    "bigger": 2**3000,
}  # fmt: skip


def saved(found: Any, kind: str, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    torch.save(
        found, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=kind == "zip"
    )
    return buffer.getvalue()


def read(data: bytes, state: str = "") -> dict[str, StoredTensor]:
    file = in_memory(data, "x.pt")
    file.state = state
    return read_header(file)


def check(data: bytes, found: dict[str, StoredTensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(values(data, found[name]).view(tensor.shape), tensor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TAKEN_BY_TORCH)
def test_what_torch_loads_is_read(name: str, kind: str) -> None:
    state = {"model": WEIGHTS, "extra": TAKEN_BY_TORCH[name], "list": [TAKEN_BY_TORCH[name]]}
    try:
        data = saved(state, kind)
    except (AttributeError, KeyError, NotImplementedError, RuntimeError):
        pytest.skip("torch cannot write it in that format")
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except (AttributeError, RuntimeError):
        pytest.skip("torch does not read what it wrote")
    check(data, read(data), WEIGHTS)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OTHERS)
def test_what_lies_beside_weights_is_not_looked_at(name: str, kind: str, protocol: int) -> None:
    data = saved({"model": WEIGHTS, "extra": {"x": [OTHERS[name]]}}, kind, protocol)
    with pytest.raises((pickle.UnpicklingError, TypeError)):
        torch.load(io.BytesIO(data), weights_only=True)
    check(data, read(data), WEIGHTS)


REASONS = {
    "sparse": (torch.eye(3).to_sparse(), "sparse"),
    "rows": (ROWS, "sparse"),
    "quantized": (QUANTIZED, "quantized"),
    "meta": (torch.empty(2, device="meta"), "has no values"),
    "wide complex": (torch.zeros(2, dtype=torch.complex128), "stored as torch.ComplexDouble"),
    "nested": (NESTED, "nested"),
}


@pytest.mark.parametrize("name", REASONS)
def test_tensors_without_plain_values_do_not_refuse_the_others(name: str) -> None:
    tensor, reason = REASONS[name]
    data = saved(WEIGHTS | {"odd": tensor}, "zip")
    found = read(data)
    assert reason in found.pop("odd").unreadable
    check(data, found, WEIGHTS)


def test_a_tensor_of_an_unknown_class_is_refused() -> None:
    marked = torch.ones(2).as_subclass(Marked)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FormatError, match=r"found 'odd' of the class '.*test_pickles\.Marked'"):
        read(saved(WEIGHTS | {"odd": marked}, "zip"))


class Calls:
    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.call

    def __repr__(self) -> str:
        return getattr(self.call[0], "__name__", repr(self.call[0]))


def test_a_tensor_made_by_an_unknown_function_is_refused() -> None:
    made = Calls(np.asarray, torch.ones(2))
    with pytest.raises(FormatError, match=r"of the class 'numpy\.asarray'"):
        read(saved(WEIGHTS | {"odd": made}, "zip"))
    assert read(saved({"model": WEIGHTS, "extra": made}, "zip")).keys() == WEIGHTS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_whole_networks_are_refused(kind: str) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    for state in (network, {"model": network}, {"model": WEIGHTS, "loss": network}):
        with pytest.raises(FormatError, match=r"names 'torch\.nn\.modules"):
            read(saved(state, kind))


@pytest.mark.parametrize(
    "call",
    [
        Calls(os.system, "touch hacked"), Calls(eval, "open('hacked', 'w')"),
        Calls(exec, "open('hacked', 'w')"), Calls(open, "hacked", "w"),
        Calls(subprocess.check_call, ["touch", "hacked"]), Calls(__import__, "os"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_programs_beside_weights_are_told(
    call: Calls, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saved({"model": WEIGHTS, "extra": call}, kind)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FormatError, match="found a pickle that names") as caught:
        read(data)
    assert "nothing of it was executed" in str(caught.value.hint)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "call",
    [
        Calls(Path.touch, Path("hacked")), Calls(np.save, "hacked", np.ones(2)),
        Calls(torch.save, 1, "hacked"), Calls(Config, state={"__class__": Path}),
        Calls(getattr, Path("hacked"), "touch"),
        Calls(Calls(getattr, Path("hacked"), "touch"), 7), Calls(pickle.loads, b"\x80\x02K\x01."),
    ],
    ids=str,
)  # fmt: skip
def test_nothing_is_called(call: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = pickle.dumps({"extra": call}, 2) if callable(call.call[0]) else None
    if program is None:  # what is called is itself made by a call
        made = pickle.dumps(call.call[0], 2)[2:-1]
        program = b"\x80\x02}X\x05\x00\x00\x00extra" + made + b"K\x07\x85Rs."
    monkeypatch.chdir(tmp_path)
    from tests.checkpoint.test_torch_file import pickled

    with pytest.raises(FormatError, match="found no tensors in a pickle that names"):
        read(pickled(program))
    assert not list(tmp_path.iterdir())


def test_dictionaries_of_any_class_are_state_dicts() -> None:
    for model in (Attributes(WEIGHTS), collections.defaultdict(int, WEIGHTS)):
        for state in (model, {"model": model}, Attributes(model=model)):
            data = saved(state, "zip")
            check(data, read(data), WEIGHTS)


def test_dictionaries_within_a_state_dict() -> None:
    """As Megatron-LM nests what embeds and what encodes."""
    inner = {"embedding": {"word": {"weight": torch.ones(2)}}, "encoder": {"a.b": torch.ones(3)}}
    state = {"model": {"language_model": inner, "none": {}}, "optimizer": {"x": torch.ones(2)}}
    data = saved(state, "zip")
    expected = {"embedding.word.weight": torch.ones(2), "encoder.a.b": torch.ones(3)}
    check(data, read(data), {f"language_model.{n}": t for n, t in expected.items()})


def test_a_configuration_called_model_is_no_state_dict() -> None:
    data = saved({"model": {"name": "small", "width": 8}, "state_dict": WEIGHTS}, "zip")
    check(data, read(data), WEIGHTS)
    data = saved({"model": {"module": WEIGHTS, "head": {"w": torch.ones(2)}}}, "zip")
    nested = {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}
    check(data, read(data), nested | {"head.w": torch.ones(2)})


AVERAGE = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
SEVERAL = {
    "model": WEIGHTS,
    "model_ema": AVERAGE,
    "state": {"model": AVERAGE, "step.model": {"ema": AVERAGE}},
    "teacher": Attributes(AVERAGE),
    "deep": {"a": {"b": {"c": AVERAGE}}},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "key", ["model_ema", "state.model", "state.step.model.ema", "teacher", "deep.a.b.c"]
)
def test_state_says_where_the_weights_lie(key: str, kind: str) -> None:
    data = saved(SEVERAL, kind)
    check(data, read(data, key), AVERAGE)
    check(data, read(data), WEIGHTS)


def test_state_that_is_not_there() -> None:
    with pytest.raises(FormatError, match="under 'student'.*found no tensors") as caught:
        read(saved(SEVERAL, "zip"), "student")
    assert "'model', 'model_ema', 'state', 'teacher', 'deep'" in str(caught.value.hint)
    with pytest.raises(FormatError, match="found no tensors") as caught:
        read(saved({"student": WEIGHTS, "teacher": WEIGHTS}, "zip"))
    assert "--state" in str(caught.value.hint) and "'student', 'teacher'" in str(caught.value.hint)


def test_state_of_a_format_without_any() -> None:
    from safetensors.torch import save

    data = save(WEIGHTS)
    file = WeightFile("x.safetensors", len(data), "x", lambda a, b: data[a:b], state="ema")
    with pytest.raises(FormatError, match="--state 'ema' names what lies in a PyTorch file"):
        read_header(file)


def test_a_dictionary_that_repeats_itself() -> None:
    around: dict[str, Any] = {"w": torch.ones(2)}
    around |= {f"k{n}": around for n in range(30)}
    with pytest.raises(FormatError, match="found a cycle"):
        read(saved({"model": around}, "zip"))


def test_old_files_with_an_optimizer() -> None:
    """Storages of what is no weight lie between those that are."""
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    extra = torch.zeros(5, dtype=torch.complex128)
    quantized = torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)
    state = {"a": [extra, quantized], "optimizer": optimizer.state_dict(), "b": extra + 1}
    data = saved({**state, "model": network.state_dict()}, "legacy")
    check(data, read(data), network.state_dict())
