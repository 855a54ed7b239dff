"""One example project, rendered once, and one browser for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from moe_beyond.reporting.page import compose, render_report
from moe_beyond.reporting.settings import ReportSettings
from moe_beyond.reporting.tables import Tables, read_tables
from tests.reporting import chromium
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


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    binary = chromium.find()
    if binary is None:
        pytest.skip("no Chromium or Chrome on PATH; the page is not looked at")
    page = chromium.Page(binary, tmp_path_factory.mktemp("profile"))
    yield page
    page.close()
