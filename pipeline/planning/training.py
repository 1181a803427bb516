"""What is known of the training of a plan's checkpoints: what its source says, and what the user states."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import FormatError
from pipeline.planning.contents import Contents, read_config
from pipeline.planning.plan_cache import PlanCache
from pipeline.planning.request import Request
from pipeline.planning.select import Selected
from pipeline.sources.base import File, Source
from pipeline.training.logs import Log, Read, read_best
from pipeline.training.metrics import Collector, Metric, Training
from pipeline.training.settings import Settings, flat


def known(
    source: Source,
    checkpoints: Sequence[Selected],
    contents: Sequence[Contents],
    beside: Sequence[File],
    request: Request,
) -> tuple[Settings, Training]:
    """Return settings and metrics of one path; what the user states comes before what is in the source.

    Args:
        beside: logs that lie beside the checkpoints.
    """
    settings, notes = _of_config(source, contents[-1].config)
    of_source = _logged(source, contents, beside) | _measured(source, checkpoints)
    training = of_source | (request.training or Training()) | Training(notes=notes)
    steps = [selected.position.step for selected in checkpoints]
    return {**settings, **(request.settings or {})}, training.at(steps)


def _of_config(source: Source, file: File | None) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings that the last checkpoint's configuration states as `training`."""
    try:
        with PlanCache() as cache:
            stated = read_config(source, file, cache).get("training")
        return (flat(stated), ()) if isinstance(stated, dict) else ({}, ())
    except FormatError as error:  # no figure depends on this one: the first checkpoint's is another
        return {}, (f"no settings: {error.message}",)
    except ValueError as error:
        return {}, (f"no settings: {source.label}: training in config.json: {error}",)


def _logged(source: Source, contents: Sequence[Contents], beside: Sequence[File]) -> Training:
    """Return what was logged: the last checkpoint that has a log holds all before it."""
    files = next((each.logs for each in reversed(contents) if each.logs), ()) or beside
    return read_best(
        [Log(file.path_in_commit, file.size, file.where, _reader(source, file)) for file in files]
    )


def _measured(source: Source, checkpoints: Sequence[Selected]) -> Training:
    """Return what a manifest says was measured at each checkpoint."""
    collector = Collector(source.label)
    try:
        for k, selected in enumerate(checkpoints):
            for name, value in selected.candidate.metrics:
                collector.add(Metric(None, name), selected.position.step, value, k)
    except ValueError as error:
        raise FormatError(f"{source.label}: {error}") from None
    return collector.training()


def _reader(source: Source, file: File) -> Read:
    return lambda start, stop: source.read(file, start, stop)
