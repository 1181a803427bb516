"""The page of sources: what is recognised, from the tables that the program reads by and the tests' suites."""

from __future__ import annotations

from collections.abc import Iterable

from docs.markdown import table
from pipeline.checkpoint.dtypes import WEIGHT_DTYPES
from pipeline.checkpoint.formats import FORMATS
from pipeline.checkpoint.names import EXAMPLES, Position
from tests.networks import stored
from tests.test_public_suites import SUITES
from tests.test_what_people_have import FOREIGN, HUB, LAYOUTS, SERIES

_ABOUT = """# Sources and suites

Made by `make pages` from the tables that the program reads by, and from the suites that its tests make: small copies of the shape
(names, files, formats, buffers, fused projections) of what people have. None of the tests needs the suites themselves.

SOURCE is one of

| SOURCE | its checkpoints |
| --- | --- |
| `org/name`, `hf://org/name` | the branches or tags of a Hub repository whose names state a step; else its folders, or its commits (`--layout`) |
| `hf://org/name@revision` | the folders in one revision |
| a directory | the folders in it that hold weights (`checkpoint-100/`, `global_step100/`), which may lie some levels down, or its weight files |
| `s3://…`, `gs://…`, `az://…` | the same in a bucket |
| a table: `.csv`, `.jsonl`, `.parquet` | a row each: `uri`, and if known `name`, `step`, `tokens`, `state`; paths begin where the table lies; other columns of numbers are metrics |
| a repository's folder in a Hub cache | the revisions that were downloaded |

Read besides, where they are: `trainer_state.json` of transformers' Trainer, `metrics.csv` of Lightning's CSVLogger, `metrics.jsonl` of
[`Recorder`](recording.md) and TensorBoard's event files (`pip install 'hallmarks[tensorboard]'`), in the last checkpoint that has one or beside the checkpoints; `training` in the last
`config.json`; columns of numbers in a table. They become view `training` and column `runs.settings`; `--set`, `--settings` and `--training`
state what is not there.

What the tables do not know can be said: `--names` reads steps from names by a regular expression, `--weights` says which files of a
checkpoint are its weights, `--state` where in a PyTorch file they lie, `--roles` what a tensor is, `--seeds` which of several runs
side by side is meant.

```sh
hallmarks plan outputs/run3 --names 'upd(?P<step>\\d+)'
hallmarks plan EleutherAI/pythia-70m --steps 0:143000:1000
hallmarks plan hf://allenai/OLMo-2-0425-1B --revisions 'stage1-*'
hallmarks plan s3://bucket/training --weights 'ema/*'
hallmarks plan suite.csv --run suite
hallmarks plan outputs/run3 --set lr=3e-4 --set seed=1 --training evaluations.csv
```
"""


def page() -> str:
    """Return the text of docs/sources.md."""
    return "\n".join(
        [
            _ABOUT,
            "## Public suites\n\nCheckpoints are in the order of the path. Revisions and tensors that do not count are named by `plan`.\n",
            table(
                ("suite", "as", "checkpoints", "other revisions", "tensors that do not count"),
                [
                    (
                        name,
                        s.exposure,
                        _some(s.checkpoints),
                        _some(s.others),
                        "; ".join(sorted(s.left_out)),
                    )
                    for name, s in SUITES.items()
                ],
            ),
            "Of these the names alone are tested:\n",
            table(
                ("suite", "branches", "left out"),
                [(name, _some(taken), _some(others)) for name, (taken, others, _) in HUB.items()],
            ),
            "## What trainers write\n\nFolders, a checkpoint each:\n",
            table(
                ("written by", "its weights", "named, and not read"),
                [
                    (name, f"`{weights}`", _some(others))
                    for name, (_, weights, others) in LAYOUTS.items()
                ],
            ),
            "Files, a checkpoint each:\n",
            table(
                ("written by", "in order", "named, and not read"),
                [(name, _some(taken), _some(others)) for name, (taken, others) in SERIES.items()],
            ),
            "## Names\n\nWhat is stated by a name, of a branch, tag, folder, file or commit:\n",
            table(
                ("name", "is read as"), [(f"`{name}`", _read(at)) for name, at in EXAMPLES.items()]
            ),
            "## Formats\n\nIn order of preference, where a checkpoint has several. Nothing of a pickle is executed.\n",
            table(
                ("format", "files"),
                [(f.name, _some(f.suffixes) or "by their names") for f in FORMATS],
            ),
            f"Numbers: {', '.join(WEIGHT_DTYPES)}. Not read, but named: {_some(FOREIGN, 30)}.\n",
            "## Networks\n\nRoles, layers and heads come from names, shapes and, for fused projections, the configuration. They"
            f" are tested on the names and shapes of {len(stored('language'))} language models of transformers"
            f" and {len(stored('vision'))} networks of timm; `plan` names what has no known role.\n",
        ]
    )


def _some(names: Iterable[str], most: int = 6) -> str:
    """Return names, the middle of many left out."""
    shown = [f"`{name}`" for name in names]
    if len(shown) > most:
        shown = [*shown[: most - 1], "…", shown[-1]]
    return ", ".join(shown)


def _read(at: Position) -> str:
    """Return what a name states, in words."""
    stated = {
        "stage": at.word or at.stage,
        "step": at.step if at.fraction is None else at.fraction,
        "tokens": None if at.tokens is None else f"{at.tokens:,.0f}",
        "epoch": at.epoch,
        "seed": at.seed or None,
        "branch": at.branch,
    }
    words = [f"{what} {value:,}" if isinstance(value, int) else f"{what} {value}"
             for what, value in stated.items() if value is not None]  # fmt: skip
    return ", ".join(words) if at.is_known else "no checkpoint of a series"
