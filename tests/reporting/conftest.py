"""One example project, rendered once, and one browser for all tests of the page."""

import shutil
from pathlib import Path

import polars as pl
import pytest
from playwright.sync_api import sync_playwright

from moe_beyond.capture.settings import TracesSettings
from moe_beyond.reporting.page import compose, render_report
from moe_beyond.reporting.read import read_run
from moe_beyond.reporting.settings import ReportSettings
from moe_beyond.simulator.study.settings import SimulateSettings
from tests.reporting.browsing import Visit
from tests.reporting.example import CAPACITIES, DEVICES, write_example

# small figures: their size is not what these tests are about
SMALL = ReportSettings(chart_width=400, figure_scale=1)


def run_of(root, source="reference", **settings):
    """The run in a folder, as the report stage reads it."""
    headline = {"headline_capacity": 0.1, "headline_device": "laptop_nvme"}
    replayed = {"capacities": tuple(CAPACITIES.values()), "devices": tuple(DEVICES)} | headline | settings
    return read_run(root, 7, TracesSettings(source=source), SimulateSettings(**replayed))


def html_of(root, **settings):
    """The page without its pictures, which take most of the time."""
    return compose(run_of(root, **settings), ReportSettings()).html


def render(root):
    """Write the page and its small pictures."""
    render_report(root, run_of(root), SMALL)


def rewrite(root, change, *names):
    """Replace the tables of the device and of the unlimited link, and others named, by what `change` makes of them."""
    for name in ("on_device", "unlimited_link", *names):
        path = root / f"reports/simulate/tables/{name}.parquet"
        change(pl.read_parquet(path)).write_parquet(path)


@pytest.fixture(scope="session")
def rendered(tmp_path_factory):
    """A project whose every table has rows, and its page."""
    root = tmp_path_factory.mktemp("project")
    write_example(root)
    render(root)
    return root


@pytest.fixture(scope="session")
def run(rendered):
    return run_of(rendered)


@pytest.fixture
def copy(rendered, tmp_path):
    """The same to change."""
    return Path(shutil.copytree(rendered, tmp_path / "copy"))


@pytest.fixture(scope="module")
def browser():
    """One for a module, not for the session: while it is there, no other test could start an event loop."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    binary = next(filter(None, map(shutil.which, names)), None)
    if binary is None:
        pytest.skip("no Chromium or Chrome on PATH; the page is not looked at")
    with sync_playwright() as driver:
        # containers give it no sandbox
        browser = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, rendered):
    """Opens the example's page at a width; no tab that was opened may have complaints."""
    visits = []

    def go(width=1440, *, dark=False, scripts=True):
        looks = {"color_scheme": "dark" if dark else "light", "reduced_motion": "reduce", "is_mobile": width < 600}
        viewport = {"width": width, "height": 900}
        # without network
        context = browser.new_context(offline=True, viewport=viewport, java_script_enabled=scripts, **looks)
        context.set_default_timeout(60_000)
        visits.append(Visit(context.new_page(), (rendered / "reports/index.html").resolve().as_uri()))
        return visits[-1]

    yield go
    for visited in visits:
        visited.page.context.close()
    assert not any(visited.complaints for visited in visits), [visited.complaints for visited in visits]


@pytest.fixture
def page(visit):
    """The example's page on a wide screen."""
    return visit()
