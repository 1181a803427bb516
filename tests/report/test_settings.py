"""Runs that differ in settings, in the page and in pictures, against NumPy on the indicators of each run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import pipeline
from pipeline.errors import names_like
from pipeline.report import comparison as module
from pipeline.report.comparison import comparison, shown_one_by_one
from pipeline.report.content import content
from pipeline.report.figures import pictures
from pipeline.report.packing import FloatArray
from pipeline.report.page import page as page_of
from pipeline.store.query import Store
from tests.commands import hallmarks
from tests.report.browser import CHROMIUM, Browser
from tests.report.test_page import query_of, violations
from tests.suites import trajectory, write_suite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEDS = {(0, "sgd"): 2, (0, "<b>$x"): 2, (0.9, "sgd"): 1, (0.9, "<b>$x"): 3}
"""Of momentum and optimizer: how many there are."""
needs_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium (Debian: apt-get install chromium)"
)


def analyzed(store: Path, run: str, settings: Any, seed: int, count: int = 5) -> None:
    folder = store.parent / run
    tensors = {
        "layers.0.self_attn.q_proj.weight": trajectory("smooth", count, 300, 0.1, seed),
        "layers.1.mlp.up_proj.weight": trajectory("decaying", count, 300, 0.1, seed),
    }
    write_suite(folder, tensors, steps=[10 * k for k in range(count)])
    pipeline.analyze(folder, store, executor="local", settings=settings)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    where = tmp_path_factory.mktemp("settings") / "store"
    for at, ((momentum, optimizer), seeds) in enumerate(SEEDS.items()):
        for seed in range(seeds):
            settings = {"momentum": momentum, "optimizer": optimizer, "seed": seed, "lr": 0.1}
            analyzed(where, f"run-{at}-{seed}", settings, seed=10 * at + seed)
    return pipeline.open_store(where)


@pytest.fixture(scope="module")
def runs(store: Store) -> list[str]:
    return [run for (run,) in store.sql("SELECT run FROM runs ORDER BY run").fetchall()]


def truth(store: Store, combination: int, indicator: str, scope: str = "model") -> FloatArray:
    """Return mean, standard error, null value and number of the runs with these settings."""
    rows = store.sql(
        "SELECT value, null_value FROM indicators WHERE run LIKE ? AND indicator = ? AND scope = ?",
        [f"run-{combination}-%", indicator, scope],
    ).fetchall()
    values, nulls = np.array(rows, float).T
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return np.array([values.mean(), error, nulls.mean(), len(values)])


def numbers(values: list[Any]) -> FloatArray:
    return np.array(values, float)  # null is NaN


def test_what_the_page_holds(store: Store, runs: list[str]) -> None:
    shown = content(store, "store", runs[:1], runs)
    compared = shown["comparison"]
    assert shown["not_shown"] == 7 and [run["run"] for run in shown["runs"]] == runs[:1]
    assert compared["settings"] == ("momentum", "optimizer") and compared["runs"] is None
    in_order = [(0, "<b>$x"), (0, "sgd"), (0.9, "<b>$x"), (0.9, "sgd")]
    assert list(compared["combinations"]) == in_order
    scopes = [group["scope"] for group in compared["groups"]]
    assert scopes[:2] == ["model", "body"] and scopes.count("layer_component") == 2
    model = compared["groups"][0]["figures"]
    for indicator in ("straightness", "saturation_step", "relative_mds"):
        figures = [numbers(row) for row in model[shown["indicators"].index(indicator)]]
        for at, values in enumerate(in_order):
            expected = truth(store, list(SEEDS).index(values), indicator)
            found = np.array([row[at] for row in figures])
            assert found == pytest.approx(expected, rel=5e-3, nan_ok=True)


def test_fewer_than_two_combinations_are_none(store: Store, runs: list[str]) -> None:
    assert comparison(store, runs[:2]) is None  # two seeds
    assert comparison(store, []) is None
    some = comparison(store, [runs[0], runs[-1]])
    assert some is not None and some.runs == f"{runs[0]},{runs[-1]}"


def test_other_sizes_are_other_combinations(tmp_path: Path) -> None:
    """Of runs with the same settings that were saved more often, or are larger: no mean of both."""
    for run, count in (("a", 4), ("b", 5), ("c", 5)):
        analyzed(tmp_path / "store", run, {"lr": 0.1}, 1, count)
    compared = comparison(pipeline.open_store(tmp_path / "store"), ["a", "b", "c"])
    assert compared is not None and compared.names == ("checkpoints",)
    assert compared.combinations == ((4,), (5,))


def test_what_follows_from_settings_is_none(tmp_path: Path) -> None:
    """Steps follow from the batch size, a number of weights from width and depth, a decay from the optimizer."""
    for at, (batch, optimizer) in enumerate([(8, "sgd"), (16, "sgd"), (8, "adamw"), (16, "muon")]):
        decay = 0.1 if optimizer != "sgd" else 0
        settings = {"optimizer": optimizer, "batch": batch, "decay": decay, "a_steps": 64 // batch}
        analyzed(tmp_path / "store", f"r{at}", settings, seed=at, count=3)
    compared = comparison(pipeline.open_store(tmp_path / "store"), [f"r{at}" for at in range(4)])
    assert compared is not None
    assert compared.names == ("optimizer", "batch") and compared.following == ("decay", "a_steps")
    assert [compared.lines(at) for at in (0, 1)] == [1, 0]
    assert compared.charts(1, 0) == [[0, 1, 2, 3]]


def test_of_many_runs_some_are_shown(
    store: Store, runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.report.content.SCOPES", {"model": (True, 160)})  # the quicker
    assert shown_one_by_one(store, runs) == runs
    monkeypatch.setattr(module, "MOST_RUNS", 3)
    assert shown_one_by_one(store, runs) == ["run-0-0", "run-2-0", "run-3-0"]  # of other settings
    monkeypatch.setattr(module, "MOST_RUNS", 2)
    assert shown_one_by_one(store, runs[:2]) == runs[:2]
    assert shown_one_by_one(store, runs[-3:]) == [runs[-3], runs[-1]]  # whose seeds alone differ
    out = tmp_path / "page.html"
    done = hallmarks("report", "--store", store.path, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "one by one: 2 of 8 runs; --run names others" in done.stdout
    assert '"not_shown":6' in out.read_text()
    done = hallmarks("report", "--store", store.path, "--run", "run-3-?", "--out", out)
    assert done.returncode == 0 and "one by one: 2 of 3 runs" in done.stdout
    done = hallmarks("report", "--store", store.path, *names_of(runs[-3:]), "--out", out)
    assert done.returncode == 0 and "one by one" not in done.stdout  # they were named
    done = hallmarks("report", "--store", store.path, "--run", "run-4*", "--out", out)
    assert done.returncode == 2 and "no run 'run-4*'" in done.stderr and "run-0-0" in done.stderr


def names_of(runs: list[str]) -> list[str]:
    return [argument for run in runs for argument in ("--run", run)]


def test_of_many_names_those_that_are_alike_are_told() -> None:
    known = [f"width-{width}--seed-{seed}" for width in range(10) for seed in range(10)]
    told = names_like("width-7-seed-3", known)
    assert told.startswith("width-7--seed-3, ") and told.endswith(", … (88 more)")
    assert names_like("x", ["b", "a"]) == "a, b"


@pytest.fixture(scope="module")
def drawn(store: Store, runs: list[str]) -> dict[str, Figure]:
    return dict(pictures(store, [], runs))


def test_pictures_over_settings(store: Store, drawn: dict[str, Figure]) -> None:
    from matplotlib.container import ErrorbarContainer

    assert set(drawn) == {"runs-against-momentum", "runs-against-optimizer"}
    figure = drawn["runs-against-momentum"]
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == ["mds", "relative_mds", "straightness"] and len(titles) == 6
    for axes in figure.axes:
        containers, labels = axes.get_legend_handles_labels()
        assert labels == [r"optimizer <b>\$x", "optimizer sgd"]
        assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "0.9"]
        walks = [line for line in axes.lines if str(line.get_label()).startswith("_child")]
        for container, optimizer in zip(containers, ("<b>$x", "sgd"), strict=True):
            expected = np.array(
                [
                    truth(store, list(SEEDS).index((momentum, optimizer)), axes.get_title())
                    for momentum in (0, 0.9)
                ]
            )
            assert isinstance(container, ErrorbarContainer)
            line, _, (bars,) = container.lines
            assert line.get_ydata() == pytest.approx(expected[:, 0])
            ends = [np.asarray(path.vertices)[:, 1] for path in bars.get_paths()]
            reach = [np.ptp(each) / 2 for each in ends]
            assert reach == pytest.approx(1.96 * np.nan_to_num(expected[:, 1]), abs=1e-9)
            assert any(walk.get_ydata() == pytest.approx(expected[:, 2]) for walk in walks)
    (legend,) = figure.legends
    assert legend.get_title().get_text().startswith("means over 1–3 seeds, 1.96 standard errors")
    figure.draw_without_rendering()


def test_three_settings_are_several_pictures(tmp_path: Path) -> None:
    """One for each value of the third; names from outside are plain, and none takes another's place."""
    where = tmp_path / "store"
    for at, (a, b, c) in enumerate([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)]):
        analyzed(where, f"r{at}", {"../a": a, "a_": b, "$c" * 60: c}, seed=at, count=3)
    figures = dict(pictures(pipeline.open_store(where), [], [f"r{at}" for at in range(5)]))
    assert all(re.fullmatch(r"runs-against-[\w.-]{1,83}", name) for name in figures)
    against = {name: figure.axes[0].get_xlabel() for name, figure in figures.items()}
    # with a_ for lines all five are in charts over ../a, two for the values of $c, and over $c likewise
    assert sorted(against.values()) == ["../a"] * 2 + ["a_"] + ["…" + r"c\$" * 11 + "c"] * 2
    for figure in figures.values():
        figure.draw_without_rendering()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(store: Store, runs: list[str]) -> str:
    file = Path(store.path).parent / "page.html"
    file.write_text(page_of(content(store, "store", runs[:1], runs)))
    return file.as_uri()


