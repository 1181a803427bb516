"""`--roles FILE.toml`: from patterns of names to figures, and whatever a file may hold instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from pipeline.checkpoint.roles import Role
from pipeline.checkpoint.stated_roles import parse
from pipeline.errors import RequestError
from pipeline.planning.request import Request
from tests.commands import hallmarks
from tests.suites import trajectory, write_suite

NAMES = {
    "net.trunk_0.token_mixer.all": (12, 8),
    "net.trunk_1.token_mixer.all": (12, 8),
    "net.trunk_1.token_mixer.turned": (8, 6),
    "net.trunk_1.expert_3.a": (4, 8),
    "eye.trunk_0.something": (5, 8),
    "layers.0.mlp.up_proj.weight": (16, 8),
}
FILE = r"""
[[role]]
name = 'trunk_(?P<layer>\d+)\.token_mixer\.all'
component = "attn_qkv"
fused = {q = 4, k = 1, v = 1}

[[role]]
name = 'turned$'
layer = 1
component = "attn_qkv"
fused = ["q", "k", "v"]
columns = true

[[role]]
name = 'expert_(?P<expert>\d+)'
layer = 1
component = "mlp_gate"

[[role]]
name = '^(?P<stack>eye)\.trunk_(?P<layer>\d+)'
component = "other"
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    values = {
        name: trajectory("smooth", 3, int(np.prod(shape)), 0.1, seed).reshape(3, *shape)
        for seed, (name, shape) in enumerate(NAMES.items())
    }
    (tmp_path / "roles.toml").write_text(FILE)
    return write_suite(tmp_path / "run", values)


def rows(store: Path) -> dict[str, tuple[Any, ...]]:
    found = pipeline.open_store(str(store)).sql(
        "SELECT tensor, stack, layer, component, expert FROM tensors"
    )
    return {row[0]: row[1:] for row in found.fetchall()}


