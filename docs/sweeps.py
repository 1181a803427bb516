"""The page of sweeps: what can be set, from the table that configurations are checked against."""

from __future__ import annotations

from pathlib import Path

from docs.markdown import table
from pipeline.sweep.config import read_sweep
from pipeline.sweep.settings import KEYS

STUDIES = Path(__file__).parent.parent / "jobs" / "studies"

_ABOUT = """# Sweeps

Made by `make pages` from the table that configurations are checked against, and from the studies that come with the program.

`hallmarks sweep` trains a small network for each combination of settings and each seed, and analyses how its weights moved:

```sh
hallmarks sweep momentum-weight-decay --store results --dry-run   # the runs, and what they cost
hallmarks sweep momentum-weight-decay --store results             # a Ray task each; or --executor local
```

In the end it prints a row for each combination: means over seeds with their standard errors, beside what a random walk of the same
step lengths has. In SQL, of any indicator and scope: `FROM over_seeds('mds', runs := 'momentum-weight-decay--*')`.

Instead of the name of a study a file says what is trained:

```toml
name = "rates"          # runs are called rates--learning_rate-0.1--seed-0
seeds = 5               # 0 to 4; or a list of them

[fixed]                 # settings of every training
network = "cnn"
epochs = 20

[grid]                  # what is varied: every combination of the lists
learning_rate = [0.01, 0.1, 1.0]
momentum = [0.0, 0.9]
```

Several `[[grid]]` stand for their combinations one after the other: learning rates, say, that differ from optimizer to optimizer. The file is
checked as a whole before anything begins; everything that is wrong is told, with its key and what is allowed.

## What is left behind

A run of the store for each training, with all settings, the seed and the sweep's name in `runs.settings`, and losses and accuracies of both
splits at every checkpoint in view `training`. To every command such a run is one like any other.

Its checkpoints lie in `STORE/_trained/RUN`, or in `--checkpoints DIR`, and stay there, for other questions: `average`, `--statistics`,
experiments that train on. No run needs them once it is complete; they may be removed.

## Again, and at once

Rerun with the same arguments to resume: complete runs are left alone, a training that was interrupted begins again (they last seconds, and
the same seed on the same machine gives the same weights to the bit), an analysis goes on. A run or checkpoints of the same name with other settings
are refused before anything begins; `--replace` replaces them.

A run that fails, say because its loss diverged, is named with the reason and leaves the others; the command then ends with 3. A process that
dies is started again, twice at most. Two drivers of one sweep and store share its runs: each is trained once.

`--executor local` uses as many processes as there are cores, or `--max-workers`, each on one thread. On Ray each training has one CPU, and where
there are GPUs one of these, or a share with more `--max-workers` than GPUs (`--device cpu` does without). Trainings of this size seldom gain by one. Where the
nodes of a cluster see different disks, checkpoints stay on the node that has trained them; the store is what all must see.

`--dry-run` takes the time of 20 steps of each kind of network on this machine. The studies take one to five minutes each on two quiet
cores, with their analyses, and up to 600 MB of checkpoints (`width`).
"""


def page() -> str:
    """Return the text of docs/sweeps.md."""
    studies = [(f"`{path.stem}`", *_of_study(path)) for path in sorted(STUDIES.glob("*.toml"))]
    settings = [
        (f"`{name}`", str(key.allowed), key.default_text, key.meaning) for name, key in KEYS.items()
    ]
    return "\n".join(
        [
            _ABOUT,
            "## Studies\n",
            table(("study", "what it looks at", "varied", "runs"), studies),
            "## Settings\n",
            table(("setting", "may be", "default", "meaning"), settings),
        ]
    )


def _of_study(path: Path) -> tuple[str, str, str]:
    """Return what a study asks, what it varies, and how many runs that are."""
    about = path.read_text("utf-8").splitlines()[0].removeprefix("# ").rstrip(".")
    sweep = read_sweep(str(path))
    return about, ", ".join(f"`{key}`" for key in sweep.varied), str(len(sweep.runs))
