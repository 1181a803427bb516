"""Following in Python: the same as the command line (docs/contract.md, §6)."""

from __future__ import annotations

from typing import Any

from pipeline.follow.following import Followed
from pipeline.follow.following import follow as run_following
from pipeline.follow.look import SETTLE_S
from pipeline.planning.options import Location, Stated, Texts, Widths, flag
from pipeline.planning.options import path as path_text
from pipeline.planning.request import RESOURCES, SELECTION, Request, Resources


def follow(
    source: Location,
    store: Location = "hallmarks-store",
    *,
    once: bool = False,
    settle: float = SETTLE_S,
    command: str | None = None,
    run: str | None = None,
    revisions: Texts = (),
    steps: str | None = None,
    names: str | None = None,
    weights: Texts = (),
    seeds: str = "first",
    include: Texts = (),
    exclude: Texts = (),
    state: str | None = None,
    roles: Location | None = None,
    by_head: bool = False,
    windows: Widths | None = None,
    layout: str = "auto",
    settings: Stated | None = None,
    training: Location | None = None,
    memory: str | int | None = None,
    threads: int | None = None,
    replace: bool = False,
) -> Followed:
    """Keep a run up to date with a source to which a training still adds checkpoints.

    Each new checkpoint is read once; figures between checkpoints are estimates with standard errors.
    It goes on until it is interrupted.

    Args:
        source: a directory, a Hub repository such as `org/name`, a bucket, or a manifest.
        store: a directory, or `s3://…`, `gs://…`, `az://…`.
        once: take what is there, and return.
        settle: seconds for which the files of a checkpoint must not have changed before it is read.
        command: called, by a shell, for each new finding that is an error.
        run: this and what follows as of `pipeline.analyze`.
        threads: that read and compute; default: 1.

    Raises:
        RequestError: the request is wrong; nothing was written.
        HallmarksError: something else failed; what was read is kept.
    """
    options = locals()
    request = Request(
        source,  # pyright: ignore[reportArgumentType] - made a text where it is judged
        **{name: options[name] for name in SELECTION if name in options},
    )
    return run_following(
        request,
        path_text("--store", store),
        Resources(**{name: options[name] for name in RESOURCES if name in options}),
        once=flag("--once", once),
        settle=settle,
        command=command,
        replace_run=flag("--replace", replace),
    )


def follow_once(
    source: Location,
    store: Location = "hallmarks-store",
    *,
    settle: float = 0.0,
    **options: Any,
) -> Followed:
    """Take what is there of a source, as `follow` with `once`: for the hook of a trainer that has just saved.

    Args:
        source: as of `follow`, like the others.
        store: where the run is.
        settle: 0, since whoever has saved a checkpoint knows that it is whole.
        options: those of `follow`.

    Returns:
        What was followed so far.
    """
    return follow(source, store, once=True, settle=settle, **options)
