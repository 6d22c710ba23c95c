"""What a page of `planner report` weighs, and how fast it answers: `python -m benchmarks.explorer`.

A made-up model of 1,800 tensors in 20 formats and the tensors of a published one, in headless Chromium. *Ready* is from
the start of loading until the first answer is on the screen. A *drag* moves the slider to 200 places: from its event to
the frame that shows the answer. *In full* is the answer that is looked for when nothing moves, at 60 budgets.
"""

from __future__ import annotations

import csv
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from benchmarks.solvers.problems import DATA, FORMATS
from planner.plan.findings import Findings
from planner.plan.request import PlanRequest
from planner.report.page import Start, report_page
from state import Store
from tests import tiny
from tests.report.page.conftest import SWITCHES, installed_browser

ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "ssm_in", "ssm_out")
DRAG = """async () => {
    const slider = document.getElementById("slider"), times = [];
    for (let i = 0; i < 200; i++) {
        slider.value = String(500 + Math.round(499 * Math.sin(i / 9)));
        const before = performance.now();
        slider.dispatchEvent(new Event("input"));
        await new Promise((done) => requestAnimationFrame(() => {
            document.body.offsetHeight; // what is left to lay out counts
            times.push(performance.now() - before);
            done();
        }));
    }
    return times;
}"""
FULL = """() => Array.from({ length: 60 }, (_, i) => {
    const { problem, view, chart } = explorer, before = performance.now();
    solve(problem, chart.sizeAt(10 + 16 * i) - problem.overhead, view.pins);
    return performance.now() - before;
})"""
READY = "performance.getEntriesByName('ready')[0].startTime"  # a mark that the page sets when it has drawn itself


def published(model: str) -> dict[str, tuple[int, ...]]:
    with (DATA / f"{model}.csv").open(newline="") as file:
        return {row["tensor"]: tuple(map(int, row["shape"].split("x"))) for row in csv.DictReader(file)}


def made_up() -> dict[str, tuple[int, ...]]:
    return {f"blk.{b}.{role}.weight": (2048, 512 + 64 * n) for b in range(200) for n, role in enumerate(ROLES)}


def page_of(shapes: Mapping[str, tuple[int, ...]], folder: Path) -> str:
    folder.mkdir()
    state = tiny.write(folder / "x.planner", shapes, measured=[name for name in FORMATS if name != "bf16"])
    with Store.open(state.path, read_only=True) as store:
        findings = Findings.read(store)
    return report_page(findings, PlanRequest(budget=1, sensitivity="prior"), Start())


def times(page: Page, path: Path) -> tuple[float, list[float], list[float]]:
    page.goto(path.as_uri())
    page.wait_for_function("typeof explorer !== 'undefined'")
    ready = page.evaluate(READY)
    return ready, page.evaluate(DRAG), page.evaluate(FULL)


def main() -> None:
    print("model    tensors     page     ready      drag   slowest   in full   slowest")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed_browser(), args=[*SWITCHES])
        for name, shapes in (("made up", made_up()), ("GLM-5.1", published("GLM-5.1"))):
            path = Path(folder, f"{name}.html")
            path.write_text(page_of(shapes, Path(folder) / name.replace(" ", "-")), encoding="utf-8")
            ready, drags, full = times(browser.new_page(viewport={"width": 1366, "height": 768}), path)
            figures = (ready, statistics.median(drags), max(drags), statistics.median(full), max(full))
            print(
                f"{name:8} {len(shapes):7,} {path.stat().st_size / 1e6:5.2f} MB",
                *(f"{figure:6.1f} ms" for figure in figures),
                flush=True,
            )
        browser.close()


if __name__ == "__main__":
    main()
