"""The page of a comparison, in a browser: it opens from a file, asks for nothing, and runs nothing but its own."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import pytest

from planner.llama.evaluate.results import Comparison, Original
from planner.llama.evaluate.statistics import Estimate
from planner.plan.curve import CurvePoint
from planner.report.comparison import comparison_page
from planner.sensitivity import Prediction
from tests.llama.evaluate.test_frontier import noisy, result

HOSTILE = "<script>document.title='hacked'<\\script><img src=x onerror=alert(1)>\x1b[31m{{table}}&amp;-->"


def comparison(*results):
    original = Original("/models/Name & Co <7B>.gguf", 1 << 30, 16.0, Estimate(10.0, 0.5))
    return Comparison(original, 512, 40, {one.name: one for one in results})


@pytest.fixture
def page(tmp_path):
    """A page of five files: two on the frontier, one beaten, one tied, one without a divergence."""
    found = comparison(
        result("a.gguf", 4_000_000_000, noisy(0.1, 1)), result("b.gguf", 5_000_000_000, noisy(0.02, 2)),
        result("dir/c.gguf", 6_000_000_000, noisy(0.3, 3)), result("b again.gguf", 5_000_000_001, noisy(0.02, 2)),
        result(HOSTILE, 7_000_000_000, [math.inf] * 40),
    )  # fmt: skip
    path = tmp_path / "page.html"
    path.write_text(comparison_page(found), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(args=["--no-sandbox"])
        except sync.Error:
            try:
                found = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            except sync.Error as error:
                pytest.skip(f"no browser: {error.message.splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture
def opened(browser, page):
    """The page in a window of a size, and what was said on the console or asked for on the way."""
    windows = []

    def call(width=1280, height=900, scheme="light"):
        window = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        said: list[str] = []
        window.on("console", lambda message: said.append(message.text))
        window.on("pageerror", lambda error: said.append(str(error)))
        window.on("request", lambda request: said.append(request.url) if request.url != page.as_uri() else None)
        window.on("dialog", lambda dialog: said.append(dialog.message))
        window.goto(page.as_uri())
        window.wait_for_selector("#chart .point")
        windows.append(window)
        return window, said

    yield call
    for window in windows:
        window.close()


def test_it_is_one_file_and_well_formed(page):
    text = page.read_text(encoding="utf-8")
    assert len(text) < 40_000
    assert not re.search(r"""(src|href)=["']?(http|//)|@import|url\(""", text)
    assert text.count("<script") == 2

    class Tags(HTMLParser):
        stack: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                self.stack.append(tag)

        def handle_endtag(self, tag):
            assert self.stack.pop() == tag

    parser = Tags()
    parser.feed(text)
    assert parser.stack == []
    assert json.loads(text.split('id="data">')[1].split("</script>")[0])["points"][4]["kld"] is None


@pytest.mark.parametrize("window", [(1280, 900, "light"), (390, 800, "dark")])
def test_it_opens(opened, window):
    page, said = opened(*window)
    assert said == []
    assert page.title() == "Name & Co <7B>, quantized"
    assert page.locator("#chart .point").count() == 4
    assert page.locator("tbody tr").count() == 5
    assert page.locator("#chart circle.frontier").count() == 2
    assert page.locator("#chart path.beaten").count() == 1
    assert page.locator("#chart circle.tie").count() == 1
    assert "Not in the chart: 1" in page.locator("#missing").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    colours = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.documentElement).backgroundColor]"
    )
    assert len({*colours}) == 2
    assert page.locator("tbody th").nth(4).inner_text().startswith("<script>document")


def test_pointing_names_a_file(opened):
    page, said = opened()
    box = page.locator("#chart .point .halo").nth(1).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator("#tip").inner_text()
    assert "2 b.gguf" in tip
    assert "3 b again.gguf" in tip  # which lies beneath
    assert "tie with 2" in tip
    assert page.locator("tbody tr.lit").count() == 2
    page.mouse.move(5, 5)
    assert page.locator("#tip").is_hidden()
    page.locator("#chart .point").nth(0).focus()
    assert "a.gguf" in page.locator("#tip").inner_text()
    page.keyboard.press("Tab")
    assert "b.gguf" in page.locator("#tip").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()
    assert said == []


def test_the_table_is_sorted_by_a_click(opened):
    page, said = opened()
    button = page.get_by_role("button", name="mean KLD")
    order = "[...document.querySelectorAll('tbody tr')].map((row) => row.dataset.place).join('')"
    assert page.evaluate(order) == "12345"
    button.click()
    assert page.evaluate(order) == "23145"
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("mean KLD")
    button.click()
    assert page.evaluate(order) == "54123"
    assert said == []


def test_larger_and_smaller_windows(opened):
    page, said = opened()
    wide = page.locator("#chart .point .halo").nth(3).bounding_box()["x"]
    page.set_viewport_size({"width": 500, "height": 800})
    page.wait_for_function(
        f"document.querySelectorAll('#chart .point .halo')[3].getBoundingClientRect().x < {wide / 2}"
    )
    assert page.locator("#chart .point").count() == 4
    assert said == []


class Line:
    """A curve as far as a page reads it: from 1 to 20 GB, at 2 nats a GB and its inverse, with hostile words."""

    source = HOSTILE

    def within(self, size):
        found = Prediction(2e9 / size, 1e9 / size, 4e9 / size)
        return CurvePoint(size, 4.0, 1.0, found, 0.0) if size > 4_500_000_000 else None

    points = tuple(
        CurvePoint(gb * 10**9, 4.0, 1.0, Prediction(0.2 / gb, 0.1 / gb, 0.4 / gb), 0.0) for gb in range(1, 21)
    )


def test_our_curve_lies_beneath(opened, page):
    found = comparison(result("a.gguf", 4_000_000_000, noisy(0.1, 1)), result("b.gguf", 8_000_000_000, noisy(0.02, 2)))
    page.write_text(comparison_page(found, Line()), encoding="utf-8")
    shown, said = opened()
    assert said == []
    corners = shown.get_attribute("#chart path.ours", "d")[1:].split("L")
    across = [float(corner.split()[0]) for corner in corners]
    marks = [float(shown.get_attribute(f"#chart .point >> nth={n} >> .halo", "cx")) for n in (0, 1)]
    assert sum(marks[0] - 1 <= at <= marks[1] + 1 for at in across) == 5  # 4, 5, 6, 7 and 8 GB
    assert across == sorted(across)
    down = [float(corner.split()[1]) for corner in corners]
    assert down == sorted(down)  # on the page, less is further down
    box = shown.evaluate("document.querySelector('#chart path.interval').getBBox().height")
    assert 0 < box <= shown.evaluate("document.getElementById('chart').clientHeight")
    assert shown.locator("thead th").last.inner_text() == "ours, predicted"
    assert shown.locator("tbody tr td:last-child").all_inner_texts() == ["", "0.25"]
    assert "predicted" in shown.locator(".legend").inner_text()
    assert "predicted, not evaluated" in shown.locator("section .hint").last.inner_text()
    assert "predicted" not in comparison_page(found)


def test_nothing_to_draw():
    text = comparison_page(comparison(result("a.gguf", 1, [0.0] * 10)))
    assert '"kld": 0.0' in text
    assert comparison_page(comparison()).count("<tr>") == 1
