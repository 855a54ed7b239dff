"""One example project, rendered once, and one browser for all tests of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from moe_beyond.reporting.page import compose, render_report
from moe_beyond.reporting.settings import ReportSettings
from moe_beyond.reporting.tables import Tables, read_tables
from tests.reporting import browsing
from tests.reporting.example import write_example

FACTS = {
    "Code": {"git.commit": "0123abc"},
    "Parameters": {"traces.source": "reference", "simulate.capacities": (0.1, 0.2)},
    "Libraries": {"torch": "2.13.0"},
}


def render(root: Path, settings: ReportSettings | None = None, headline_capacity: float = 0.1) -> list[Path]:
    # small figures: their size is not what these tests are about
    small = ReportSettings(chart_width=400, figure_scale=1)
    return render_report(root, settings or small, headline_capacity=headline_capacity, run_summary=FACTS)


def html_of(root: Path, facts: Mapping[str, Any] = FACTS) -> str:
    """The page without its pictures, which take most of the time."""
    return compose(read_tables(root), ReportSettings(), headline_capacity=0.1, run_summary=facts).html


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose every table is there, and its page."""
    root = tmp_path_factory.mktemp("project")
    write_example(root)
    render(root)
    return root


@pytest.fixture(scope="session")
def tables(project: Path) -> Tables:
    return read_tables(project)


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
    """Opens a file at a width; whatever was opened must neither have complained nor asked for anything else."""
    visits: list[browsing.Visit] = []

    def go(path: Path, width: int = 1440, **options: Any) -> browsing.Visit:
        visits.append(browsing.visit(browser, path, width, **options))
        return visits[-1]

    yield go
    for visited in visits:
        visited.page.context.close()
    assert [complaint for visited in visits for complaint in visited.complaints] == []


@pytest.fixture
def page(visit: Callable[..., browsing.Visit], project: Path) -> browsing.Visit:
    """The example's page on a wide screen."""
    return visit(project / "reports" / "index.html")
