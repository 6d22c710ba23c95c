"""A browser for the pages that `planner report` writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright

# As root, and in containers, there is no sandbox and little shared memory; and a browser is to ask nobody anything
SWITCHES = (
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

Open = Callable[..., Page]


def installed_browser() -> str | None:
    """Return a browser of the machine's; None for the one that playwright installs."""
    return next(filter(None, map(shutil.which, _BROWSERS)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=installed_browser(), args=[*SWITCHES])
        except Error as error:
            pytest.fail(
                f"No browser for the tests of pages: {error}\n"
                "Install chromium, or run `.venv/bin/python -m playwright install --with-deps chromium`."
            )
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Open a page; at the end of the test, nothing may have been said to the console, asked for or thrown."""
    complaints: list[str] = []
    contexts = []

    def open_it(path: Path, **options: object) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1366, "height": 768}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url == path.resolve().as_uri() or complaints.append(request.url))
        page.goto(path.resolve().as_uri())
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert complaints == []
