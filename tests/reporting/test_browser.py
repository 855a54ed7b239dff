"""The page in a real browser: everything drawn, nothing asked for, nothing cut off, on screens and on paper.

The fixture `visit` holds every page to silence: no error or warning in the console, no request beyond the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from moe_beyond.reporting.names import label
from moe_beyond.reporting.tables import Tables
from tests.reporting.browsing import Visit

Go = Callable[..., Visit]
WITHIN_A_SECOND = 1000  # ms
# contrast after WCAG 2: every text against the nearest background that is not transparent
FAINT = """(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const element of document.querySelectorAll('body *')) {
    const svg = element.namespaceURI.endsWith('svg');
    const written = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (svg ? element.tagName !== 'text' : !written) continue;
    if (!element.getClientRects().length) continue;
    if (['SCRIPT', 'STYLE', 'OPTION', 'NOSCRIPT'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const [a, b] = [luminance(rgb(svg ? style.fill : style.color)), luminance(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faint.push([element.tagName, element.textContent.slice(0, 40), ratio.toFixed(2)]);
  }
  return faint;
})()"""


@pytest.mark.parametrize("width", [360, 400, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_draws_everything_within_its_width_and_with_contrast(visit: Go, project: Path, width: int, dark: bool):
    visited = visit(project / "reports" / "index.html", width, dark=dark)
    visited.draw_everything()
    assert visited.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    # charts stay inside their figures; wide tables scroll inside theirs
    texts = "[...document.querySelectorAll('.chart')].flatMap(chart => [...chart.querySelectorAll('svg text')]"
    beyond = "text.getBoundingClientRect().right > chart.getBoundingClientRect().right + 1"
    assert visited.run(f"{texts}.filter(text => {beyond}).map(text => text.textContent))") == []
    assert visited.run(FAINT) == []
    background = visited.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")


def test_the_explorer_is_painted_within_a_second(visit: Go, project: Path):
    def painted_ms() -> float:
        visited = visit(project / "reports" / "index.html", at="explorer")
        # first painted as the table that needs no script, whole when the scripts have run
        first: float = visited.run(
            "new Promise(done => new PerformanceObserver(list => done(list.getEntriesByName('text-paint')"
            ".find(entry => entry.identifier === 'explorer').renderTime)).observe({type: 'element', buffered: true}))"
        )
        assert visited.page.locator(".controls").first.is_visible()
        ready: float = visited.run("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        return max(first, ready)

    # others may want the processor too: the best of three is what the page costs
    assert 0 < min(painted_ms() for _ in range(3)) < WITHIN_A_SECOND


def test_the_theme_button_goes_round_and_repaints(page: Visit):
    page.run("document.getElementById('hit_rate_test_in_domain').scrollIntoView()")
    chart = page.page.locator("#hit_rate_test_in_domain svg.marks")
    seen = []
    for _ in range(3):
        page.page.locator("#mode").click()
        chart.wait_for()
        background = page.run("getComputedStyle(document.body).backgroundColor")
        seen.append((page.page.locator("#mode").inner_text(), background))
    assert seen == [
        ("Theme: light", "rgb(255, 255, 255)"),
        ("Theme: dark", "rgb(20, 24, 29)"),
        ("Theme: automatic", "rgb(255, 255, 255)"),
    ]


def test_pointing_at_a_chart_shows_the_number_of_the_table(page: Visit, tables: Tables):
    page.draw_everything()
    place: dict[str, Any] = page.run(
        "(() => { const figure = document.getElementById('hit_rate_test_in_domain');"
        "const points = [...figure.querySelectorAll('svg .mark-symbol.role-mark path')];"
        "const box = points.at(-1).getBoundingClientRect();"
        "return {x: box.x + box.width / 2, y: box.y + box.height / 2}; })()"
    )
    page.page.mouse.move(place["x"], place["y"])
    page.page.locator("#tip").wait_for()
    tip = dict(
        page.run("[...document.querySelectorAll('#tip dt')].map(at => [at.textContent, at.nextSibling.textContent])")
    )
    replay = tables["replay"].rows.filter(pl.col("split") == "test_in_domain")
    names = {label(policy): policy for policy in tables.policies}
    row = replay.filter(
        (pl.col("policy") == names[tip["policy"]]) & (pl.col("capacity_experts") == int(tip["experts"]))
    ).row(0, named=True)
    assert tip["hit rate"] == f"{100 * row['hit_rate']:.1f}%"
    page.page.mouse.move(1, 1)
    page.page.locator("#tip").wait_for(state="hidden")


def test_a_chart_of_many_lines_has_one_legend_and_it_shows_colour_and_dash(page: Visit, tables: Tables):
    page.run("document.getElementById('hit_rate_test_in_domain').scrollIntoView()")
    page.page.locator("#hit_rate_test_in_domain svg.marks").wait_for()
    figure = "document.getElementById('hit_rate_test_in_domain')"
    assert page.run(f"{figure}.querySelectorAll('.chart .role-legend').length") == 0
    drawn = page.run(
        f"[...{figure}.querySelectorAll('.chart .mark-line.role-mark path')].map(path => "
        "[getComputedStyle(path).stroke, getComputedStyle(path).strokeDasharray])"
    )
    listed = page.run(
        f"[...{figure}.querySelectorAll('.legend li')].map(item => [item, item.querySelector('line')])"
        ".map(([item, line]) => [item.textContent.trim(), getComputedStyle(line).stroke, "
        "line.getAttribute('stroke-dasharray')])"
    )
    assert [name for name, _, _ in listed] == [label(policy) for policy in tables.policies]

    def dash(text: str | None) -> tuple[float, ...]:
        """A solid line is written `none`, `1, 0` or not at all."""
        parts = (text or "none").replace(",", " ").replace("none", "").split()
        numbers = tuple(float(part.removesuffix("px")) for part in parts)
        return () if numbers == (1, 0) else numbers

    # the first of the legend is drawn last
    assert [(colour, dash(text)) for _, colour, text in listed] == [(c, dash(text)) for c, text in reversed(drawn)]


def test_paper_gets_all_charts_in_light_colours_and_whole_even_from_a_dark_page(
    visit: Go, project: Path, tmp_path: Path
):
    visited = visit(project / "reports" / "index.html", dark=True)
    visited.choose("capacity", 3)
    visited.page.emulate_media(media="print")
    visited.page.set_viewport_size({"width": 720, "height": 1000})
    visited.run("dispatchEvent(new Event('beforeprint'))")
    visited.wait_until_drawn()
    ink = "[...document.querySelectorAll('.chart svg text')].map(text => getComputedStyle(text).fill)"
    assert set(visited.run(ink)) <= {"rgb(28, 36, 48)", "rgb(90, 100, 114)"}
    # what the controls were set to is said in words, and the numbers stand below
    assert not any(form.is_visible() for form in visited.page.locator(".controls").all())
    said = visited.page.locator("#explore .caption").inner_text()
    assert said.startswith("Another domain at 48 experts, 15.0\u00a0%")
    assert len(visited.rows("#explore")) >= 5
    clipped = (
        "[...document.querySelectorAll('.chart')].filter(chart => chart.clientWidth).filter(chart => {"
        "const svg = chart.querySelector('svg, canvas').getBoundingClientRect(), box = chart.getBoundingClientRect();"
        "return svg.right > box.right + 1 || box.right > innerWidth; }).map(chart => chart.parentElement.id)"
    )
    assert visited.run(clipped) == []
    assert visited.run("document.documentElement.scrollWidth <= innerWidth")
    visited.run("dispatchEvent(new Event('afterprint'))")
    visited.page.emulate_media(media="screen")
    visited.page.wait_for_function("() => getComputedStyle(document.body).backgroundColor === 'rgb(20, 24, 29)'")
    visited.page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_without_scripts_the_tables_still_stand(visit: Go, project: Path):
    visited = visit(project / "reports" / "index.html", scripts=False)
    assert visited.page.locator("#explore tbody tr").count() == 5
    assert "they need JavaScript" in visited.page.locator("noscript").first.inner_text()
    assert not any(form.is_visible() for form in visited.page.locator(".controls").all())
