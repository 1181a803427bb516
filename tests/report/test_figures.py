"""Pictures for papers, against explicit weights and the store; what they are made of, and hostile names."""

from __future__ import annotations

import pickle
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import pipeline
from pipeline import drawing
from pipeline.report.figures import pictures
from pipeline.report.packing import FloatArray
from pipeline.store.query import Store
from tests.commands import hallmarks
from tests.report.test_page import odd_suites
from tests.suites import stored_weights, trajectory, write_suite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS = [0, 1, 2, 4, 8, 16, 1000, 20_000, 40_000, 60_000]
COUNT = len(STEPS)
MAGIC = {"png": b"\x89PNG\r\n", "pdf": b"%PDF-", "svg": b"<?xml"}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = {
        f"model.layers.{layer}.self_attn.{role}_proj.weight": trajectory(
            "smooth" if layer else "walk", COUNT, 400, 0.05, seed=7 * layer + at
        ).reshape(COUNT, 20, 20)
        for layer in range(2)
        for at, role in enumerate("qk")
    }
    return write_suite(tmp_path_factory.mktemp("figures") / "suite", tensors, steps=STEPS)


@pytest.fixture(scope="module")
def store(suite: Path) -> Store:
    where = suite.parent / "store"
    pipeline.analyze(suite, where, executor="local", run="a")
    pipeline.analyze(suite, where, executor="local", run="b", include="q_proj")
    return pipeline.open_store(where)


@pytest.fixture(scope="module")
def drawn(store: Store) -> dict[str, Figure]:
    return dict(pictures(store, ["a", "b"]))


@pytest.fixture(scope="module")
def weights(suite: Path) -> FloatArray:
    return np.concatenate(list(stored_weights(suite).values()), axis=1)


def cosines(rows: FloatArray) -> FloatArray:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


def image(figure: Figure) -> FloatArray:
    return np.ma.filled(np.ma.asarray(figure.axes[0].images[0].get_array()), np.nan)


def line(axes: Axes, label: str | None = None) -> FloatArray:
    lines = [each for each in axes.lines if label is None or each.get_label() == label]
    return np.asarray(lines[0].get_ydata(), float)


def test_maps_are_those_of_the_weights(drawn: dict[str, Figure], weights: FloatArray) -> None:
    assert image(drawn["a-map-weights"]) == pytest.approx(cosines(weights), abs=1e-6)
    moved = image(drawn["a-map-displacements"])
    assert np.isnan(moved[0]).all()
    assert moved[1:, 1:] == pytest.approx(cosines(weights[1:] - weights[0]), abs=1e-6)
    moves = image(drawn["a-map-increments"])
    assert moves[1:, 1:] == pytest.approx(cosines(np.diff(weights, axis=0)), abs=1e-6)


def test_axes_have_steps(drawn: dict[str, Figure]) -> None:
    axes = drawn["a-map-weights"].axes[0]
    places = axes.xaxis.get_major_locator()()
    labels = axes.xaxis.get_major_formatter().format_ticks(places)
    short = ["0", "1", "2", "4", "8", "16", "1000", "20k", "40k", "60k"]
    assert labels == [short[int(place)] for place in places]
    assert labels[0] == "0" and labels[-1] == "60k" and len(set(labels)) == 6
    assert axes.get_xlabel() == axes.get_ylabel() == "step"
    assert axes.child_axes[0].get_ylabel() == "cosine of weights"


def test_curves_are_those_of_the_weights(drawn: dict[str, Figure], weights: FloatArray) -> None:
    norm, displacement, increment, angle = drawn["a-curves"].axes
    assert line(norm) == pytest.approx(np.linalg.norm(weights, axis=1), rel=1e-6)
    assert line(displacement) == pytest.approx(
        np.linalg.norm(weights - weights[0], axis=1), rel=1e-6
    )
    steps = np.linalg.norm(np.diff(weights, axis=0), axis=1)
    assert line(increment)[1:] == pytest.approx(steps, rel=1e-6)
    walk = np.sqrt(np.append(0, np.cumsum(steps**2)))
    assert line(displacement, "random walk") == pytest.approx(walk, rel=1e-6)
    turns = np.degrees(np.arccos(np.diagonal(cosines(np.diff(weights, axis=0)), 1)))
    assert line(angle)[1:-1] == pytest.approx(turns, abs=1e-3)
    assert (line(angle, "random walk") == 90).all()


