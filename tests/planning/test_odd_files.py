"""Configurations, indexes and manifests of odd types end in one line, or do not matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipeline import plan
from pipeline.errors import FormatError
from tests.commands import hallmarks
from tests.suites import write_suite

DEEP = "[" * 100_000
HUGE = "9" * 5000
FUSED = "model.layers.0.self_attn.qkv_proj.weight"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With tensors that a configuration has something to say about."""
    rng = np.random.default_rng(0)
    values = {
        FUSED: rng.standard_normal((3, 24, 8)),
        "lm_head.weight": rng.standard_normal((3, 8, 8)),
    }
    return write_suite(tmp_path_factory.mktemp("odd") / "run", values)


def told(*arguments: str) -> tuple[int, list[str]]:
    """Return exit code and what `plan` says on standard error."""
    done = hallmarks("plan", *arguments)
    return done.returncode, done.stderr.splitlines()


ODD: tuple[Any, ...] = (None, [], {}, [{}], "x", -1, 0, 1e308, 10**30, True, {"a": [1]})


def test_settings_of_odd_types_do_not_matter(suite: Path) -> None:
    """All at once: the configuration says nothing then."""
    for value in ODD:
        names = ("model_type", "num_attention_heads", "num_key_value_heads", "ffn_config",
                 "attn_config", "tie_word_embeddings", "multi_query", "n_head")  # fmt: skip
        (suite / "step0" / "config.json").write_text(json.dumps(dict.fromkeys(names, value)))

        assert len(plan(str(suite), by_head=True).tensors) == 2
    (suite / "step0" / "config.json").write_text(json.dumps({"model_type": ["phi3"]}))
    assert told(str(suite), "--by-head") == (0, [])


def test_more_heads_than_any_network_has_are_none(suite: Path) -> None:
    """A number in a configuration would make a part for each element."""
    config = {"model_type": "gpt_neox", "num_attention_heads": 192, "n_head": 64}
    (suite / "step0" / "config.json").write_text(json.dumps(config))

    assert plan(str(suite), by_head=True)
    config = {"model_type": "llama", "num_attention_heads": 10**9}
    (suite / "step0" / "config.json").write_text(json.dumps(config))
    (tensor, _) = plan(str(suite), by_head=True).tensors
    assert len(tensor.parts) == 1


@pytest.mark.parametrize("text", [DEEP, "{" + '"a":{' * 100_000, f'{{"a":{HUGE}}}', "\udcff", "{"])
def test_a_configuration_that_is_none(text: str, suite: Path) -> None:
    (suite / "step0" / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    code, lines = told(str(suite))
    (suite / "step0" / "config.json").write_text("{}")
    assert code == 2 and len(lines) == 2 and "config.json: not valid JSON" in lines[0]
    assert lines[1].startswith("hint: fetch the file again, or leave the checkpoint out")


INDEXES = (
    DEEP, "null", "[]", '"x"', "{}", '{"weight_map":[]}', '{"weight_map":{"a":1}}',
    '{"weight_map":{"a":["x"]}}', '{"weight_map":{"a":null}}', f'{{"weight_map":{DEEP}}}',
    f'{{"metadata":{DEEP},"weight_map":{{"a":"model.safetensors"}}}}', '{"weight_map":{"a":"x"}',
    f'{{"weight_map":{{"a":{HUGE}}}}}', '{"weight_map":{"a":"\\ud800"}}',
)  # fmt: skip


def test_indexes_that_are_none(tmp_path: Path, suite: Path) -> None:

    for number, text in enumerate(INDEXES):
        folder = tmp_path / str(number) / "step1"
        folder.mkdir(parents=True)
        (folder / "model.safetensors.index.json").write_text(text)
        (folder.parent / "step2").symlink_to(suite / "step2")
        with pytest.raises(FormatError, match="weight_map of shard names"):
            plan(str(folder.parent))


def _rows(*rows: Any) -> str:
    return "\n".join(json.dumps(row) for row in rows)


MANIFESTS = {
    "null.jsonl": "null\n{}",
    "lists.jsonl": "[]\n[]",
    "deep.jsonl": f'{{"uri":{DEEP}',
    "deep too.jsonl": f'{{"x":{DEEP}',
    "not.jsonl": "nonsense",
    "empty.jsonl": "",
    "uri.jsonl": _rows({"uri": ["a"]}, {"uri": {"a": 1}}),
    "number.jsonl": _rows({"uri": 3}, {"uri": 4}),
    "nul.jsonl": _rows({"uri": "a\0b"}, {"uri": "b"}),
    "long.jsonl": _rows({"uri": "a" * 3000}, {"uri": "b"}),
    "longer.jsonl": _rows({"uri": "a" * 10**6}, {"uri": "b"}),
    "absent.jsonl": _rows({"path": "a"}, {"path": "b"}),
    "huge.csv": f"uri,step\nDIR/step0,{HUGE}\nDIR/step1,2\n",
    "nan.csv": "uri,step\nDIR/step0,-inf\nDIR/step1,2\n",
    "ragged.csv": "uri,step\nDIR/step0,1,2,3\n",
    "twice.csv": "uri,uri\nDIR/step0,DIR/step1\n",
    "bytes.csv": "uri\n\udcff\udcfe\n",
    "not.parquet": "PAR1 nonsense PAR1",
    "empty.csv": "",
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_that_are_none(name: str, tmp_path: Path, suite: Path) -> None:
    text = MANIFESTS[name].replace("DIR", str(suite))
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    code, lines = told(str(tmp_path / name))
    assert code == 2
    assert lines[0].startswith("error: ") and len(lines) <= 2 and len(lines[0]) < 600


def test_numbers_of_odd_kinds_in_a_manifest(tmp_path: Path, suite: Path) -> None:
    uris = [str(suite / f"step{k}") for k in (0, 1)]
    odd: tuple[Any, ...] = ([1], {"a": 1}, "x", 10**400, -1, float("nan"))
    for number, value in enumerate(odd):
        for column in ("step", "tokens"):
            path = tmp_path / f"{number}{column}.jsonl"
            path.write_text(_rows({"uri": uris[0], column: value}, {"uri": uris[1], column: 1}))
            code, lines = told(str(path)) if number in (0, 3) else (2, [])
            assert code == 2
            assert not lines or f"expected a number as {column}" in lines[0]


def test_a_table_that_is_larger_than_its_file_is_not_unpacked(tmp_path: Path) -> None:
    """A bit a row, as one value repeats; of many rows, and of a long one."""
    for rows, length, said in (
        (2_000_000, 1000, "at most 100,000 rows, found 2,000,000"),
        (100_000, 10_000_000, "a text of 10,000,000 characters"),
    ):
        indices = pa.array(np.zeros(rows, np.int8))
        values = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * length]))
        path = tmp_path / f"{rows}.parquet"
        pyarrow.parquet.write_table(pa.table({"uri": values}), path)
        assert path.stat().st_size < 12_000_000
        code, lines = told(str(path))
        assert code == 2 and said in lines[0]
