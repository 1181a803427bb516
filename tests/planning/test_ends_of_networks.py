"""What is inside a network is in its body: no layer's tensor counts as an embedding or a head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.store.query import Store
from tests.suites import trajectory, write_suite

COUNT = 3
TRANSFORMER = "layers.0.attention.wq.weight"

# one tensor beside a transformer's, and whether it belongs to the body
NAMES = {
    "layers.0.mlp.fc.weight": True,
    "layers.0.ffn.fc.bias": True,
    "layers.1.experts.0.fc.weight": True,
    "layers.1.attention.heads.0.q_proj.weight": True,
    "blocks.1.classifier.weight": True,
    "h.3.score.weight": True,
    "model.layers.61.shared_head.head.weight": True,
    "model.layers.61.embed_tokens.weight": True,
    "layers.0.attn.pos_embed": True,
    "layers.0.mlp.shared.weight": True,
    "ffn.fc.weight": True,
    "experts.0.fc.weight": True,
    "attention.heads.0.q_proj.weight": True,
    "shared.attn.o_proj.weight": True,
    "fc.weight": False,
    "model.head.weight": False,
    "heads.0.weight": False,
    "classifier.1.weight": False,
    "lm_head.weight": False,
    "shared.weight": False,
    "patch_embed.0.proj.weight": False,
    "pos_embed": False,
}


def norms(shapes: dict[str, tuple[int, ...]], where: Path) -> tuple[dict[str, float], list[tuple]]:
    """Return the first norm of each whole scope, and what each tensor is."""
    values = {
        name: trajectory("smooth", COUNT, int(np.prod(shape)), 0.1, seed).reshape(COUNT, *shape)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    source = write_suite(where / "run", values)
    pipeline.analyze(str(source), str(where / "store"), executor="local")
    store = Store(str(where / "store"))
    query = "SELECT scope, norm FROM path WHERE k = 0 AND scope IN ('model', 'body')"
    roles = "SELECT tensor, layer, component FROM tensors ORDER BY tensor"
    return dict(store.sql(query).fetchall()), store.sql(roles).fetchall()


@pytest.mark.parametrize("within", [True, False])
def test_the_body_holds_what_is_within(within: bool, tmp_path: Path) -> None:
    shapes = {TRANSFORMER: (8, 8)} | {n: (8, 4) for n, inside in NAMES.items() if inside is within}
    found, roles = norms(shapes, tmp_path)
    components = {component for _, _, component in roles}
    if within:
        assert found["body"] == found["model"]
        assert not components & {"embed", "unembed", "position"}
        assert ("layers.1.attention.heads.0.q_proj.weight", 1, "attn_q") in roles
    else:
        alone, _ = norms({TRANSFORMER: (8, 8)}, tmp_path / "alone")
        assert found["body"] == alone["body"] < found["model"]
        assert components == {"attn_q", "embed", "unembed", "position"}


def test_of_other_networks_too(tmp_path: Path) -> None:
    """Blocks are numbered by their names there; the head is none of them, and is the head."""
    shapes = {
        "features.0.weight": (4, 3, 3, 3),
        "features.10.se.fc.weight": (4, 4),
        "features.2.weight": (4, 4, 3, 3),
        "classifier.0.weight": (6, 4),
        "classifier.3.weight": (2, 6),
    }
    found, roles = norms(shapes, tmp_path)
    assert roles == [
        ("classifier.0.weight", None, "unembed"),
        ("classifier.3.weight", None, "unembed"),
        ("features.0.weight", 0, "conv"),
        ("features.10.se.fc.weight", 2, "other"),
        ("features.2.weight", 1, "conv"),
    ]
    assert found["body"] < found["model"]
    store = Store(str(tmp_path / "store"))
    shown = store.sql("SELECT DISTINCT component FROM indicators WHERE scope = 'component'")
    assert {row[0] for row in shown.fetchall()} == {"unembed", "conv", "other"}
