"""Names and shapes of real networks, as data: what roles are held against.

`networks.json.xz` holds every causal and masked language model of transformers that can be built
(`language_models` makes it again; a slow test compares), and 30 networks of timm by their own names. Of
layers that hold the same in the same shapes only the first is kept, under its own number.

    python -m tests.networks        writes the language models anew
"""

from __future__ import annotations

import json
import lzma
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "networks.json.xz"
_NUMBER = re.compile(r"\b\d+\b")
_COUNTS = ("num_experts", "n_routed_experts", "num_local_experts")
EXPERTS = 8  # of networks that have more: they are numerous and alike


def stored(kind: str) -> dict[str, dict[str, Any]]:
    """Return the networks of a kind, `language` or `vision`, by name.

    Each has `shapes`, and the names of what its own methods say is its input embedding (`embed`) and
    output embedding (`head`), or of its classifier.
    """
    return json.loads(lzma.decompress(DATA.read_bytes()))[kind]


def language_models() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the language models of the installed transformers that can be built without weights."""
    import transformers
    from transformers.models.auto import modeling_auto

    transformers.logging.set_verbosity_error()
    seen: set[str] = set()
    for mapping in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    ):
        for model_type, classes in mapping.items():
            for name in [classes] if isinstance(classes, str) else classes:
                if name in seen:
                    continue
                seen.add(name)
                model = _built(model_type, getattr(transformers, name))
                if model is not None:
                    yield name, _described(model)


def _built(model_type: str, cls: Any) -> Any:
    """Return a network of default configuration on the meta device; None: there is none."""
    import torch
    import transformers

    for make in (transformers.CONFIG_MAPPING[model_type], cls.config_class):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                config = make(**({"is_decoder": True} if "Reformer" in cls.__name__ else {}))
                for section in (config, getattr(config, "text_config", None)):
                    for count in _COUNTS:
                        if (getattr(section, count, None) or 0) > EXPERTS:
                            setattr(section, count, EXPERTS)
                with torch.device("meta"):
                    return cls(config)
        except Exception:  # whatever keeps a network from being built by its defaults
            continue
    return None


def _described(model: Any) -> dict[str, Any]:
    parameters = dict(model.named_parameters(remove_duplicate=False))

    def names(module: Any) -> list[str]:
        weight = getattr(module, "weight", None)
        return [name for name, p in parameters.items() if weight is not None and p is weight]

    try:
        embed = names(model.get_input_embeddings())
    except NotImplementedError:
        embed = []
    shapes = {name: list(p.shape) for name, p in parameters.items()}
    return {
        "embed": embed,
        "head": names(model.get_output_embeddings()),
        "shapes": distinct(shapes),
    }


def distinct(shapes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Return the tensors without those of layers that repeat an earlier one."""
    layers: dict[str, dict[str, list[int]]] = {}
    for name, shape in shapes.items():
        number = _NUMBER.search(name)
        layer = name[: number.end()] if number else ""
        layers.setdefault(layer, {})[name[len(layer) :]] = shape
    kept: set[str] = set()
    seen: set[str] = set()
    for layer, inside in layers.items():
        told = json.dumps([_NUMBER.sub("N", layer), inside])
        if told not in seen or not layer:
            kept.add(layer)
        seen.add(told)
    return {
        layer + rest: shape
        for layer, inside in layers.items()
        if layer in kept
        for rest, shape in inside.items()
    }


def write(language: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    """Write the data file."""
    text = json.dumps({"language": language, "vision": vision}, separators=(",", ":"))
    DATA.write_bytes(lzma.compress(text.encode(), preset=9))


if __name__ == "__main__":
    write(dict(language_models()), stored("vision"))
