"""The pages as a person meets them: opened from disk in a real browser.

Each is shown narrow and wide, light and dark: no error on the console, no request that
leaves the page, nothing wider than the window; what folds or explains itself does so by
keyboard, and hostile text of a run is text.
"""

import json
import os
import shutil

import pytest
import sweep_cases

pytest.importorskip("playwright")
from pathlib import Path

from playwright.sync_api import sync_playwright

from dpo_jax import gallery
from dpo_jax.losses import LOSSES
from dpo_jax.report import html, sweep_table

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "runs" / "docs"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>boom()</script>"
PAGES = ("index", "losses", "keys", "metrics", "experiments/fig2_imdb_frontier")
LOCAL = ("file:", "data:", "blob:", "about:")


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("no chromium")
    with sync_playwright() as play:
        started = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture(params=[390, 1200], ids=["narrow", "wide"])
def width(request):
    return request.param


@pytest.fixture(params=["light", "dark"])
def tab(request, chromium, width):
    """A tab, and what went wrong in it."""
    context = chromium.new_context(
        viewport={"width": width, "height": 900}, color_scheme=request.param
    )
    page, wrong = context.new_page(), []
    page.on(
        "console", lambda said: said.type == "error" and wrong.append(said.text) or None
    )
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request",
        lambda asked: asked.url.startswith(LOCAL) or wrong.append(asked.url),
    )
    yield page, wrong
    context.close()


def opened(tab, path):
    page, wrong = tab
    page.goto(path.resolve().as_uri())
    page.wait_for_load_state("load")
    assert (
        page.evaluate("document.documentElement.scrollWidth")
        <= (page.viewport_size["width"])
    )
    assert not wrong
    return page


def write_run(folder, start, name):
    folder.mkdir()
    rows = [
        {"step": s, "split": "train", "loss": start / s, "rewards/margins": s / 10}
        for s in range(1, 30)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = {"seed": 1, "loss": {"name": name, "beta": 0.1}, "data": {"train": EVIL}}
    (folder / "config.json").write_text(json.dumps(config))
    samples = [{"prompt": EVIL, "before": EVIL * 9, "after": "b" * 400}]
    (folder / "samples.json").write_text(json.dumps(samples))
    return folder


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    runs = [write_run(folder / n, 0.7, n) for n in ("dpo", "ipo", "simpo")]
    html.write_report(runs[:1], folder / "one.html")
    html.write_report(runs, folder / "many.html")
    return folder


@pytest.mark.parametrize("name", ["one", "many"])
def test_reports(tab, reports, name):
    page = opened(tab, reports / f"{name}.html")
    assert page.title() != "owned"
    assert "<script>boom()</script>" in page.inner_text("body")
    assert page.locator("svg").count() >= 2


def test_a_metric_explains_itself_by_keyboard(tab, reports):
    page = opened(tab, reports / "one.html")
    tip = page.locator(".tip").first
    shown = "getComputedStyle(document.querySelector('.tip'), '::after').content"
    assert page.evaluate(shown) in ("none", "normal")
    for _ in range(40):
        page.keyboard.press("Tab")
        if tip.evaluate("tip => tip === document.activeElement"):
            break
    assert "ln 2" in page.evaluate(shown)
    assert (
        page.evaluate("document.documentElement.scrollWidth")
        <= (page.viewport_size["width"])
    )


def test_what_is_folded_unfolds_by_keyboard(tab, reports):
    page = opened(tab, reports / "one.html")
    fold = page.locator("details").first
    assert not fold.evaluate("fold => fold.open")
    fold.locator("summary").focus()
    page.keyboard.press("Enter")
    assert fold.evaluate("fold => fold.open")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep's page, with a trial that failed and says hostile things."""
    folder = tmp_path_factory.mktemp("sweep")
    settings = {
        "dpo": {0.1: (0.5, 1.0), 1.0: (0.6, 3.0)},
        "ipo": {0.1: (0.9, 30.0), 1.0: (0.7, 4.0)},
    }
    entries = sweep_cases.grid(folder, settings)
    failed = sweep_cases.entry(folder, "failed", loss__name="ipo", loss__beta=9.0)
    sweep_table.write([*entries, failed._replace(state=f"failed: {EVIL}")], str(folder))
    return folder / "table.html"


def test_a_table_of_a_sweep(tab, sweep):
    """The figure is there without a request; wide tables scroll by themselves."""
    page = opened(tab, sweep)
    assert page.title() != "owned" and "boom()" in page.inner_text("ul.notes")
    assert page.locator("table").count() == 3
    assert page.locator("img").evaluate("drawn => drawn.naturalWidth") > 1000
    for area in page.locator(".scroll").all():  # by keyboard, too
        assert area.evaluate("area => area.tabIndex") == 0


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    out = tmp_path_factory.mktemp("losses") / "losses.html"
    table = {name: LOSSES[name] for name in ("dpo", "ipo", "simpo", "kto")}
    gallery.page.write_explorer(gallery.loss_entries(table), out)
    return out


def test_losses(tab, losses):
    assert opened(tab, losses).locator("svg").count() >= 4


@pytest.mark.parametrize("name", PAGES)
def test_documentation(tab, name):
    page = opened(tab, DOCS / f"{name}.html")
    assert page.locator("h1").count() == 1
    assert "{{" not in page.inner_text("article")


def test_the_documentation_is_searched_from_disk(tab):
    page = opened(tab, DOCS / "index.html")
    if page.viewport_size["width"] < 600:
        page.locator("label[for=__search]").first.click()
    page.locator(".md-search__input").click()
    page.keyboard.type("plackett_luce", delay=30)
    page.locator(".md-search-result__link").first.wait_for()
    assert "osses" in page.locator(".md-search-result__list").inner_text()
