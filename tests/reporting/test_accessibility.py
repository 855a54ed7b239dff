"""The page by keyboard and by screen reader: axe's rules, names, focus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reporting.browsing import Visit

CONTROLS = "a[href], button, select, input, summary, [tabindex='0']"


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(visit: Callable[..., Visit], rendered: Path, width: int, dark: bool):
    visited = visit(rendered / "reports" / "index.html", width, dark=dark)
    visited.draw_everything()
    assert visited.violations() == []


def test_axe_would_find_something(page: Visit):
    page.run(
        "document.querySelector('#explore select').parentElement.replaceWith(document.querySelector('#explore select'))"
    )
    assert [line.split(":")[0] for line in page.violations()] == ["select-name"]


def test_tab_reaches_every_control_in_the_order_of_the_page(page: Visit):
    page.run(f"[...document.querySelectorAll({CONTROLS!r})].forEach((e, place) => e.dataset.place = place)")
    visible = f"[...document.querySelectorAll({CONTROLS!r})].filter(e => e.checkVisibility())"
    expected = [int(place) for place in page.run(f"{visible}.map(e => e.dataset.place)")]
    reached = []
    for _ in expected:
        page.page.keyboard.press("Tab")
        reached.append(int(page.run("document.activeElement.dataset.place ?? -1")))
    assert reached == expected


def test_the_skip_link_leads_past_the_contents(page: Visit):
    page.page.keyboard.press("Tab")
    assert page.run("document.activeElement.className") == "skip"
    page.page.keyboard.press("Enter")
    assert page.run("document.activeElement.id") == "main"