def test_what_is_stated_counts_everywhere(suite: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = hallmarks("analyze", suite, "--store", store, "--executor", "local",
                     "--roles", tmp_path / "roles.toml", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert rows(store) == {
        "net.trunk_0.token_mixer.all": (None, 0, "attn_qkv", None),
        "net.trunk_1.token_mixer.all": (None, 1, "attn_qkv", None),
        "net.trunk_1.token_mixer.turned": (None, 1, "attn_qkv", None),
        "net.trunk_1.expert_3.a": (None, 1, "mlp_gate", 3),
        "eye.trunk_0.something": ("eye", 0, "other", None),
        "layers.0.mlp.up_proj.weight": (None, 0, "mlp_up", None),
    }
    from safetensors.numpy import load_file

    first, last = (load_file(suite / f"step{k}" / "model.safetensors") for k in (0, 2))
    query = "SELECT tensor, dot FROM similarity WHERE scope = 'tensor' AND i = 0 AND j = 2"
    dots = dict(pipeline.open_store(str(store)).sql(query).fetchall())

    def dot(name: str, part: tuple[Any, ...]) -> float:
        return float((first[name][part].astype(float) * last[name][part]).sum())

    for name, label, part in (
        ("net.trunk_0.token_mixer.all", "q", np.s_[:8]),
        ("net.trunk_1.token_mixer.all", "k", np.s_[8:10]),
        ("net.trunk_1.token_mixer.all", "v", np.s_[10:]),
        ("net.trunk_1.token_mixer.turned", "k", np.s_[:, 2:4]),
    ):
        assert dots[f"{name}[{label}]"] == pytest.approx(dot(name, part), rel=1e-6, abs=1e-9)


def test_of_manifests_in_python_and_again(suite: Path, tmp_path: Path) -> None:
    """Another file makes other figures of the same run; one that states the same changes nothing."""
    manifest = tmp_path / "run.jsonl"
    manifest.write_text("".join(
        json.dumps({"uri": str(suite / f"step{k}"), "step": k}) + "\n" for k in range(3)
    ))  # fmt: skip
    where, file = tmp_path / "store", tmp_path / "roles.toml"
    pipeline.analyze(manifest, where, executor="local")
    assert rows(where)["net.trunk_1.expert_3.a"] == (None, None, "other", None)
    pipeline.analyze(manifest, where, executor="local", roles=file)
    assert rows(where)["net.trunk_1.expert_3.a"] == (None, 1, "mlp_gate", 3)
    assert pipeline.analyze(manifest, where, executor="local", roles=str(file)).already_complete


def test_plan_names_what_is_not_known(tmp_path: Path) -> None:
    shapes = {"layers.0.odd.weight": (30, 10), "layers.1.odd.weight": (30, 10),
              "layers.0.mlp.up_proj.weight": (20, 10), "layers.1.mlp.up_proj.weight": (20, 10),
              "alone.layers.0.weight": (50, 10)}  # fmt: skip
    values = {
        n: trajectory("walk", 3, int(np.prod(s)), 0.1).reshape(3, *s) for n, s in shapes.items()
    }
    suite = write_suite(tmp_path / "run", values)
    done = hallmarks("plan", suite)
    assert "other: 60.0% of the weights of layers: layers.N.odd.weight (600)" in done.stdout
    assert "--roles FILE.toml" in done.stdout
    told = json.loads(hallmarks("plan", suite, "--json").stdout)["roles"]
    assert told["share_of_layers"] == 0.6 and told["patterns"] == [["layers.N.odd.weight", 600]]
    pipeline.analyze(suite, tmp_path / "store", executor="local")
    query = "SELECT severity, message FROM findings WHERE kind = 'unknown_roles'"
    ((severity, message),) = pipeline.open_store(tmp_path / "store").sql(query).fetchall()
    assert severity == "warning" and "60.0%" in message and "--roles" in message
    file = tmp_path / "roles.toml"
    file.write_text("[[role]]\nname = 'odd'\ncomponent = 'mlp_down'\n")
    assert "--roles" not in hallmarks("plan", suite, "--roles", file).stdout


WRONG = {
    "": "expected tables",
    "role = 3": "expected tables",
    "[[role]]\nname='x'\ncomponent='norm'\n[other]": "expected tables",
    "[[role]\n": "not valid TOML",
    "[[role]]\nname='x'": "expected component, layer",
    "[[role]]\ncomponent='norm'": "a regular expression",
    "[[role]]\nname='('\ncomponent='norm'": "a regular expression",
    "[[role]]\nname='x'\ncomponent='attention'": "one of embed, position",
    "[[role]]\nname='x'\nlayer=-1": "layer a whole number",
    "[[role]]\nname='x'\nlayer=true": "layer a whole number",
    "[[role]]\nname='x'\nlayer=9999999999": "layer a whole number",
    "[[role]]\nname='x'\nstack=3": "stack a text",
    "[[role]]\nname='x'\nlayers=3": "or columns",
    "[[role]]\nname='(?P<head>x)'": "groups layer, stack and expert",
    "[[role]]\nname='(?P<layer>x)'\nlayer=1": "not both",
    "[[role]]\nname='x'\nfused=['q']": "fused of q",
    "[[role]]\nname='x'\nfused=['q', 'gate']": "attention or of an MLP",
    "[[role]]\nname='x'\nfused={q=0, k=1}": "whole numbers",
    "[[role]]\nname='x'\nfused=['q', 'k']\ngroups=2.5": "whole numbers",
    "[[role]]\nname='x'\nfused=['q', 'k']\ncolumns=1": "columns true or false",
}


@pytest.mark.parametrize("text", WRONG)
def test_files_that_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match=WRONG[text]):
        parse(text)


def test_mistakes_are_one_line(suite: Path, tmp_path: Path) -> None:
    def message(text: str | None) -> str:
        file = tmp_path / "mine.toml"
        file.unlink(missing_ok=True)
        if text is not None:
            file.write_text(text)
        done = hallmarks("plan", suite, "--roles", file)
        assert done.returncode == 2 and len(done.stderr.splitlines()) <= 2
        return done.stderr

    assert "No such file" in message(None)
    assert "matches no tensor" in message("[[role]]\nname='nowhere'\ncomponent='norm'")
    assert "captures no number" in message("[[role]]\nname='(?P<layer>net)'\ncomponent='norm'")
    with pytest.raises(RequestError, match="expected UTF-8"):
        (tmp_path / "binary").write_bytes(b"\xff\xfe")
        Request(str(suite), roles=str(tmp_path / "binary"))


@given(st.text(max_size=60) | st.text("[]role=\n'\"name xyz{}123,.()?P<>", max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    role = Role(None, None, "other", None, "weight")
    try:
        applied = parse(text).applied({"layers.0.x": role})
    except RequestError:
        return
    assert applied.keys() == {"layers.0.x"}
