"""Opens pages in the machine's own Chromium through Playwright, offline, and records their faults."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_MARKS = "svg .mark-line path, svg .mark-rect path, svg .mark-symbol path, svg .mark-rule line"
_DRAWN = (
    "() => [...document.querySelectorAll('.chart')].filter(chart => chart.clientWidth)"
    f".every(chart => chart.querySelector('canvas, {_MARKS}'))"
)


def chromium() -> str | None:
    """Path of an installed Chromium or Chrome, or None."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@contextmanager
def launched(binary: str) -> Iterator[Browser]:
    """A headless browser; containers give it no sandbox."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """A tab with one file open, with its complaints.

    Attributes:
        page: Playwright's page.
        complaints: Errors and warnings of the console, exceptions, requests other than for the file itself.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)

    def run(self, expression: str) -> Any:
        """Value of a JavaScript expression; a promise is awaited."""
        return self.page.evaluate(expression)

    def draw_everything(self) -> None:
        """Open all details, make the window as tall as the page, so that every chart is near, and wait for them."""
        self.run("document.querySelectorAll('details').forEach(details => details.open = true)")
        size = self.page.viewport_size
        assert size is not None
        self.page.set_viewport_size({"width": size["width"], "height": self.run("document.body.scrollHeight") + 200})
        self.wait_until_drawn()

    def wait_until_drawn(self) -> None:
        """Wait until every chart that has a place has marks."""
        self.page.wait_for_function(_DRAWN)

    def choose(self, name: str, value: str | int) -> None:
        """Set a control of the explorer as a person does, by its visible text or position."""
        control = self.page.locator(f"#explore [name={name}]")
        if control.get_attribute("type") == "range":
            control.fill(str(value))
        elif isinstance(value, int):
            control.select_option(index=value)
        else:
            control.select_option(label=value)

    def rows(self, selector: str) -> list[list[str]]:
        """Texts of the visible cells of a table's body, row by row."""
        script = (
            "selector => [...document.querySelectorAll(`${selector} tbody tr`)].filter(row => row.checkVisibility())"
            ".map(row => [...row.cells].map(cell => cell.textContent.trim()))"
        )
        found: list[list[str]] = self.page.evaluate(script, selector)
        return found

    def violations(self) -> list[str]:
        """Serious and critical findings of axe, each with the first places that it names."""
        response = Axe().run(self.page).response
        return [
            f"{found['id']}: {found['help']} at {[node['target'] for node in found['nodes'][:3]]}"
            for found in response["violations"]
            if found["impact"] in ("serious", "critical")
        ]


def visit(browser: Browser, path: Path, width: int, *, dark: bool = False, scripts: bool = True, at: str = "") -> Visit:
    """Open a file, at an anchor if one is given, in a fresh context without network."""
    context = browser.new_context(
        offline=True,
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        java_script_enabled=scripts,
        is_mobile=width < 600,
    )
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    visited = Visit(tab)
    address = path.resolve().as_uri() + (f"#{at}" if at else "")

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            visited.complaints.append(f"console {message.type}: {message.text}")

    def fail(error: Error) -> None:
        visited.complaints.append(f"exception: {error}")

    def note_request(request: Request) -> None:
        if request.url != address.partition("#")[0]:
            visited.complaints.append(f"request: {request.url}")

    tab.on("console", note)
    tab.on("pageerror", fail)
    tab.on("request", note_request)
    tab.goto(address)
    return visited