def titles(browser: Browser) -> list[str]:
    return browser.evaluate(
        "[...document.querySelectorAll('#settings svg title')].map((e) => e.textContent)"
    )


@needs_a_browser
def test_an_indicator_against_a_setting(browser: Browser, page: str, store: Store) -> None:
    browser.open(page + "#indicator=straightness")
    browser.until("!!document.querySelector('#settings svg title')")
    in_order = [(0, "<b>$x"), (0.9, "<b>$x"), (0, "sgd"), (0.9, "sgd")]  # line by line
    for text, (momentum, optimizer) in zip(titles(browser), in_order, strict=True):
        mean, error, null, seeds = truth(
            store, list(SEEDS).index((momentum, optimizer)), "straightness"
        )
        said = re.fullmatch(
            r"momentum (.+), optimizer (.+): ([\d.]+)(?: ± ([\d.e-]+))?, random walk ([\d.]+), (\d) seeds?",
            text,
        )
        assert said and (float(said[1]), said[2]) == (momentum, optimizer)
        assert float(said[3]) == pytest.approx(mean, rel=1e-3)
        assert (said[4] is None) == np.isnan(error)
        if said[4]:
            assert float(said[4]) == pytest.approx(1.96 * error, rel=0.06)
        assert float(said[5]) == pytest.approx(null, rel=1e-3) and int(said[6]) == seeds
    note = browser.evaluate("document.querySelector('#settings .components .meaning').textContent")
    assert note == "Means over 1 to 3 seeds; bars: 1.96 standard errors, where there are several."
    # the query that the page shows gives its numbers, and so does its file
    answer = store.table(query_of(browser, "settings")).to_pylist()
    csv = browser.evaluate(
        "new Promise((done) => { const make = URL.createObjectURL;"
        " URL.createObjectURL = (blob) => (blob.text().then(done), URL.createObjectURL = make, make(blob));"
        " [...document.querySelectorAll('#settings .under > button')].find((b) => b.textContent === 'CSV').click() })"
    )
    header, *lines = [line.split(",") for line in csv.splitlines()]
    assert header == ["momentum", "optimizer", "seeds", "mean", "stderr", "null_value"]
    for row in answer:
        at = json.loads(row["settings"])
        (line,) = [
            line for line in lines if (float(line[0]), line[1]) == (at["momentum"], at["optimizer"])
        ]
        found = numbers([each or np.nan for each in line[2:]])
        expected = numbers([row[name] for name in header[2:]])
        assert found == pytest.approx(expected, rel=5e-3, nan_ok=True)
    assert len(answer) == len(lines) == 4


