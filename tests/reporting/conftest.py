"""One example project, rendered once, and one browser for all tests of the page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from moe_beyond.capture.settings import TracesSettings
from moe_beyond.reporting.page import compose, render_report
from moe_beyond.reporting.read import Run, read_run
from moe_beyond.reporting.settings import ReportSettings
from moe_beyond.simulator.study.settings import SimulateSettings
from tests.reporting import browsing
from tests.reporting.example import CAPACITIES, DEVICES, write_example

# small figures: their size is not what these tests are about
SMALL = ReportSettings(chart_width=400, figure_scale=1)


def run_of(root: Path, source: str = "reference", **settings: Any) -> Run:
    """The run in a folder, as the report stage reads it."""
    replay = {"capacities": tuple(CAPACITIES.values()), "headline_capacity": 0.1, "devices": tuple(DEVICES)}
    simulate = SimulateSettings.model_validate(replay | {"headline_device": "laptop_nvme"} | settings)
    return read_run(root, 7, TracesSettings.model_validate({"source": source}), simulate)


def html_of(root: Path, **settings: Any) -> str:
    """The page without its pictures, which take most of the time."""
    return compose(run_of(root, **settings), ReportSettings()).html


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose every table has rows, and its page."""
    root = tmp_path_factory.mktemp("project")
    write_example(root)
    render_report(root, run_of(root), SMALL)
    return root


@pytest.fixture(scope="session")
def run(rendered: Path) -> Run:
    return run_of(rendered)


@pytest.fixture
def copy(rendered: Path, tmp_path: Path) -> Path:
    """The same to change."""
    return Path(shutil.copytree(rendered, tmp_path / "copy"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for a module, not for the session: while it is there, no other test could start an event loop."""
    binary = browsing.chromium()
    if binary is None:
        pytest.skip("no Chromium or Chrome on PATH; the page is not looked at")
    with browsing.launched(binary) as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., browsing.Visit]]:
    """Opens a file at a width; whatever was opened must have no complaints."""
    visits: list[browsing.Visit] = []

    def go(path: Path, width: int = 1440, **options: Any) -> browsing.Visit:
        visits.append(browsing.visit(browser, path, width, **options))
        return visits[-1]

    yield go
    for visited in visits:
        visited.page.context.close()
    assert [complaint for visited in visits for complaint in visited.complaints] == []


@pytest.fixture
def page(visit: Callable[..., browsing.Visit], rendered: Path) -> browsing.Visit:
    """The example's page on a wide screen."""
    return visit(rendered / "reports" / "index.html")
