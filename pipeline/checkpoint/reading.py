"""What a user says of names and files that the tables do not know."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

from pipeline.checkpoint.names import MOST_STAGES, Position, position

GROUPS = ("stage", "step", "tokens", "seed", "branch")
"""Of the regular expression for names."""
_NUMBER = re.compile(r"(\d{1,15}(?:\.\d{1,15})?) ?([kmbt]?)", re.IGNORECASE)
_SCALE = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


@dataclass(frozen=True, slots=True)
class Reading:
    """How names are read, and which files are weights; by default as the tables say."""

    names: str | None = None
    """A regular expression with some of `GROUPS`, searched in the names of checkpoints."""
    weights: tuple[str, ...] = ()
    """Globs of paths in a checkpoint; `*` does not match a `/`."""
    state: str = ""
    """Where in a file of nested dictionaries the weights lie: keys joined by dots."""

    def position(self, name: str) -> Position:
        """Return where a checkpoint stands, by its name."""
        if self.names is None:
            return position(name)
        match = re.search(self.names, name)
        stated = {} if match is None else match.groupdict()
        texts = {group: stated.get(group) or "" for group in GROUPS}
        numbers = {group: _number(text) for group, text in texts.items()}
        step, tokens, stage, branch = (numbers[g] for g in ("step", "tokens", "stage", "branch"))
        is_whole = step is not None and step == round(step)
        side = "" if branch is not None else texts["branch"]
        return Position(
            None if stage is None or stage >= MOST_STAGES else round(stage),
            round(step) if step is not None and is_whole and step < 2**63 else None,
            tokens,
            None if branch is None or branch >= 2**31 else round(branch),
            texts["stage"] if stage is None else "",
            "-".join(filter(None, (texts["seed"], side))),
            fraction=None if is_whole else step,
        )

    def stated(self, name: str) -> Position | None:
        """Return where it stands if the user says how; None: the tables do."""
        return None if self.names is None else self.position(name)

    def are_weights(self, path: str) -> bool:
        """Return whether one of the globs matches a path."""
        return any(
            path.count("/") == glob.count("/")
            and all(map(fnmatch.fnmatchcase, path.split("/"), glob.split("/")))
            for glob in self.weights
        )

    def leads_to_weights(self, folder: str) -> bool:
        """Return whether a path that one of the globs matches could lie below a folder."""
        depth = folder.count("/") + 1
        return any(
            glob.count("/") >= depth
            and all(map(fnmatch.fnmatchcase, folder.split("/"), glob.split("/")))
            for glob in self.weights
        )


BY_TABLES = Reading()


def _number(text: str) -> float | None:
    match = _NUMBER.fullmatch(text.strip())
    return None if match is None else float(match[1]) * _SCALE[match[2].lower()]
