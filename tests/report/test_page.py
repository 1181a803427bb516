"""The report in a real browser: what it shows is what the store holds, and nothing else happens.

Needs Chromium (Debian's package `chromium`); the tests skip without it.
"""

from __future__ import annotations

import json
import lzma
import random
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.follow import follow_once
from pipeline.report import content as module
from pipeline.report.content import content
from pipeline.report.page import page as page_of
from pipeline.store.query import Store
from tests.commands import hallmarks
from tests.report.browser import CHROMIUM, Browser
from tests.report.test_content import changing
from tests.report.test_packing import unpacked
from tests.suites import trajectory, write_suite

# a real browser or nothing: .ci/run installs it, a newcomer's machine may lack it
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium (Debian: apt-get install chromium)"
)

AXE_CORE = Path(__file__).with_name("axe.min.js.xz")
"""Of npm's package axe-core, version 4.14.1, as it is published (MPL-2.0)."""
HOSTILE = "model.layers.0.<script>document.title='run'</script>.weight"
CHECKPOINTS = 24
MOVES = {
    "ArrowUp": (-1, 0), "ArrowDown": (1, 0), "ArrowLeft": (0, -1), "ArrowRight": (0, 1),
    "PageUp": (-10, 0), "PageDown": (10, 0), "Home": (0, -CHECKPOINTS), "End": (0, CHECKPOINTS),
}  # fmt: skip
STEPS = [0, 1, 2, 4, 8, 16, 32, *range(100, 100 * (CHECKPOINTS - 6), 100)]

