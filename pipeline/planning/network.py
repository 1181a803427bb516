"""What roles and parts of tensors are made from. A plan keeps it: later tables of names make its roles
anew without the source."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoint.blocks import split
from pipeline.checkpoint.components import has_heads
from pipeline.checkpoint.config import of_part
from pipeline.checkpoint.parts import Part, by_head, parts
from pipeline.checkpoint.roles import Role, roles
from pipeline.checkpoint.stated_roles import StatedRoles, parse

PartsOf = Callable[[str, Role, tuple[int, ...], int, bool], tuple[Part, ...]]
"""Name, role, shape, number of elements, and whether these are stored in order → the parts."""


@dataclass(frozen=True, slots=True)
class Network:
    """The names of a network, what its configurations say, and what the user states of it."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of every tensor that is stored, in the order in which files have them."""
    configs: tuple[str, ...]
    """The `config.json` of each path's first checkpoint."""
    stated: str = ""
    """The file of `--roles`."""
    by_head: bool = False

    def roles(self) -> dict[str, Role]:
        """Return what each tensor is.

        Raises:
            RequestError: something of `--roles` fits no tensor.
        """
        known, stated = roles(self.shapes, json.loads(self.configs[0])), self._stated()
        return stated.applied(known) if stated else known

    def parts_of(self) -> PartsOf:
        """Return what divides a tensor into its parts."""
        configs, stated = [json.loads(config) for config in self.configs], self._stated()

        def divided(
            name: str, role: Role, shape: tuple[int, ...], numel: int, is_in_order: bool
        ) -> tuple[Part, ...]:
            fused = stated.fused(name) if stated else None

            def by(config: Mapping[str, Any]) -> tuple[Part, ...]:
                section = dict(of_part(config, role.stack))
                whole = parts(name, role.component, shape, section, role.experts, fused)
                if not self.by_head or not has_heads(split(name)):
                    return whole
                return by_head(whole, numel, section)

            ways = {by(config) for config in configs}
            # A tensor stored transposed has its rows elsewhere than the layouts say; and two networks
            # may lay out tensors of one name differently.
            if len(ways) == 1 and is_in_order:
                return ways.pop()
            return parts(name, role.component, shape, {}, role.experts)

        return divided

    def _stated(self) -> StatedRoles | None:
        return parse(self.stated) if self.stated else None