@needs_a_browser
def test_the_setting_and_the_weights_can_be_chosen(browser: Browser, page: str) -> None:
    browser.open(page + "#indicator=straightness&against=optimizer")
    browser.until("!!document.querySelector('#settings svg title')")
    label = "document.querySelector('#settings svg').ariaLabel"
    assert browser.evaluate(label).startswith("straightness of whole model against optimizer")
    whole = titles(browser)
    number = browser.evaluate(
        "[...document.querySelectorAll('nav option')].find((o) => o.textContent === 'layer 1').value"
    )
    browser.evaluate(f"location.hash = location.hash + '&group={number}'")
    browser.until(f"{label}.startsWith('straightness of layer 1 ')")
    assert len(titles(browser)) == len(whole) and titles(browser) != whole
    assert "layer = 1" in query_of(browser, "settings")
    for fragment in ("against=nonsense&lines=<b>", "against=seed", "indicator=decay_start_step"):
        browser.open(page + f"#{fragment}")
        browser.until(
            f"{label} && document.querySelector('#settings .components .meaning').textContent"
        )
    assert "none of them has this indicator" in browser.evaluate(
        "document.querySelector('#settings .components .meaning').textContent"
    )


@needs_a_browser
@pytest.mark.parametrize(("dark", "width"), [(False, 400), (True, 1600)])
def test_axe_finds_nothing(browser: Browser, page: str, dark: bool, width: int) -> None:
    browser.open(page, width=width, dark=dark)
    browser.until("!!document.querySelector('#settings svg title')")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(browser) == []
    assert browser.troubles == []


