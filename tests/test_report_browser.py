"""The report in a real browser, at the width of a desktop and of a phone: Debian's chromium, without a window.

Skips where there is no chromium, or fails there if PREFDATA_REQUIRE names `browser`.
"""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefdata.report import of_run, of_version
from tests.published import publish
from tests.report_world import HOSTILE, World
from tests.required import lacking

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for all tests of this file."""
    from selenium import webdriver

    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        lacking("browser", "there is no chromium with its chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(program)
    # a container gives no user namespaces for the sandbox and little shared memory; what is opened is our own page
    for switch in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(driver)))
    yield browser
    browser.quit()


class Tab:
    """A page that is open, and what the browser had to say of it."""

    def __init__(self, browser: Any, page: Path, width: str) -> None:
        wide, high = WIDTHS[width]
        metrics = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": width == "phone"}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get_log("browser")  # forgets what was said of the page before
        browser.get(page.as_uri())
        self.browser = browser

    def run(self, script: str) -> Any:
        return self.browser.execute_script(script)

    def log(self) -> list[str]:
        """Errors, refused scripts and requests: everything on the console."""
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def visible_rows(self) -> list[str]:
        found: list[str] = self.run(
            "return [...document.querySelectorAll('details.row')].filter((row) => row.checkVisibility())"
            ".map((row) => row.querySelector('.begins').textContent)"
        )
        return found

    def type(self, text: str) -> None:
        field = self.browser.find_element("id", "search")
        field.clear()
        field.send_keys(text)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def pages(world: World) -> dict[str, Path]:
    """A page of hostile pairs and segments, one of completions, and one of a run."""
    texts = list(HOSTILE.values())
    made = [world.pair(text, f"{text} good {n}", f"{text} bad", source=text) for n, text in enumerate(texts)]
    made += [world.pair(f"quiet question {n}", f"calm answer {n}", "loud " * n) for n in range(40)]
    segments = [world.regenerated(f"part {n}", "It was ", text, "a dog", ".") for n, text in enumerate(texts)]
    sources = [{"name": text, "license": text, "format": text, "rows": 1} for text in texts[:6]]
    asked = {"config": {text: text for text in texts}, "sources": sources}
    pairs = world.publish(made, test=segments, segments=True, **asked)
    answers = [world.completion(text, text, score=1.0, method=text) for text in texts]
    htmls = {
        name: of_version.page(version).html
        for name, version in {
            "pairs": pairs,
            "completions": publish(world.root, "completions", train=answers, **{**world.fields, **asked}),
        }.items()
    }
    htmls["run"] = of_run.page(str(_hostile_run(world.root.parent / "run", texts)), pairs.root).html
    return {name: _written(world, name, html) for name, html in htmls.items()}


def _hostile_run(folder: Path, texts: list[str]) -> Path:
    """A run whose folder holds hostile text wherever there can be text, with curves."""
    from torch.utils.tensorboard import SummaryWriter

    parts = [{"version": text, "logical_hash": text} for text in [*texts, "v1"]]
    measured = dict.fromkeys(texts, 1.0) | {"nll_loss": 1.0}
    config = {
        "loss": texts[0],
        "knobs": {text: text for text in texts},
        "policy": {"name": texts[1], "digest": texts[2]},
    }
    config |= {"data": {"version": texts[3], "parts": parts}, texts[4]: texts[5]}
    run = {"format": "prefdata-run/1", "status": texts[6], "config": config, "before": measured, "after": measured}
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    agreement = {"mean": 1.0, "tokens": 1, "rows": 1, "same_model": True, "allowed": 0.1}
    (folder / "step0.json").write_text(json.dumps(dict.fromkeys(texts, agreement)), encoding="utf-8")
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for step in range(3):
            writer.add_scalar("train/loss", 1.0 / (step + 1), step)
            writer.add_scalar(texts[0], math.nan, step)  # an alarm tells its name
    return folder


def _written(world: World, name: str, html: str) -> Path:
    path = world.root.parent / f"{name}.html"
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture(params=WIDTHS)
def width(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("name", ["pairs", "completions", "run"])
def test_hostile_rows_run_nothing_and_make_nothing(
    name: str, pages: dict[str, Path], chromium: Any, width: str
) -> None:
    tab = Tab(chromium, pages[name], width)
    tab.run("document.querySelectorAll('details').forEach((row) => { row.open = true; })")
    assert tab.run("return typeof window.canary") == "undefined"
    assert tab.run("return document.title").endswith("prefdata report")
    injected = (
        "img, iframe, object, embed, link, base, textarea, template, foreignObject, body body, main h1, main style"
    )
    assert tab.run(f"return document.querySelectorAll('{injected}').length") == 0
    assert tab.run("return document.querySelectorAll('script').length") == 1
    handlers = "[...e.attributes].some((a) => a.name.startsWith('on') || a.value.trim().startsWith('javascript:'))"
    assert tab.run(f"return [...document.querySelectorAll('*')].filter((e) => {handlers}).length") == 0
    assert tab.run("return performance.getEntriesByType('resource').length") == 0
    assert tab.log() == []


@pytest.mark.parametrize("name", ["pairs", "completions", "run"])
def test_nothing_is_wider_than_the_window(name: str, pages: dict[str, Path], chromium: Any, width: str) -> None:
    tab = Tab(chromium, pages[name], width)
    tab.run("document.querySelectorAll('details').forEach((row) => { row.open = true; })")
    assert tab.run("return document.documentElement.scrollWidth") == WIDTHS[width][0]
    beyond = "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1)"
    # what scrolls inside a box of its own, or is clipped by one, is not beyond the window
    inside = ".filter((e) => !e.closest('.drawing, summary, .tokens, .turn p')).map((e) => e.outerHTML.slice(0, 90))"
    assert tab.run(f"return {beyond}{inside}") == []


def test_search_and_badges_narrow_the_rows(pages: dict[str, Path], chromium: Any, width: str) -> None:
    tab = Tab(chromium, pages["pairs"], width)
    every = tab.visible_rows()
    tab.type("CALM quiet")
    calm = tab.visible_rows()
    assert len(calm) == 40
    assert all(text.startswith("quiet question") for text in calm)
    assert tab.run("return document.getElementById('found').value") == f"40 of {len(every)} rows"
    tab.run(
        "const only = document.getElementById('only'); only.value = 'rejected longer';"
        "only.dispatchEvent(new Event('change'))"
    )
    assert 0 < len(tab.visible_rows()) < 40
    tab.type("no such words anywhere")
    assert tab.visible_rows() == []
    tab.type("<img")
    tab.run("const only = document.getElementById('only'); only.value = ''; only.dispatchEvent(new Event('change'))")
    assert any("onerror" in text for text in tab.visible_rows())
    assert tab.log() == []


def test_rows_unfold_and_a_piece_tells_its_log_prob(pages: dict[str, Path], chromium: Any, width: str) -> None:
    tab = Tab(chromium, pages["pairs"], width)
    count = "return [document.querySelectorAll('details.row[open]').length, document.querySelectorAll('details.row').length]"
    assert tab.run(count)[0] == 3
    tab.browser.find_element("id", "unfold").click()
    opened, rows = tab.run(count)
    assert opened == rows
    piece = tab.browser.find_element("css selector", "details.row i[data-p]")
    tab.run("document.querySelector('details.row i[data-p]').click()")
    assert tab.browser.find_element("css selector", ".told").text == f"{piece.get_attribute('data-p')} nats"
    assert tab.log() == []


def test_shades_and_marks_can_be_seen(pages: dict[str, Path], chromium: Any) -> None:
    """Each shade is another background, and so is what a segment is underlined with: in both themes."""
    tab = Tab(chromium, pages["pairs"], "desktop")
    for theme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": theme}]
        tab.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        shades = "[...document.querySelectorAll('.legend i')].map((e) => getComputedStyle(e).backgroundColor)"
        assert tab.run(f"return new Set({shades}).size") == 7
        marked = "return getComputedStyle(document.querySelector('.rejected mark')).textDecorationLine"
        assert tab.run(marked) == "underline"
    tab.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_every_picture_and_field_has_a_name(pages: dict[str, Path], chromium: Any) -> None:
    tab = Tab(chromium, pages["pairs"], "desktop")
    nameless = (
        "return [...document.querySelectorAll('svg:not([aria-hidden]), input, select, button, nav')].filter((e) =>"
        " !(e.getAttribute('aria-label') || e.closest('label') || e.textContent.trim())).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert tab.run(nameless) == []
    assert tab.run(
        "return [...document.querySelectorAll('main > section')].every((e) => e.getAttribute('aria-labelledby'))"
    )


def test_a_script_that_got_in_all_the_same_is_refused_by_the_page(
    world: World, pages: dict[str, Path], chromium: Any
) -> None:
    """Shows that the tests above could fail: what they look for happens, and the browser says so."""
    html = pages["pairs"].read_text(encoding="utf-8")
    attack = "<main id=\"main\"><script>window.canary=1</script><img src=x onerror='window.canary=2'>"
    tab = Tab(chromium, _written(world, "attacked", html.replace('<main id="main">', attack)), "desktop")
    assert tab.run("return typeof window.canary") == "undefined"
    assert any("Content Security Policy" in message for message in tab.log())
    unguarded = html.replace('<main id="main">', attack).replace("Content-Security-Policy", "x-nothing")
    tab = Tab(chromium, _written(world, "unguarded", unguarded), "desktop")
    assert tab.run("return typeof window.canary") == "number"
