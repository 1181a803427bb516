"""The report in a real browser: what it shows is what the store holds, and nothing else happens.

Needs Chromium (Debian's package `chromium`); the tests skip without it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline.store.query import Store
from tests.commands import hallmarks
from tests.report.browser import CHROMIUM, Browser
from tests.suites import trajectory, write_suite

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium (Debian: apt-get install chromium)"
)

HOSTILE = "model.layers.0.<script>document.title='run'</script>.weight"
CHECKPOINTS = 24
MOVES = {
    "ArrowUp": (-1, 0), "ArrowDown": (1, 0), "ArrowLeft": (0, -1), "ArrowRight": (0, 1),
    "PageUp": (-10, 0), "PageDown": (10, 0), "Home": (0, -CHECKPOINTS), "End": (0, CHECKPOINTS),
}  # fmt: skip
STEPS = [0, 1, 2, 4, 8, 16, 32, *range(100, 100 * (CHECKPOINTS - 6), 100)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: of a transformer's layers with a hostile name among its tensors, and a short one."""
    folder = tmp_path_factory.mktemp("report")
    kinds = ("smooth", "walk", "decaying", "folding")
    tensors = {
        f"model.layers.{layer}.self_attn.{role}_proj.weight": trajectory(
            kinds[layer], CHECKPOINTS, 400, 0.05, seed=5 * layer + at
        ).reshape(CHECKPOINTS, 20, 20)
        for layer in range(4)
        for at, role in enumerate("qkvo")
    }
    tensors[HOSTILE] = trajectory("walk", CHECKPOINTS, 64, 0.05, seed=99)
    suite = write_suite(folder / "suite", tensors, steps=STEPS)
    other = write_suite(folder / "other", {"layers.0.w.weight": trajectory("walk", 6, 500, 0.1)})
    made = str(folder / "store")
    pipeline.analyze(suite, made, executor="local", run="suite")
    pipeline.analyze(other, made, executor="local", run="other")
    return Path(made)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(store: Path) -> str:
    """The address of a page about the first run."""
    done = hallmarks("report", "--store", store, "--run", "suite")
    assert done.returncode == 0, done.stderr
    return (store / "report.html").as_uri()


@pytest.fixture(autouse=True)
def _nothing_goes_wrong(browser: Browser) -> Iterator[None]:
    browser.troubles.clear()
    browser.requests.clear()
    yield
    assert browser.troubles == []
    local = ("file:", "about:", "data:", "blob:")
    assert all(request.startswith(local) for request in browser.requests)
    assert len({request for request in browser.requests if request.startswith("file:")}) <= 1


def readout(browser: Browser) -> str:
    return browser.evaluate("document.querySelector('#readout').textContent")


def shown_value(text: str) -> tuple[float, float]:
    """Return the cosine that is read, and half a unit of its last digit."""
    digits = re.search(r": (-?\d\.(\d+))", text)
    assert digits is not None, text
    return float(digits[1]), 0.5 * 10.0 ** -len(digits[2])


@pytest.mark.parametrize("kind", ["weights", "displacements", "increments"])
@pytest.mark.parametrize("group", ["whole model", "layer 2, attn_k"])
def test_keys_read_the_store_s_values(
    browser: Browser, page: str, store: Path, kind: str, group: str
) -> None:
    """A hundred random cells of each map, against the query that the page itself shows."""
    browser.open(page + f"#kind={kind}")
    choose_group(browser, group)
    if kind == "increments" and group != "whole model":
        assert browser.evaluate("document.querySelector('input[value=increments]').disabled")
        return
    answer = Store(str(store)).table(query_of(browser, "map"))
    expected = dict(
        zip(
            zip(answer["i"].to_pylist(), answer["j"].to_pylist(), strict=True),
            answer[-1].to_pylist(),
            strict=True,
        )
    )
    if kind != "increments":  # which have none at the first checkpoint
        assert len(expected) == CHECKPOINTS * (CHECKPOINTS + 1) // 2
    browser.evaluate("document.querySelector('#map .surface').focus()")
    browser.press("ArrowRight")  # shows the cursor, at the first checkpoint
    picks, i, j = random.Random(5), 0, 0
    for _ in range(100):
        key = picks.choice(list(MOVES))
        browser.press(key)
        i, j = (
            min(CHECKPOINTS - 1, max(0, k + by)) for k, by in zip((i, j), MOVES[key], strict=True)
        )
        text = readout(browser)
        assert text.startswith(f"step {STEPS[i]:,} × step {STEPS[j]:,}: "), text
        truth = expected.get((min(i, j), max(i, j)))
        if truth is None:
            assert text.endswith("undefined")
        else:
            value, half_a_digit = shown_value(text)
            assert abs(value - truth) <= 2 * half_a_digit


