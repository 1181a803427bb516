"""Following a network in the loop that trains it, which need not save a checkpoint."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from pipeline.checkpoint.names import position
from pipeline.errors import RequestError
from pipeline.findings.finding import Finding
from pipeline.follow.following import LOOK_SHARE, Followed, Following, following
from pipeline.follow.look import New, Seen, key_of
from pipeline.follow.memory import StateDict
from pipeline.follow.record import version_of
from pipeline.planning.options import Location, Stated, Texts, flag
from pipeline.planning.options import path as path_text
from pipeline.planning.request import RESOURCES, SELECTION, Request, Resources, check_run_name
from pipeline.planning.select import Selected
from pipeline.recorder.network import bare, config_of, rank
from pipeline.sources.base import IN_MEMORY


class Sketcher:
    """Follows a network: `update(step)` takes what its weights are at that step into a run of a store.

    What is kept is the same as `hallmarks follow` keeps of a saved checkpoint; values are copied from where
    they are a megabyte at a time. In a distributed training rank 0 does it, of whole tensors; on other ranks
    nothing happens.

    Use it as a context manager, or call `close()`: tables are written as often as that takes little of the time, and
    then.
    """

    def __init__(
        self,
        model: Any,
        store: Location = "hallmarks-store",
        *,
        run: str,
        config: Mapping[str, Any] | None = None,
        include: Texts = (),
        exclude: Texts = (),
        roles: Location | None = None,
        by_head: bool = False,
        settings: Stated | None = None,
        memory: str | int | None = None,
        threads: int | None = None,
        replace: bool = False,
    ) -> None:
        """Begin, or go on with a run of this name that was followed so.

        Args:
            model: a torch.nn.Module, bare, compiled or in DistributedDataParallel.
            store: a directory, or `s3://…`, `gs://…`, `az://…`.
            run: name of the run in the store.
            config: of the network, for fused tensors, like `config.json` of transformers; default:
                `model.config` if it has one.
            include: this and what follows as of `pipeline.analyze`.
            threads: that read and compute; default: 1.

        Raises:
            RequestError: the store has another run of this name.
            StoreUnusable: another process writes this run.
        """
        options = locals()
        self._model = bare(model)
        self._run, self._label = check_run_name(run), type(self._model).__name__
        self._config = config_of(self._model, config)
        self._held = contextlib.ExitStack()
        self._following: Following | None = None
        self._due = 0.0
        self._seen: Seen | None = None
        self._request = Request(
            f"{IN_MEMORY}{run}", **{name: options[name] for name in SELECTION if name in options}
        )
        if rank() == 0:
            source = StateDict(self._label, self._run, "", {}, None)
            resources = Resources(**{name: options[name] for name in RESOURCES if name in options})
            self._following = self._held.enter_context(
                following(
                    self._request,
                    source,
                    path_text("--store", store),
                    resources,
                    0.0,
                    None,
                    flag("--replace", replace),
                    _OnStandardError(),
                )
            )

    def update(self, step: int, state: Mapping[str, Any] | None = None) -> Followed | None:
        """Take what the weights are now; when this returns they may change.

        Args:
            step: of the training; one that there is already is replaced.
            state: the state dict; default: the model's.

        Returns:
            What was followed so far; None on ranks other than 0.

        Raises:
            RequestError: a tensor is not whole, or none can be followed.
            HallmarksError: the store does not take it.
        """
        if self._following is None:
            return None
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RequestError(f"step: expected a number from 0 on, found {step!r}")
        tensors = self._model.state_dict() if state is None else state
        source = StateDict(self._label, self._run, f"step{step}", tensors, self._config)
        candidate = source.candidate
        files = source.files(candidate)
        weights = files[:1]
        entry = Selected(candidate, position(candidate.name), None)
        self._following.read_one(
            New(entry, tuple(file.path for file in files), version_of(weights)), source
        )
        self._seen = Seen(source, {key_of(candidate): candidate})
        if time.monotonic() >= self._due:
            self._write()
        self._following.show_idle()
        return self._following.followed

    def close(self) -> None:
        """Write the tables of all that was taken, and give up the right to write the run."""
        with self._held:
            self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            self.close()
        else:
            self._held.__exit__(kind, error, trace)

    def _write(self) -> None:
        if self._following is not None and self._seen is not None:
            begun = time.monotonic()
            self._following.write(self._seen)
            self._due = time.monotonic() + (time.monotonic() - begun) / LOOK_SHARE


class _OnStandardError:
    """Says what went wrong; how long each update took is the caller's to say."""

    def note(self, text: str) -> None:
        del text

    def written(self, followed: Followed, new: list[Finding]) -> None:
        for finding in new:
            print(f"{followed.run}: {finding.severity}: {finding.message}", file=sys.stderr)
