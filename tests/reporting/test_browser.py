"""The page in a real browser: no errors, no requests, no overflow, controls whose numbers are the tables'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from moe_beyond.reporting.names import label
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import number, percent
from tests.reporting.chromium import Page

MARKS = "svg .mark-line path, svg .mark-rect path, svg .mark-symbol path"
DRAWN = f"[...document.querySelectorAll('.chart')].every(chart => chart.querySelector('{MARKS}'))"
ROWS = (
    "[...document.querySelectorAll('#explore tbody tr')]"
    ".map(row => [...row.cells].map(cell => cell.textContent.trim()))"
)
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


@pytest.fixture
def page(browser: Page, project: Path) -> Page:
    browser.open(project / "reports" / "index.html", 1440)
    return browser


@pytest.mark.parametrize("width", [360, 768, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_shows_everything_without_errors_requests_or_overflow(browser: Page, project: Path, width: int, dark: bool):
    path = project / "reports" / "index.html"
    browser.open(path, width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach(details => details.open = true)")
    # a window as tall as the page brings every chart near
    browser.emulate(width, browser.run("document.documentElement.scrollHeight"), dark=dark)
    browser.wait_for(DRAWN)
    assert browser.errors == []
    assert browser.requests == [path.resolve().as_uri()]
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    # charts stay inside their figures; wide tables scroll inside theirs
    texts = "[...document.querySelectorAll('.chart')].flatMap(chart => [...chart.querySelectorAll('svg text')]"
    beyond = "text.getBoundingClientRect().right > chart.getBoundingClientRect().right + 1"
    assert browser.run(f"{texts}.filter(text => {beyond}).map(text => text.textContent))") == []
    assert browser.run(FAINT) == []
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")


def expected_rows(tables: Tables, split: str, capacity: int, device: str, latency: float = 0.1) -> list[list[str]]:
    """What the explorer must show, straight from the CSV files."""
    chosen = (pl.col("device") == device) & (pl.col("predictor_ms") == latency)
    part = tables["replay"].rows.filter((pl.col("split") == split) & (pl.col("capacity_experts") == capacity))
    times = tables["timing"].rows.filter((pl.col("split") == split) & (pl.col("capacity_experts") == capacity) & chosen)
    rows = []
    for row in part.sort("hit_rate", "policy", descending=[True, False]).iter_rows(named=True):
        time = times.row(by_predicate=pl.col("policy") == row["policy"], named=True)
        used = row["prefetches_useful"] / row["prefetches"] if row["prefetches"] else None
        rows.append(
            [
                label(row["policy"]),
                percent(row["hit_rate"]),
                f"[{100 * row['hit_rate_low']:.1f},\u00a0{100 * row['hit_rate_high']:.1f}]",
                percent(row["decode_hit_rate"]),
                number(row["mib_per_token"]),
                percent(used),
                number(time["ms_per_token"]),
                number(time["tokens_per_second"]),
                number(time["stall_ms_per_token"]),
                percent(time["prefetches_late"] / time["prefetches"] if time["prefetches"] else None),
                percent(time["fraction_of_bound"]),
            ]
        )
    return rows


def choose(page: Page, name: str, value: str | int) -> None:
    page.run(
        f"(() => {{ const control = document.querySelector('#explore [name={name}]'); control.value = {value!r};"
        "control.dispatchEvent(new Event(control.type === 'range' ? 'input' : 'change', {bubbles: true})); })()"
    )


def test_every_state_of_the_explorer_shows_the_rows_of_the_tables(page: Page, tables: Tables):
    replay = tables["replay"].rows
    for split in tables.splits:
        choose(page, "split", split)
        capacities = replay.filter(pl.col("split") == split)["capacity_experts"].unique().sort().to_list()
        for place, capacity in enumerate(capacities):
            choose(page, "capacity", place)
            for device in ("phone_ufs", "laptop_nvme"):
                choose(page, "device", label(device))
                for place_of_latency, latency in enumerate((0.1, 5.0)):
                    page.run(f"document.querySelector('#explore [name=latency]').selectedIndex = {place_of_latency}")
                    page.run("document.querySelector('#explore [name=latency]').dispatchEvent(new Event('change'))")
                    assert page.run(ROWS) == expected_rows(tables, split, capacity, device, latency)
                size = page.run("document.querySelector('#explore output').textContent")
                assert size.startswith(f"{capacity} experts, ")


def test_the_explorer_opens_at_the_headline_capacity_of_the_hardest_split(page: Page, tables: Tables):
    assert page.run(ROWS) == expected_rows(tables, "test_out_of_domain", 32, "phone_ufs")
    assert page.run("document.querySelector('#explore .caption').textContent").startswith(
        "Another domain at 32 experts"
    )


def test_the_explorer_names_the_fastest_policy_that_can_be_built(page: Page, tables: Tables):
    timing = tables["timing"].rows.filter(
        (pl.col("split") == "test_out_of_domain")
        & (pl.col("capacity_experts") == 32)
        & (pl.col("device") == "phone_ufs")
        & (pl.col("predictor_ms") == 0.1)
        & ~pl.col("policy").str.starts_with("belady")
    )
    fastest = timing.sort("ms_per_token").row(0, named=True)
    rate = number(fastest["tokens_per_second"])
    said = page.run("document.querySelector('#explore .best').textContent")
    assert said == f"Fastest that can be built: {label(fastest['policy'])}, {rate} tokens per second."


def test_the_slider_moves_by_keyboard_and_says_where_it_is(page: Page, tables: Tables):
    page.run("document.querySelector('#explore [name=capacity]').focus()")
    page.press("ArrowRight", 39)
    assert page.run(ROWS) == expected_rows(tables, "test_out_of_domain", 48, "phone_ufs")
    said = page.run("document.querySelector('#explore [name=capacity]').getAttribute('aria-valuetext')")
    assert said.startswith("48 experts, 15.0")


def test_bars_are_as_long_as_the_hit_rates(page: Page):
    widths = page.run(
        "[...document.querySelectorAll('#explore tbody tr')].map(row => [parseFloat(row.cells[1].textContent), "
        "100 * row.querySelector('.bar').offsetWidth / row.querySelector('.meter').offsetWidth])"
    )
    for percentage, width in widths:
        assert width == pytest.approx(percentage, abs=1.5)


def test_the_theme_button_goes_round_and_repaints(page: Page):
    page.run("document.getElementById('hit_rate_test_in_domain').scrollIntoView()")
    page.wait_for("!!document.querySelector('#hit_rate_test_in_domain svg')")
    seen = []
    for _ in range(3):
        page.run("document.getElementById('mode').click()")
        page.wait_for("!!document.querySelector('#hit_rate_test_in_domain svg')")
        seen.append(
            (
                page.run("document.getElementById('mode').textContent"),
                page.run("getComputedStyle(document.body).backgroundColor"),
            )
        )
    assert seen == [
        ("Theme: light", "rgb(255, 255, 255)"),
        ("Theme: dark", "rgb(20, 24, 29)"),
        ("Theme: automatic", "rgb(255, 255, 255)"),
    ]
    assert page.errors == []


def test_pointing_at_a_chart_shows_the_number_of_the_table(page: Page, tables: Tables):
    page.emulate(1440, page.run("document.documentElement.scrollHeight"))
    page.wait_for(DRAWN)
    place: dict[str, Any] = page.run(
        "(() => { const figure = document.getElementById('hit_rate_test_in_domain');"
        "const points = [...figure.querySelectorAll('svg .mark-symbol.role-mark path')];"
        "const box = points.at(-1).getBoundingClientRect();"
        "return {x: box.x + box.width / 2, y: box.y + box.height / 2}; })()"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=place["x"], y=place["y"])
    page.wait_for("!document.getElementById('tip').hidden")
    shown = page.run(
        "[...document.querySelectorAll('#tip dt')].map(key => [key.textContent, key.nextSibling.textContent])"
    )
    tip = dict(shown)
    replay = tables["replay"].rows.filter(pl.col("split") == "test_in_domain")
    names = {label(policy): policy for policy in tables.policies}
    row = replay.filter(
        (pl.col("policy") == names[tip["policy"]]) & (pl.col("capacity_experts") == int(tip["experts"]))
    ).row(0, named=True)
    assert tip["hit rate"] == f"{100 * row['hit_rate']:.1f}%"
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    page.wait_for("document.getElementById('tip').hidden")


def test_a_chart_of_many_lines_has_one_legend_and_it_shows_colour_and_dash(page: Page, tables: Tables):
    page.run("document.getElementById('hit_rate_test_in_domain').scrollIntoView()")
    page.wait_for("!!document.querySelector('#hit_rate_test_in_domain svg.marks')")
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


def test_paper_gets_all_charts_in_light_colours_even_from_a_dark_page(browser: Page, project: Path, tmp_path: Path):
    browser.open(project / "reports" / "index.html", 1440, dark=True)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    browser.wait_for(DRAWN)
    ink = "[...document.querySelectorAll('.chart svg text')].map(text => getComputedStyle(text).fill)"
    assert set(browser.run(ink)) <= {"rgb(28, 36, 48)", "rgb(90, 100, 114)"}
    browser.run("dispatchEvent(new Event('afterprint'))")
    browser.wait_for("getComputedStyle(document.body).backgroundColor === 'rgb(20, 24, 29)'")
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert browser.errors == []


def test_every_control_has_a_name_and_tab_reaches_them(page: Page):
    unnamed = page.run(
        "[...document.querySelectorAll('button, select, input, a, summary')]"
        ".filter(e => !(e.textContent.trim() || e.labels?.[0]?.textContent.trim())).length"
    )
    assert unnamed == 0
    reached = []
    for _ in range(40):
        page.press("Tab", 9)
        reached.append(
            page.run("document.activeElement.id || document.activeElement.name || document.activeElement.className")
        )
    assert reached[0] == "skip"
    assert "mode" in reached


def test_without_scripts_the_tables_still_stand(browser: Page, project: Path):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(project / "reports" / "index.html", 1440)
        assert browser.run("document.querySelectorAll('#explore tbody tr').length") == 5
        assert browser.run("document.querySelector('noscript').textContent.includes('they need JavaScript')")
        assert browser.run("getComputedStyle(document.querySelector('.controls')).display") == "none"
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