def choose_group(browser: Browser, name: str) -> None:
    number = browser.evaluate(
        f"[...document.querySelectorAll('nav option')].find((o) => o.textContent === {json.dumps(name)}).value"
    )
    browser.evaluate(f"location.hash = location.hash + '&group={number}'")
    browser.until(f"document.querySelector('.surface').ariaLabel.includes({json.dumps(name)})")


def query_of(browser: Browser, figure: str) -> str:
    browser.evaluate(f"document.querySelector('#{figure} details.sql').open = true")
    return browser.until(f"document.querySelector('#{figure} code').textContent")


def test_the_pointer_reads_what_the_keys_read(browser: Browser, page: str) -> None:
    browser.open(page)
    box = browser.evaluate(
        "(() => { const b = document.querySelector('#map canvas').getBoundingClientRect();"
        " return [b.x, b.y, b.width] })()"
    )
    x, y, side = box
    at = lambda k: (k + 0.5) / CHECKPOINTS * side  # noqa: E731
    browser.evaluate("document.querySelector('#map').scrollIntoView()")
    y -= browser.evaluate("scrollY")
    browser.mouse("mouseMoved", x + at(20), y + at(7))
    assert readout(browser).startswith(f"step {STEPS[7]} × step {STEPS[20]:,}: ")
    assert "step 1,400" in browser.evaluate("document.querySelector('#curves-readout').textContent")
    browser.until("location.hash.includes('i=7') && location.hash.includes('j=20')")


def test_a_dragged_window_gives_its_mds(browser: Browser, page: str, store: Path) -> None:
    browser.open(page + "#kind=weights")
    browser.evaluate("document.querySelector('#map').scrollIntoView()")
    x, y, side = browser.evaluate(
        "(() => { const b = document.querySelector('#map canvas').getBoundingClientRect();"
        " return [b.x, b.y, b.width] })()"
    )
    first, last = ((k + 0.5) / CHECKPOINTS * side for k in (4, 15))
    browser.mouse("mousePressed", x + first, y + first, buttons=1)
    browser.mouse("mouseMoved", x + last, y + last, buttons=1)
    browser.mouse("mouseReleased", x + last, y + last)
    text = readout(browser)
    square = Store(str(store)).trajectory_map("suite")[4:16, 4:16]
    assert f"window step {STEPS[4]} … step {STEPS[15]:,}, 12 checkpoints: MDS" in text
    assert float(text.rsplit(" ", 1)[1]) == pytest.approx(square.mean(), abs=1e-4)


@pytest.mark.parametrize(
    "figure", ["map", "curves", "figures", "layers", "path", "spectrum", "settling"]
)
def test_the_query_under_a_figure_gives_its_numbers(
    browser: Browser, page: str, store: Path, figure: str
) -> None:
    """The CSV of a figure against its query: the same rows, but for their order."""
    browser.open(page)
    csv = browser.evaluate(
        "new Promise((done) => { const make = URL.createObjectURL;"
        " URL.createObjectURL = (blob) => (blob.text().then(done), URL.createObjectURL = make, make(blob));"
        f" [...document.querySelectorAll('#{figure} .under > button')].find((b) => b.textContent === 'CSV').click() }})"
    )
    lines = csv.splitlines()
    answer = Store(str(store)).table(query_of(browser, figure))
    assert len(lines) > 1
    if figure != "settling":  # a row for each indicator there
        assert len(lines) - 1 == answer.num_rows
    else:
        assert 2 * (len(lines) - 1) == answer.num_rows
    if figure in ("map", "curves", "path", "spectrum"):
        names = answer.column_names
        assert lines[0].split(",")[: len(names)] == names
        for number, line in enumerate(lines[1:]):
            ours = [float(cell) if cell else np.nan for cell in line.split(",")]
            theirs = [column[number].as_py() for column in answer.columns]
            theirs = [np.nan if value is None else float(value) for value in theirs]
            assert ours[: len(theirs)] == pytest.approx(theirs, rel=1e-3, abs=1e-4, nan_ok=True)


