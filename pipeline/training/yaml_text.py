"""YAML as settings are written in: 3e-4 is a number, and nothing stands for something else."""

from __future__ import annotations

import re
from typing import Any

import yaml


def parsed(text: str) -> Any:
    """Return what a text states.

    Raises:
        ValueError: it is not valid YAML, has aliases, or makes other objects than plain values.
    """
    try:
        return yaml.load(text, _Settings)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


class _Settings(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # ten lines of them stand for a billion values
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


_Settings.add_implicit_resolver(  # YAML 1.1, which PyYAML reads, takes 3e-4 for a text
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+"),
    list("-+.0123456789"),
)