def test_numbers_are_those_of_the_store(drawn: dict[str, Figure], store: Store) -> None:
    rows = store.sql(
        "SELECT layer, component, value, differs_from_null FROM indicators WHERE run = 'a'"
        " AND scope = 'layer_component' AND indicator = 'relative_mds' ORDER BY layer, component"
    ).fetchall()
    figure = drawn["a-relative_mds"]
    values = np.array([row[2] for row in rows]).reshape(2, 2)
    assert image(figure) == pytest.approx(values)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == [f"{value:.2f}" if differs else f"({value:.2f})" for *_, value, differs in rows]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["attn_k", "attn_q"]
    maps = image(drawn["a-maps"])
    square = store.trajectory_map(
        "a", "layer_component", layer=1, component="attn_q", relative=True
    )
    assert maps[-COUNT - 1 : -1, -COUNT - 1 : -1] == pytest.approx(np.asarray(square), nan_ok=True)


def test_the_rest_is_that_of_the_store(drawn: dict[str, Figure], store: Store) -> None:
    def asked(what: str) -> list[Any]:
        rows = store.sql(what).fetchall()
        return [row[0] if len(row) == 1 else row for row in rows]

    shares = asked(
        "SELECT share FROM spectrum WHERE run = 'a' AND scope = 'model' AND basis = 'centered'"
        " AND share > 0 ORDER BY rank"
    )
    assert line(drawn["a-spectrum"].axes[0], "this run") == pytest.approx(shares)
    points = asked("SELECT pc1, pc2 FROM projection WHERE run = 'a' AND scope = 'model' ORDER BY k")
    assert drawn["a-projection"].axes[0].collections[0].get_offsets().tolist() == [
        pytest.approx(point) for point in points
    ]
    settled = asked(
        "SELECT value FROM indicators WHERE run = 'a' AND scope = 'model' AND indicator = 'settled_step'"
    )
    assert [drawn["a-settling"].axes[0].patches[0].get_width()] == settled
    mds = asked(
        "SELECT value FROM indicators WHERE scope = 'model' AND indicator = 'relative_mds' ORDER BY run"
    )
    assert drawn["runs"].axes[0].lines[0].get_xdata() == pytest.approx(mds)


def test_a_sample_has_error_bars(suite: Path, tmp_path: Path) -> None:
    rows = trajectory("smooth", 5, 300_000, 0.05)
    source = write_suite(tmp_path / "suite", {"layers.0.self_attn.q_proj.weight": rows})
    pipeline.analyze(source, tmp_path / "store", executor="local", fraction=0.2)
    store = pipeline.open_store(tmp_path / "store")
    angle = dict(pictures(store, ["suite"]))["suite-curves"].axes[3]
    errors = store.sql(
        "SELECT update_angle_stderr_deg FROM path WHERE scope = 'model' AND k IN (1, 2, 3) ORDER BY k"
    ).fetchall()
    (bars,) = angle.collections
    lengths = [
        path.vertices[1, 1] - path.vertices[0, 1] for path in bars.get_paths() if len(path.vertices)
    ]
    lengths = [length for length in lengths if np.isfinite(length)]
    assert lengths == pytest.approx([2 * 1.96 * error for (error,) in errors])


@pytest.mark.parametrize("name", ["all-lost", "one-left", "pair", "stacks"])
def test_odd_runs_are_drawn(tmp_path: Path, name: str) -> None:
    """Nothing moves, nothing is finite, two checkpoints: what there is to see, and no warning."""
    source = write_suite(tmp_path / name, odd_suites()[name])
    pipeline.analyze(source, tmp_path / "store", executor="local")
    figures = dict(pictures(pipeline.open_store(tmp_path / "store"), [name]))
    assert {f"{name}-map-weights", f"{name}-curves"} <= set(figures)
    for figure in figures.values():
        figure.draw_without_rendering()