def test_hostile_names_are_text(browser: Browser, page: str) -> None:
    browser.open(page)
    title = browser.evaluate("document.title")
    assert title == "hallmarks: suite"
    names = browser.evaluate(
        "[...document.querySelectorAll('nav option')].map((o) => o.textContent)"
    )
    assert HOSTILE in names
    choose_group(browser, HOSTILE)
    assert browser.evaluate("document.title") == title
    assert browser.evaluate("document.querySelectorAll('script').length") == 2
    assert HOSTILE.replace("'", "''") in query_of(browser, "map")


def test_the_policy_lets_nothing_be_loaded(browser: Browser, page: str) -> None:
    browser.open(page)
    refused = (
        "new Promise((done) => {{ document.addEventListener('securitypolicyviolation',"
        " (event) => done(event.effectiveDirective), {{ once: true }}); {} }})"
    )
    attempts = {
        "fetch('http://localhost:9').catch(() => 0)": "connect-src",
        "new Image().src = 'http://localhost:9/x.png'": "img-src",
        "document.body.append(Object.assign(document.createElement('script'),"
        " { textContent: 'document.title = 1' }))": "script-src-elem",
    }
    for attempt, directive in attempts.items():
        assert browser.evaluate(refused.format(attempt)) == directive
    assert browser.evaluate("document.title") == "hallmarks: suite"
    browser.troubles.clear()  # it reports each attempt, and lists those that it refused
    browser.requests.clear()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1600, 2560])
def test_nothing_is_wider_than_the_window(
    browser: Browser, page: str, width: int, dark: bool
) -> None:
    browser.open(page, width=width, dark=dark)
    browser.until("!!document.querySelector('#layers [data-drawn]')")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", ground))) < 64) == dark


def test_a_view_lies_in_the_address(browser: Browser, page: str) -> None:
    browser.open(page)
    for name, value in (
        ("kind", "weights"),
        ("axis", "log"),
        ("scale", "common"),
        ("show", "numbers"),
    ):
        browser.evaluate(f"document.querySelector('[data-choice={name}][value={value}]').click()")
    browser.until("!!document.querySelector('.grid-numbers')")
    browser.until("location.hash.includes('show=numbers')")
    address = browser.evaluate("location.href")
    for part in ("kind=weights", "axis=log", "scale=common", "show=numbers"):
        assert part in address
    browser.open(address)
    assert (
        browser.evaluate("document.querySelector('[data-choice=kind]:checked').value") == "weights"
    )
    assert browser.evaluate("!!document.querySelector('.grid-numbers')")


def test_any_fragment_shows_a_page(browser: Browser, page: str) -> None:
    fragment = "#run=-1&group=1e9&kind=<b>&axis=x&scale=&i=999&j=-7&a=NaN&b=1.5&indicator=__proto__"
    browser.open(page + fragment)
    assert browser.evaluate("document.querySelector('.surface').ariaLabel").startswith(
        "Trajectory map of whole model: cosines of displacements"
    )


def test_everything_that_acts_has_a_name(browser: Browser, page: str) -> None:
    """By the browser's own accessibility tree."""
    browser.open(page)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    acting = {"button", "radio", "combobox", "application", "checkbox", "image", "region", "table"}
    seen = set()
    for node in nodes:
        role = node.get("role", {}).get("value")
        if node.get("ignored") or role not in acting:
            continue
        seen.add(role)
        if role != "table":
            assert node.get("name", {}).get("value"), node
    assert seen >= {"button", "radio", "combobox", "application", "image", "table"}


def test_several_runs_stand_side_by_side(browser: Browser, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.html"
    done = hallmarks("report", "--store", store, "--out", out)
    assert done.returncode == 0 and str(out) in done.stdout.replace("\n", "")
    browser.open(out.as_uri())
    browser.until("!!document.querySelector('#runs thead th')")
    columns = browser.evaluate(
        "[...document.querySelectorAll('#runs thead th')].map((th) => th.textContent)"
    )
    assert columns[1:] == ["other", "suite"]
    values = (
        Store(str(store))
        .sql(
            "SELECT value FROM indicators WHERE scope = 'model' AND indicator = 'straightness' ORDER BY run"
        )
        .fetchall()
    )
    row = browser.evaluate(
        "[...document.querySelectorAll('#runs tbody tr')].find((tr) => tr.textContent.startsWith('straightness'))"
        ".querySelectorAll('td')[1].firstChild.textContent"
    )
    assert float(row) == pytest.approx(values[1][0], rel=1e-3)