@needs_a_browser
def test_a_third_setting_is_other_charts(browser: Browser, store: Store, tmp_path: Path) -> None:
    """Those of which no two runs differ in the setting alone are counted."""
    made = content(store, "store", ["run-0-0"], ["run-0-0", "run-2-0"])
    figures = [[[0.5, 0.6, 0.7], [None] * 3, [0.2] * 3, [1] * 3]] * len(made["indicators"])
    made["comparison"] |= {
        "settings": ["a", "b", "c"],
        "lines": [1, 0, 0],
        "combinations": [[0, 0, True], [1, 0, True], [1, 1, None]],
        "groups": [{"scope": "model", "figures": figures}],
    }
    (tmp_path / "page.html").write_text(page_of(made))
    browser.open((tmp_path / "page.html").as_uri())
    browser.until("!!document.querySelector('#settings svg title')")
    charts = "[...document.querySelectorAll('#settings svg text.title')].map((e) => e.textContent)"
    assert browser.evaluate(charts) == [
        "relative_mds, whole model"
    ]  # of c there is one value in it
    assert len(titles(browser)) == 2
    note = browser.evaluate("document.querySelector('#settings .components .meaning').textContent")
    assert "One seed each" in note and "Not drawn: 1 combinations" in note
    browser.evaluate("location.hash = '#against=c'")
    browser.until(
        "document.querySelector('#settings .components .meaning').textContent.includes('No two runs')"
    )
    browser.evaluate("location.hash = '#against=b&lines=c'")
    browser.until(f"{charts}.length === 1")
    assert [text.split(":")[0] for text in titles(browser)] == ["a 1, b 0, c true", "a 1, b 1, c –"]