def test_several_sources_and_hostile_names(tmp_path: Path) -> None:
    """No name begins a formula, and none is as long as it likes."""
    sources = [
        write_suite(
            tmp_path / name, {"layers.0.w.weight": trajectory("walk", 4, 300, 0.1, seed=at)}
        )
        for at, name in enumerate((r"$\frac{", "_" + "long" * 20))
    ]
    for number, folder in enumerate(sorted(sources[0].iterdir())):
        folder.rename(folder.with_name(f"$\\undefined{number}"))
    pipeline.analyze_joint(
        sources, tmp_path / "store", run="both", executor="local", names=r"(?P<step>\d+)$"
    )
    figures = dict(pictures(pipeline.open_store(tmp_path / "store"), ["both"]))
    assert "both-settling" not in figures and len(figures["both-map-weights"].axes[0].lines) == 2
    assert len(figures["both-curves"].axes[0].lines) == 2
    paths = figures["both-projection"].axes[0].lines  # no line leads from one source to the other
    assert [len(line(path.axes)) for path in paths if path.axes] == [4, 4]
    for figure in figures.values():
        figure.draw_without_rendering()
    assert drawing.labels_of([None], ["$x\n" + "a" * 99]) == ["…" + "a" * 23]
    assert drawing.plain("$a") == r"\$a"


def test_the_command_writes_three_forms(tmp_path: Path) -> None:
    """Of a run that shows little: nothing moves."""
    source = write_suite(tmp_path / "still", odd_suites()["still"])
    pipeline.analyze(source, tmp_path / "store", executor="local")
    out = tmp_path / "deep" / "figures"
    done = hallmarks("report", "--store", tmp_path / "store", "--figures", out)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "each as PDF, SVG and PNG" in " ".join(done.stdout.split())
    names = dict(pictures(pipeline.open_store(tmp_path / "store"), ["still"]))
    assert {file.name for file in out.iterdir()} == {f"{n}.{form}" for n in names for form in MAGIC}
    for file in out.iterdir():
        assert file.read_bytes().startswith(MAGIC[file.suffix[1:]])
    text = "".join(ElementTree.parse(out / "still-curves.svg").getroot().itertext())
    assert "random walk" in text and "step" in text
    (tmp_path / "file").touch()
    refused = hallmarks("report", "--store", tmp_path / "store", "--figures", tmp_path / "file")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 2
    assert "choose another --figures" in refused.stderr


def test_the_same_figure_is_the_same_file() -> None:
    found = []
    for _ in range(2):
        with drawing.style():
            figure = drawing.new_figure(2, 2)
            drawing.draw_spectrum(figure.add_subplot(), np.array([0.6, 0.3, 0.1]), None)
            found.append(dict(drawing.files(figure)))
    assert found[0] == found[1]


def test_without_matplotlib_one_line_says_so(store: Store, tmp_path: Path) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from jobs.cli import main; main()"
    out = tmp_path / "page.html"
    options = ["report", "--store", store.path, "--out", str(out), "--figures", str(tmp_path / "f")]
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True)
    assert done.returncode == 1 and not out.exists()
    assert done.stderr == (
        "error: matplotlib is not installed, which draws figures\n"
        "hint: pip install 'hallmarks[figures]'\n"
    )


def test_a_trajectory_map_draws_itself(store: Store) -> None:
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    square = store.trajectory_map("a", relative=True)
    try:
        axes = square.plot()
        assert axes is pyplot.gca() and axes.get_title() == "a"
        assert axes.child_axes[0].get_ylabel() == "cosine of displacements"
        other = Figure().add_subplot()
        assert pickle.loads(pickle.dumps(square)).plot(ax=other) is other
        assert other.images[0].get_cmap().name == drawing.SEQUENTIAL
        # a difference of maps has no 1 on its diagonal: about 0
        (square - 0.5 * square).plot(ax=other)
        assert other.images[1].get_cmap().name == drawing.DIVERGING
        with pytest.raises(ValueError, match="expected a square map, found an array of"):
            square[0].plot()
    finally:
        pyplot.close("all")


def lightness(colours: Any) -> FloatArray:
    """Return L* of sRGB colours, (N, 3)."""
    rgb = np.asarray(colours, float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 216 / 24389, 116 * np.cbrt(y) - 16, y * 24389 / 27)


def test_lightness_is_even() -> None:
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    rising = np.diff(lightness(colormaps[drawing.SEQUENTIAL](np.linspace(0, 1, 17))[:, :3]))
    assert (rising > 0).all() and rising.max() < 2 * np.median(rising)
    both = lightness(colormaps[drawing.DIVERGING](np.linspace(0, 1, 17))[:, :3])
    assert both == pytest.approx(both[::-1], abs=6) and np.argmax(both) == 8
    # lines that stand together differ in lightness: to who sees no colour, too
    lines = np.array([to_rgb(colour) for colour in drawing.COLOURS[:2]])
    assert abs(np.diff(lightness(lines))[0]) > 10
