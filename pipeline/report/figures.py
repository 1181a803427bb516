"""The pictures of `hallmarks report --figures`: which there are of a run, from the store's views.

    NAME-map-weights, -map-displacements, -map-increments    trajectory maps of the whole model
    NAME-maps                                                maps of displacements, layers × roles
    NAME-relative_mds, -straightness                         these indicators, layers × roles
    NAME-curves       norm, displacement, increment, update angle along the path
    NAME-settling     when each layer and role came near its end
    NAME-spectrum     shares of the principal components
    NAME-projection   the path on the first two
    runs              indicators of several runs beside each other
    runs-against-SETTING  indicators over a setting in which runs differ: means over seeds

Each is a PDF, an SVG and a PNG. One that a run has nothing to show in, such as layers where there are none, is
left out. Undefined values are gaps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import drawing
from pipeline.drawing import COLUMN, PAGE, Figure, new_figure
from pipeline.errors import RequestError, quoted
from pipeline.files import write_whole
from pipeline.report.comparison import Comparison, Keys, OverSeeds, as_text, comparison, place
from pipeline.report.maps import KEYS
from pipeline.report.packing import FloatArray
from pipeline.report.paths import walk
from pipeline.store.query import Store

_NUMBERED = ("relative_mds", "straightness")
_COMPARED = (
    *("relative_mds", "straightness", "mean_update_angle_deg"),
    *("pca_share_1", "effective_rank", "norm_ratio"),
)
_AGAINST = (
    *("mds", "relative_mds", "straightness"),
    *("mean_update_angle_deg", "effective_rank", "saturation_step"),
)
"""What the founding paper speaks of: how much direction a path explores, and when that is settled."""
_LONGEST_FILE_NAME = 80
_LONGEST_COMMON = 100
"""Characters of what is the same in a picture: a line of it."""
_RANKS = 10
_MOST_IN_GRID = 64
"""Checkpoints of a map among others: as many dots as 5 mm have in print."""
_MODEL = "run = ? AND scope = 'model'"


@dataclass(frozen=True, slots=True)
class _Run:
    """What all pictures of a run need of its checkpoints."""

    store: Store
    name: str
    steps: list[int | None]
    labels: list[str]
    sources: list[str]

    @property
    def axis(self) -> str:
        return "checkpoint" if None in self.steps else "step"

    @property
    def firsts(self) -> list[int]:
        """Where a source other than the one before begins."""
        return [k for k in range(1, len(self.sources)) if self.sources[k] != self.sources[k - 1]]

    @property
    def single(self) -> bool:
        return not self.firsts

    def columns(self, query: str) -> dict[str, FloatArray]:
        """Return the columns of an answer about this run, NaN where undefined."""
        table = self.store.table(query, [self.name])
        return {name: np.array(table[name].to_pylist(), float) for name in table.column_names}


def write_figures(
    store: Store, runs: Sequence[str], folder: Path, compared: Sequence[str] | None = None
) -> int:
    """Write the pictures of some runs and return how many there are.

    Args:
        compared: which runs are compared over settings; default: the same.

    Raises:
        RequestError: the folder cannot be written to.
    """
    number = 0
    with drawing.style():
        for name, figure in pictures(store, runs, compared):
            for form, data in drawing.files(figure):
                _write(folder, f"{name}.{form}", data)
            number += 1
    return number


def _write(folder: Path, name: str, data: bytes) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, data)
    except OSError as error:
        raise RequestError(
            f"{quoted(folder / name)} cannot be written: {error.strerror}",
            "choose another --figures",
        ) from None


def pictures(
    store: Store, runs: Sequence[str], compared: Sequence[str] | None = None
) -> Iterator[tuple[str, Figure]]:
    """Yield the name of each picture of some runs, and the picture; `compared` as of `write_figures`."""
    for name in runs:
        alone = Store(store.path, only=name)  # of many runs each query would look at all files
        rows = alone.sql(
            "SELECT step, name, source FROM checkpoints WHERE run = ? ORDER BY k", [name]
        ).fetchall()
        steps, names, sources = map(list, zip(*rows, strict=True))
        run = _Run(alone, name, steps, drawing.labels_of(steps, names), sources)
        for kind, figure in _of_run(run):
            yield f"{name}-{kind}", figure
    if len(runs) > 1:
        yield "runs", _runs(store, runs)
    over_settings = comparison(store, runs if compared is None else compared)
    if over_settings is not None:
        figures = over_settings.of(store, "model")
        for name, figure in _against(over_settings, figures):
            yield f"runs-against-{name}", figure


def _of_run(run: _Run) -> Iterator[tuple[str, Figure]]:
    yield from _maps(run)
    yield from _layers(run)
    yield "curves", _curves(run)
    if (figure := _settling(run)) is not None:
        yield "settling", figure
    yield from _components(run)


def _maps(run: _Run) -> Iterator[tuple[str, Figure]]:
    squares = {
        "weights": np.asarray(run.store.trajectory_map(run.name)),
        "displacements": np.asarray(run.store.trajectory_map(run.name, relative=True)),
        "increments": _update_similarity(run),
    }
    for kind, square in squares.items():
        figure = new_figure(COLUMN, COLUMN * 0.86)
        axes = figure.add_subplot()
        drawing.draw_map(
            axes,
            square,
            run.labels,
            f"cosine of {kind}",
            axis=run.axis,
            about_zero=kind == "increments",
        )
        drawing.draw_boundaries(axes, run.firsts)
        yield f"map-{kind}", figure


def _update_similarity(run: _Run) -> FloatArray:
    """Return the cosines of increments, (K, K)."""
    square = np.full((len(run.labels), len(run.labels)), np.nan)
    rows = run.columns(f"SELECT i, j, cosine FROM update_similarity WHERE {_MODEL}")
    i, j = rows["i"].astype(int), rows["j"].astype(int)
    square[i, j] = square[j, i] = rows["cosine"]
    return square


def _layers(run: _Run) -> Iterator[tuple[str, Figure]]:
    """Yield the maps and numbers of roles in layers."""
    groups = run.store.sql(
        "SELECT stack, layer, component FROM groups WHERE run = ? AND scope = 'layer_component'"
        " ORDER BY stack, layer, component",
        [run.name],
    ).fetchall()
    layers = list(dict.fromkeys((stack, layer) for stack, layer, _ in groups))
    roles = sorted(dict.fromkeys(component for *_, component in groups))
    if not groups:
        return
    rows = [f"{stack} {layer}" if stack else str(layer) for stack, layer in layers]
    places = {
        (stack, layer, role): (layers.index((stack, layer)), roles.index(role))
        for stack, layer, role in groups
    }
    figure = new_figure(PAGE, 1.0 + (PAGE - 1.6) * len(rows) / len(roles))
    drawing.draw_map_grid(figure.add_subplot(), _grid_of_maps(run, places), rows, roles)
    yield "maps", figure
    for indicator in _NUMBERED:
        values = np.full((len(rows), len(roles)), np.nan)
        differs = np.zeros(values.shape, bool)
        for *keys, value, different in run.store.sql(
            "SELECT stack, layer, component, value, differs_from_null FROM indicators"
            " WHERE run = ? AND scope = 'layer_component' AND indicator = ?",
            [run.name, indicator],
        ).fetchall():
            place = places[tuple(keys)]
            values[place], differs[place] = np.nan if value is None else value, bool(different)
        if np.isfinite(values).any():
            figure = new_figure(0.9 + 0.42 * len(roles) + 0.9, 0.9 + 0.2 * len(rows))
            drawing.draw_numbers(figure.add_subplot(), values, differs, rows, roles, indicator)
            yield indicator, figure


def _grid_of_maps(
    run: _Run, places: dict[tuple[Any, ...], tuple[int, int]]
) -> dict[tuple[int, int], FloatArray]:
    """Return the cosines of displacements of roles in layers, by row and column."""
    every = -(-len(run.labels) // _MOST_IN_GRID)
    count = len(run.labels[::every])
    upper = np.triu_indices(count)
    maps: dict[tuple[int, int], FloatArray] = {}
    for layer in dict.fromkeys(layer for _, layer, _ in places):  # a few at a time: they are large
        table = run.store.table(
            "SELECT stack, layer, component, list(relative_cosine ORDER BY i, j) AS cosines FROM similarity"
            " WHERE run = ? AND scope = 'layer_component' AND layer = ? AND i % ? = 0 AND j % ? = 0"
            " GROUP BY ALL",
            [run.name, layer, every, every],
        )
        for row in table.to_pylist():
            square = np.full((count, count), np.nan)
            square[upper] = square[upper[::-1]] = row.pop("cosines")
            maps[places[tuple(row.values())]] = square
    return maps


def _curves(run: _Run) -> Figure:
    columns = run.columns(
        "SELECT norm, displacement, increment, update_angle_deg, update_angle_stderr_deg, noise_floor_deg"
        f" FROM path WHERE {_MODEL} ORDER BY k"
    )
    squared = np.nan_to_num(columns["increment"]) ** 2
    walks = {
        "displacement": ("random walk", np.sqrt(np.cumsum(squared))),
        "update_angle_deg": ("random walk", np.full(len(squared), 90.0)),
    }
    titles = {
        "norm": "norm ‖θₖ‖",
        "displacement": "displacement ‖θₖ − θ₀‖",
        "increment": "increment ‖θₖ − θₖ₋₁‖",
        "update_angle_deg": "update angle, degrees",
    }
    bounds = [0, *run.firsts, len(run.labels)]
    figure = new_figure(PAGE, 4.2)
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, titles.items(), strict=True):
        paths = {
            drawing.plain(run.sources[first]): (range(first, stop), columns[name][first:stop])
            for first, stop in pairwise(bounds)
        }
        angle = name == "update_angle_deg"
        drawing.draw_curve(
            axes,
            paths,
            run.labels,
            title,
            errors=columns["update_angle_stderr_deg"] if angle else None,
            null=walks.get(name) if run.single else None,
            floor=columns["noise_floor_deg"] if angle else None,
            axis=run.axis,
        )
    return figure


def _settling(run: _Run) -> Figure | None:
    """Return when groups settled; None if none did."""
    rows = run.store.table(
        "SELECT stack, layer, component, max(value) FILTER (indicator = 'settled_step') AS settled,"
        " max(value) FILTER (indicator = 'saturation_step') AS saturated,"
        " max(null_value) FILTER (indicator = 'settled_step') AS walk FROM indicators"
        " WHERE run = ? AND scope IN ('model', 'layer', 'component')"
        " GROUP BY stack, layer, component HAVING settled IS NOT NULL"
        " ORDER BY layer IS NOT NULL, component IS NOT NULL, stack, layer, component",
        [run.name],
    ).to_pydict()
    if not rows["settled"]:
        return None
    names = [
        drawing.plain(f"{stack} {part}" if stack else part)
        for stack, layer, component in zip(
            *(rows[key] for key in ("stack", "layer", "component")), strict=True
        )
        for part in [component or ("whole model" if layer is None else f"layer {layer}")]
    ]
    settled, saturated, walks = (
        np.array(rows[name], float) for name in ("settled", "saturated", "walk")
    )
    known = [step for step in run.steps if step is not None]
    last = max(known) if len(known) == len(run.steps) else len(run.steps) - 1
    figure = new_figure(COLUMN * 1.3, 0.8 + 0.16 * len(names))
    drawing.draw_settling(figure.add_subplot(), names, settled, saturated, walks, float(last))
    return figure


def _components(run: _Run) -> Iterator[tuple[str, Figure]]:
    """Yield the spectrum and the projection of the centered path, where anything moved."""
    shares = run.columns(
        f"SELECT share FROM spectrum WHERE {_MODEL} AND basis = 'centered' AND rank <= {_RANKS}"
        " AND share > 0 ORDER BY rank"
    )["share"]
    if not len(shares):
        return
    increments = run.columns(f"SELECT increment FROM path WHERE {_MODEL} ORDER BY k")["increment"][
        1:
    ]
    walked = (
        walk(increments, _RANKS) if run.single and np.isfinite(increments).all() else (None, None)
    )
    figure = new_figure(COLUMN, COLUMN * 0.75)
    drawing.draw_spectrum(figure.add_subplot(), shares, walked[0])
    yield "spectrum", figure
    points = run.columns(f"SELECT pc1, pc2 FROM projection WHERE {_MODEL} ORDER BY k")
    figure = new_figure(COLUMN, COLUMN * 0.9)
    drawing.draw_projection(
        figure.add_subplot(),
        np.stack([points["pc1"], points["pc2"]], axis=1),
        walked[1],
        run.labels,
        run.firsts,
    )
    yield "projection", figure


def _runs(store: Store, runs: Sequence[str]) -> Figure:
    """Return some indicators of the whole models of several runs."""
    figure = new_figure(PAGE, 2 * (0.6 + 0.17 * len(runs)))
    for axes, indicator in zip(figure.subplots(2, 3, sharey=True).flat, _COMPARED, strict=True):
        rows = store.sql(
            "SELECT run, value, stderr, null_value FROM indicators WHERE scope = 'model' AND indicator = ?",
            [indicator],
        ).fetchall()
        known = {name: numbers for name, *numbers in rows}
        values, errors, nulls = np.array([known[name] for name in runs], float).T
        drawing.draw_runs(axes, runs, values, errors, nulls, indicator)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def _against(
    runs: Comparison, figures: Mapping[tuple[Keys, str], OverSeeds]
) -> Iterator[tuple[str, Figure]]:
    """Yield a picture of each chart over each setting: lines are told apart by another one."""
    taken: set[str] = set()
    for axis in range(len(runs.names)):
        line = runs.lines(axis)
        charts = runs.charts(axis, line)
        others = [at for at in range(len(runs.names)) if at not in (axis, line)]
        told = [at for at in others if len({runs.said(chart[0], [at]) for chart in charts}) > 1]
        for combinations in charts:
            part = runs.said(combinations[0], told)
            figure = new_figure(PAGE, 4.6)
            _draw_setting(figure, runs, figures, axis, line, combinations, part)
            yield _file_name(f"{runs.names[axis]} {part}", taken), figure


def _draw_setting(
    figure: Figure,
    runs: Comparison,
    figures: Mapping[tuple[Keys, str], OverSeeds],
    axis: int,
    line: int,
    combinations: Sequence[int],
    part: str,
) -> None:
    """Draw indicators of the model over a setting; `part` tells its combinations from other pictures' over it."""
    values = sorted((runs.combinations[number][axis] for number in combinations), key=place)
    places = list(dict.fromkeys(map(as_text, values)))
    by_line: dict[str, list[int]] = {}
    for number in combinations:
        by_line.setdefault("" if line == axis else runs.said(number, [line]), []).append(number)
    counts: set[int] = set()
    for axes, indicator in zip(figure.subplots(2, 3).flat, _AGAINST, strict=True):
        lines: dict[str, tuple[list[int], FloatArray, FloatArray, FloatArray]] = {}
        if (known := figures.get(((None,) * len(KEYS), indicator))) is not None:
            for label, numbers in by_line.items():
                at = [places.index(as_text(runs.combinations[number][axis])) for number in numbers]
                chosen = [numbers[n] for n in np.argsort(at)]
                lines[drawing.plain(label)] = (
                    sorted(at), known.mean[chosen], known.stderr[chosen], known.null_value[chosen],
                )  # fmt: skip
                counts.update(known.seeds[chosen][known.seeds[chosen] > 0].astype(int).tolist())
        drawing.draw_against(axes, list(map(drawing.plain, places)), lines, indicator)
        axes.set_xlabel(drawing.plain(runs.names[axis]))
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, title=_caption(counts, part))


def _caption(counts: set[int], part: str) -> str:
    """Return what the points are, over how many seeds."""
    if max(counts, default=1) == 1:
        points = "one seed each"
    else:
        seeds = "–".join(map(str, sorted({min(counts), max(counts)})))
        points = f"means over {seeds} seeds, 1.96 standard errors"
    common = f"{drawing.plain(part, _LONGEST_COMMON)}\n" if part else ""
    return f"{common}{points}; dotted: random walks with the same step lengths"


def _file_name(text: str, taken: set[str]) -> str:
    """Return a name for a file, from texts of outside, that none has yet."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_")[:_LONGEST_FILE_NAME]
    names = (plain if number == 1 else f"{plain}-{number}" for number in count(1))
    name = next(name for name in names if name.lower() not in taken)
    taken.add(name.lower())
    return name