HOSTILE_METRIC = "eval_</script><b>loss"
LOGGED = [
    *(
        {"loss": 4 - step / 1000, "learning_rate": 1e-3, "step": step}
        for step in range(50, 1800, 50)
    ),
    *({"eval_loss": 3.0, HOSTILE_METRIC: 1.0, "eval_runtime": 9.0, "step": s} for s in (500, 1000)),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: of a transformer's layers with a hostile name among its tensors, and a short one."""
    from transformers.trainer_callback import TrainerState

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
    TrainerState(log_history=LOGGED).save_to_json(
        str(suite / f"step{STEPS[-1]}" / "trainer_state.json")
    )
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
    browser.call("Page.navigate", url="about:blank")  # the page of a growing run loads itself again
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
    """Forty random cells of each map, against the query that the page itself shows."""
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
    for _ in range(40):
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


def test_the_query_of_a_map_of_every_third_checkpoint(
    browser: Browser, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Increments between checkpoints of the map: the page's SQL and its own values, from the same products."""
    opened = Store(str(store))
    scopes = {scope: (fine, 8) for scope, (fine, _) in module.SCOPES.items()}
    monkeypatch.setattr(module, "SCOPES", scopes)
    made = content(opened, "store", ["suite"])
    (tmp_path / "page.html").write_text(page_of(made))
    browser.open((tmp_path / "page.html").as_uri() + "#kind=increments")
    answer = opened.table(query_of(browser, "map"))
    assert answer.column_names == ["i", "j", "step_i", "step_j", "cosine"]
    upper = np.triu_indices(8)
    half = np.full((8, 8), np.nan)
    half[upper] = unpacked(made["runs"][0]["groups"][0]["maps"]["increments"])
    expected = [
        (3 * i, 3 * j, STEPS[3 * i], STEPS[3 * j]) for i, j in zip(*upper, strict=True) if i
    ]
    *places, cosines = (column.to_pylist() for column in answer.columns)
    assert list(zip(*places, strict=True)) == expected
    assert cosines == pytest.approx((1 - 2 * half[1:, 1:] ** 2)[np.triu_indices(7)], abs=1e-4)


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


def test_keys_choose_a_window(browser: Browser, page: str) -> None:
    browser.open(page + "#kind=weights&i=4&j=4")
    browser.evaluate("document.querySelector('#map .surface').focus()")
    for _ in range(3):
        browser.press("ArrowRight", shift=True)
    assert f"window step {STEPS[4]} … step {STEPS[7]}, 4 checkpoints: MDS" in readout(browser)
    browser.press("Escape")
    assert "window" not in readout(browser)


PICTURES = (
    *("map", "curves", "turns", "windows", "training", "layers", "redundancy"),
    *("path", "spectrum", "settling"),
)


def test_the_queries_under_figures_give_their_numbers(
    browser: Browser, page: str, store: Path
) -> None:
    """The CSV of a figure against its query: the same rows, but for their order."""
    browser.open(page)
    opened = Store(str(store))
    for figure in ("figures", *PICTURES):
        assert_query_gives_numbers(browser, opened, figure)


def assert_query_gives_numbers(browser: Browser, store: Store, figure: str) -> None:
    csv = browser.evaluate(
        "new Promise((done) => { const make = URL.createObjectURL;"
        " URL.createObjectURL = (blob) => (blob.text().then(done), URL.createObjectURL = make, make(blob));"
        f" [...document.querySelectorAll('#{figure} .under > button')].find((b) => b.textContent === 'CSV').click() }})"
    )
    lines = csv.splitlines()
    answer = store.table(query_of(browser, figure))
    assert len(lines) > 1, figure
    if figure != "settling":  # a row for each indicator there
        assert len(lines) - 1 == answer.num_rows, figure
    else:
        assert 2 * (len(lines) - 1) == answer.num_rows
    if figure == "windows":  # its rows have names in them, too
        for line, theirs in zip(lines[1:], answer.to_pylist(), strict=True):
            k, step, name, *values = line.split(",")
            assert (int(k), int(step), name) == (
                theirs["k_last"], theirs["step_last"], theirs["indicator"],
            )  # fmt: skip
            expected = [theirs["value"], theirs["null_value"]]
            assert [*map(float, values)] == pytest.approx(expected, rel=1e-2, abs=1e-2)
    if figure in ("map", "curves", "turns", "path", "spectrum"):
        names = answer.column_names
        assert lines[0].split(",")[: len(names)] == names
        for number, line in enumerate(lines[1:]):
            ours = [float(cell) if cell else np.nan for cell in line.split(",")]
            theirs = [column[number].as_py() for column in answer.columns]
            theirs = [np.nan if value is None else float(value) for value in theirs]
            assert ours[: len(theirs)] == pytest.approx(theirs, rel=1e-3, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("form", ["SVG", "PNG"])
def test_pictures_can_be_saved(browser: Browser, page: str, form: str) -> None:
    """They stand alone: an image that the browser draws, of which not all is of one colour."""
    browser.open(page + "#i=4&j=9")
    browser.until("!!document.querySelector('#layers [data-drawn]')")
    for figure in PICTURES:
        width, height, colours = saved(browser, figure, form)
        assert width > 200 and height > 60 and colours > 10, figure


def saved(browser: Browser, figure: str, form: str) -> list[int]:
    """Return width, height and colours of the picture that a button saves."""
    return browser.evaluate(
        "new Promise((done) => { const make = URL.createObjectURL;"
        " URL.createObjectURL = (blob) => (done(blob), URL.createObjectURL = make, make(blob));"
        f" [...document.querySelectorAll('#{figure} .under > button')].find((b) => b.textContent === '{form}').click() }})"
        ".then((blob) => new Promise((done) => { const reader = new FileReader(); reader.onload = () => done(reader.result);"
        " reader.readAsDataURL(blob) })).then(async (url) => { const image = new Image(); image.src = url; await image.decode();"
        " const canvas = document.createElement('canvas'); canvas.width = image.width; canvas.height = image.height;"
        " const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);"
        " const pixels = new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer);"
        " return [image.width, image.height, new Set(pixels).size] })"
    )


def test_what_the_training_logged(browser: Browser, page: str) -> None:
    """Curves of each metric in a row; a run without them has no such figure."""
    browser.open(page + "#axis=step&i=11&j=11")
    browser.until("!!document.querySelector('#training svg path')")
    titles = browser.evaluate(
        "[...document.querySelectorAll('#training svg .title')].map((e) => e.textContent)"
    )
    assert titles == [
        "loss: train, eval (dashed)",
        f"{HOSTILE_METRIC.removeprefix('eval_')}: eval",
        "learning_rate: train",
    ]
    assert browser.evaluate("document.querySelectorAll('#training svg .curve').length") == 4
    assert STEPS[11] == 500
    told = browser.evaluate("document.querySelector('#training-readout').textContent")
    assert told.startswith("step 500: train loss 3.5, eval loss 3, ")
    assert "more: runtime" in browser.evaluate(
        "document.querySelector('#training .note').textContent"
    )
    # on an axis by step a line that falls evenly is straight, whatever lies between checkpoints
    path = browser.evaluate("document.querySelector('#training svg .curve').getAttribute('d')")
    points = np.array([list(map(float, each.split())) for each in re.split("[ML]", path)[1:]])
    assert len(points) == sum(50 <= step <= STEPS[-1] for step in range(50, 1800, 50))
    slopes = np.diff(points[:, 1]) / np.diff(points[:, 0])
    assert slopes == pytest.approx(slopes.mean(), rel=0.1)
    browser.evaluate("document.querySelector('#training .surface').focus()")
    browser.press("ArrowRight")
    assert "j=12" in browser.until("location.hash.includes('j=12') && location.hash")


def test_a_run_without_a_log_has_no_such_figure(
    browser: Browser, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(page_of(content(Store(str(store)), "store", ["other"])))
    browser.open((tmp_path / "page.html").as_uri())
    assert browser.until("document.querySelector('#training')?.hidden")
    for absent in ("windows", "turns"):
        hidden = f"document.querySelector('#{absent}').hidden"
        assert browser.evaluate(hidden) == (absent == "windows")  # of six checkpoints none is
    assert browser.evaluate("document.querySelectorAll('.change').length") == 0


@pytest.mark.parametrize("group", ["whole model", "layer 1, attn_k", HOSTILE])
def test_turns_by_scale_are_the_store_s(
    browser: Browser, page: str, store: Path, group: str
) -> None:
    browser.open(page)
    choose_group(browser, group)
    said = browser.until(
        "[...document.querySelectorAll('#turns svg title')].map((e) => e.textContent)"
    )
    answer = Store(str(store)).table(query_of(browser, "turns")).to_pylist()
    assert [row["scale"] for row in answer] == [1, 2, 4, 8]  # of 24 checkpoints
    for text, row in zip(said, answer, strict=True):
        scale, turn = re.findall(r"[\d.]+", text)[:2]
        assert int(scale) == row["scale"]
        assert float(turn) == pytest.approx(row["mean_turn_deg"], rel=1e-3)


def test_keys_read_the_redundancy_of_each_role(browser: Browser, page: str, store: Path) -> None:
    """Every place of the strips, against the view, and the order of the layers by a figure of it."""
    browser.open(page)
    browser.until("!!document.querySelector('#redundancy svg rect')")
    rows = {
        (row["layer"], row["component"]): row
        for row in Store(str(store)).table(query_of(browser, "redundancy")).to_pylist()
    }
    columns, roles = [None, 0, 1, 2, 3], [None, "attn_q", "attn_k", "attn_v", "attn_out", "norm"]
    assert {(layer, role) for layer, role in rows} <= {(c, r) for c in columns for r in roles}
    press = "document.querySelector('#redundancy .surface').dispatchEvent(new KeyboardEvent('keydown', {{ key: '{}' }}))"
    told = "document.querySelector('#redundancy-readout').textContent"
    browser.evaluate(press.format("ArrowRight"))
    seen = 0
    for at, layer in enumerate(columns):
        for role in roles:
            if (row := rows.get((layer, role))) is None:
                assert browser.evaluate(told).startswith("Point at")
            else:
                name, _, figures = browser.evaluate(told).partition(": ")
                assert (
                    name
                    == {
                        (True, True): "whole model",
                        (True, False): f"{role}, all layers",
                        (False, True): f"layer {layer}",
                        (False, False): f"layer {layer}, {role}",
                    }[layer is None, role is None]
                )
                values = [float(v.replace(",", "")) for v in re.findall(r" ([\d.,]+) \(", figures)]
                names = (
                    *("saturation_step", "remaining", "settled_step"),
                    *("predictability_1", "effective_rank", "rank_95"),
                )
                assert values == pytest.approx([row[each] for each in names], rel=5e-3, abs=1e-9)
                walks = [
                    float(v.replace(",", ""))
                    for v in re.findall(r"walk (?:≤ )?([\d.,]+)\)", figures)
                ]
                assert walks.pop(1) == 0.141
                expected = [row[f"null_{each}"] for each in names if each != "remaining"]
                assert walks == pytest.approx(expected, rel=5e-3, abs=1e-9)
                seen += 1
            browser.evaluate(press.format("ArrowDown"))
        for _ in roles if at + 1 < len(columns) else ():
            browser.evaluate(press.format("ArrowUp"))
        browser.evaluate(press.format("ArrowRight"))
    assert seen == len(rows) > 20
    browser.evaluate(
        press.format("Home") + ";" + press.format("ArrowRight") + ";" + press.format("Enter")
    )
    browser.until("document.querySelector('.surface').ariaLabel.includes('layer 0, ')")
    browser.evaluate("location.hash = '#order=effective_rank'")
    ticks = "[...document.querySelectorAll('#redundancy svg .ticks')[0].children].map((e) => e.textContent)"
    by_rank = sorted(range(4), key=lambda layer: rows[layer, None]["effective_rank"])
    assert by_rank != [0, 1, 2, 3]
    browser.until(f"{ticks}.join() === {json.dumps(','.join(['all', *map(str, by_rank)]))}")


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite that is followed: a walk whose increments become a quarter as long at step 1500."""
    folder = tmp_path_factory.mktemp("growing")
    name = "layers.0.self_attn.q_proj.weight"
    write_suite(
        folder / "suite",
        {name: changing(30, 20_000).reshape(30, 100, 200)},
        steps=[100 * k for k in range(30)],
    )
    for step in (2800, 2900):  # which come later
        (folder / "suite" / f"step{step}").rename(folder / f"step{step}")
    follow_once(folder / "suite", folder / "store", run="grows")
    return folder


def test_a_followed_run_says_so(browser: Browser, growing: Path) -> None:
    """Until which step, and with standard errors in every picture that a sample has them in."""
    done = hallmarks("report", "--store", growing / "store")
    assert done.returncode == 0, done.stderr
    address = (growing / "store" / "report.html").as_uri()
    browser.open(address + "#i=9&j=9")
    facts = browser.evaluate("document.querySelector('.facts').textContent")
    assert "until step 2,700" in facts and "estimates with standard errors" in facts
    command = browser.evaluate("document.querySelector('.command code').textContent")
    assert command.startswith(f"hallmarks follow {growing / 'suite'} --store ")
    again = hallmarks(*shlex.split(command)[1:], "--once", "--settle", "0")
    assert again.returncode == 0, again.stderr
    opened = Store(str(growing / "store"))
    angle, error = opened.sql(
        "SELECT update_angle_deg, update_angle_stderr_deg FROM path WHERE scope = 'model' AND k = 9"
    ).fetchall()[0]
    text = browser.evaluate("document.querySelector('#curves-readout').textContent")
    said = re.search(r"update angle ([\d.]+)° ± ([\d.]+)°", text)
    assert said and float(said[1]) == pytest.approx(angle, rel=1e-3)
    assert float(said[2]) == pytest.approx(error, rel=0.06)
    assert "update_angle_stderr_deg" in query_of(browser, "curves")
    assert "±" in browser.evaluate("document.querySelector('#turns svg title').textContent")
    headers = browser.evaluate(
        "[...document.querySelectorAll('#figures th[scope=col]')].map((th) => th.textContent)"
    )
    assert "±" in headers


def test_changes_are_marked_on_the_curves(browser: Browser, growing: Path) -> None:
    """In each figure over the checkpoints, at the place of the checkpoint, with what changes there."""
    assert hallmarks("report", "--store", growing / "store").returncode == 0
    browser.open((growing / "store" / "report.html").as_uri() + "#axis=step&i=15&j=15")
    k, step, jump = (
        Store(str(growing / "store"))
        .sql(
            "SELECT DISTINCT k_first, step_first, jump FROM phases WHERE scope = 'model' AND jump IS NOT NULL"
        )
        .fetchall()[0]
    )
    assert k == 15 and jump < 0
    for figure in ("curves", "windows"):
        browser.until(f"!!document.querySelector('#{figure} .changes line')")
        texts = browser.evaluate(
            f"[...document.querySelectorAll('#{figure} .changes text')].map((e) => e.textContent)"
        )
        assert texts == [f"{np.exp(-jump):.1f} × smaller"]
        title = browser.evaluate(f"document.querySelector('#{figure} .changes title').textContent")
        assert title.startswith(f"step {step:,}: increments of the whole model {texts[0]}")
        place, first, last = browser.evaluate(
            f"[document.querySelector('#{figure} .change'), ...['x1', 'x2'].map(() =>"
            f" document.querySelector('#{figure} .rail'))].map((e, n) => n < 2 ? e.x1.baseVal.value : e.x2.baseVal.value)"
        )
        cells = 28  # of checkpoints 100 steps apart, half of one before the first
        assert (place - first) / (last - first) == pytest.approx((k + 0.5) / cells)
        assert browser.evaluate(
            f"document.querySelector('#{figure}-readout').textContent"
        ).endswith(f"; increments of the whole model {texts[0]} from here")


def test_a_growing_run_s_page_loads_itself_again(browser: Browser, growing: Path) -> None:
    """If that was chosen; what is shown stays. A minute is a moment here."""
    store = growing / "store"
    assert hallmarks("report", "--store", store).returncode == 0
    address = (store / "report.html").as_uri()
    script = browser.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="(() => { const wait = setTimeout; window.setTimeout = (act, ms) => wait(act, ms === 60000 ? 300 : ms) })()",
    )
    try:
        browser.open(address + "#kind=weights")
        browser.evaluate("window.before = true")
        for step in (2800, 2900):
            (growing / f"step{step}").rename(growing / "suite" / f"step{step}")
        follow_once(growing / "suite", store, run="grows")
        assert hallmarks("report", "--store", store).returncode == 0
        assert browser.evaluate("window.before")  # nobody has chosen it
        browser.evaluate("document.querySelector('.reload input').click()")
        browser.until("document.querySelector('.facts')?.textContent.includes('until step 2,900')")
        assert not browser.evaluate("window.before")
        fragment = browser.evaluate("location.hash")
        assert "kind=weights" in fragment and "reload=1" in fragment
        browser.until("document.querySelector('.reload input')?.checked")
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", **script)
        browser.call("Page.navigate", url="about:blank")


def test_a_whole_run_s_page_does_not(browser: Browser, page: str) -> None:
    browser.open(page + "#reload=1")
    assert not browser.evaluate("document.querySelector('.reload')")


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
    assert browser.evaluate("document.querySelector('#turns .title').textContent").startswith(
        HOSTILE
    )
    assert HOSTILE.replace("'", "''") in query_of(browser, "turns")


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


@pytest.mark.parametrize("width", [400, 1000, 1600])
@pytest.mark.parametrize("medium", ["screen", "print"])
def test_axes_and_canvas_keep_together(
    browser: Browser, page: str, width: int, medium: str
) -> None:
    browser.open(page, width=width)
    browser.call("Emulation.setEmulatedMedia", media=medium)
    canvas, frame = browser.evaluate(
        "['canvas', 'svg .frame'].map((what) => {"
        " const box = document.querySelector(`#map ${what}`).getBoundingClientRect();"
        " return [box.x, box.y, box.width, box.height] })"
    )
    assert canvas == pytest.approx(frame, abs=1.5)


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
    browser.until("!!document.querySelector('.grid-numbers')")


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


@pytest.mark.parametrize(
    ("dark", "width"), [(False, 400), pytest.param(True, 1600, marks=pytest.mark.slow)]
)
def test_axe_finds_nothing_in_a_growing_run(
    browser: Browser, growing: Path, dark: bool, width: int
) -> None:
    assert hallmarks("report", "--store", growing / "store").returncode == 0
    address = (growing / "store" / "report.html").as_uri()
    browser.open(address + "#i=15&j=15", width=width, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(browser) == []


CLICKED, IN_NUMBERS = "#i=3&j=9&a=2&b=6", "#show=numbers&minus=1&kind=increments"


@pytest.mark.parametrize(
    ("fragment", "dark", "width"),
    [  # all that may differ, and with the slow ones every pair of it: each takes seconds
        (CLICKED, False, 400),
        (IN_NUMBERS, True, 1600),
        *(
            pytest.param(fragment, dark, width, marks=pytest.mark.slow)
            for fragment, dark in ((CLICKED, True), (IN_NUMBERS, False))
            for width in (400, 1600)
        ),
    ],
)
def test_axe_finds_nothing(
    browser: Browser, page: str, fragment: str, dark: bool, width: int
) -> None:
    browser.open(page + fragment, width=width, dark=dark)
    assert violations(browser) == []


def violations(browser: Browser) -> list[Any]:
    """Return what axe-core finds in a page with all its folds open."""
    browser.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    browser.evaluate(lzma.decompress(AXE_CORE.read_bytes()).decode() + "; 0")
    return browser.evaluate(
        "axe.run().then((run) => run.violations.map((rule) => [rule.id, rule.impact, rule.nodes[0].html]))"
    )


def odd_suites() -> dict[str, dict[str, Any]]:
    """Tensors of runs of which little is known: nothing moves, nothing is finite, two checkpoints, …"""
    still = np.repeat(trajectory("walk", 1, 300, 0.1), 4, axis=0)
    lost = trajectory("walk", 4, 300, 0.1)
    lost[1:] = np.nan
    everything_lost = np.full((3, 300), np.nan)
    pair = trajectory("walk", 2, 300, 0.1)
    roles = {
        f"{stack}.block.0.layer.0.SelfAttention.{role}.weight": trajectory(
            "walk", 5, 100, 0.1
        ).reshape(5, 10, 10)
        for stack in ("encoder", "decoder")
        for role in "qkvo"
    }
    return {
        "still": {"layers.0.w.weight": still},
        "one-left": {"layers.0.w.weight": lost},
        "all-lost": {"layers.0.w.weight": everything_lost},
        "pair": {"w": pair},
        "stacks": roles,
        "zeros": {"layers.0.w.weight": np.zeros((4, 300))},
    }  # fmt: skip


@pytest.mark.parametrize("name", odd_suites())
def test_odd_runs_are_shown(browser: Browser, tmp_path: Path, name: str) -> None:
    suite = write_suite(tmp_path / name, odd_suites()[name])
    pipeline.analyze(suite, tmp_path / "store", executor="local")
    done = hallmarks("report", "--store", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    for fragment in (
        "",
        "#kind=weights&axis=log&i=0&j=1&a=0&b=1",
        "#kind=increments&show=numbers&minus=1&columns=qkv",
    ):
        browser.open((tmp_path / "store" / "report.html").as_uri() + fragment)
        browser.evaluate(
            "for (const each of document.querySelectorAll('details')) each.open = true"
        )
        browser.until("document.querySelectorAll('.numbers table').length >= 2")


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
