"""The explorer's controls, moved as a person moves them: every number is the one of the simulator's tables."""

from __future__ import annotations

import polars as pl
import pytest

from moe_beyond.reporting.names import label
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import number, percent
from tests.reporting.browsing import Visit


def expected_rows(tables: Tables, split: str, capacity: int, device: str, latency: float = 0.1) -> list[list[str]]:
    """What the explorer must show of all policies, fastest first, straight from the CSV files."""
    chosen = (pl.col("device") == device) & (pl.col("predictor_ms") == latency)
    part = tables["replay"].rows.filter((pl.col("split") == split) & (pl.col("capacity_experts") == capacity))
    times = tables["timing"].rows.filter((pl.col("split") == split) & (pl.col("capacity_experts") == capacity) & chosen)
    rows = []
    by_hits = part.sort("hit_rate", "policy", descending=[True, False])
    speed = times.select("policy", "ms_per_token")
    ordered = by_hits.join(speed, on="policy", maintain_order="left").sort("ms_per_token", maintain_order=True)
    for row in ordered.iter_rows(named=True):
        time = times.row(by_predicate=pl.col("policy") == row["policy"], named=True)
        used = row["prefetches_useful"] / row["prefetches"] if row["prefetches"] else None
        rows.append(
            [
                label(row["policy"]),
                number(time["ms_per_token"]),
                number(time["tokens_per_second"]),
                percent(row["hit_rate"]),
                f"[{100 * row['hit_rate_low']:.1f},\u00a0{100 * row['hit_rate_high']:.1f}]",
                percent(row["decode_hit_rate"]),
                number(row["mib_per_token"]),
                percent(used),
                number(time["stall_ms_per_token"]),
                percent(time["prefetches_late"] / time["prefetches"] if time["prefetches"] else None),
                percent(time["fraction_of_bound"]),
            ]
        )
    return rows


def test_every_state_of_the_explorer_shows_the_rows_of_the_tables(page: Visit, tables: Tables):
    replay = tables["replay"].rows
    page.choose("policies", "All")
    for split in tables.splits:
        page.choose("split", label(split))
        capacities = replay.filter(pl.col("split") == split)["capacity_experts"].unique().sort().to_list()
        for place, capacity in enumerate(capacities):
            page.choose("capacity", place)
            for device in ("phone_ufs", "laptop_nvme"):
                page.choose("device", label(device))
                for place_of_latency, latency in enumerate((0.1, 5.0)):
                    page.choose("latency", place_of_latency)
                    assert page.rows("#explore") == expected_rows(tables, split, capacity, device, latency)
                assert page.page.locator("#explore output").inner_text().startswith(f"{capacity} experts, ")


def test_policies_are_picked_by_group_and_put_in_order(page: Visit, tables: Tables):
    shown = {
        "Bounds": ["Belady (demand bound)"],
        "By our predictor": ["Predictor prefetch + LRU"],
        "Fetch ahead": ["Predictor prefetch + LRU", "Token unigram prefetch + LRU"],
    }
    for group, names in shown.items():
        page.choose("policies", group)
        assert sorted(row[0] for row in page.rows("#explore")) == names
    page.choose("policies", "All")
    here = tables["replay"].rows.filter((pl.col("split") == "test_out_of_domain") & (pl.col("capacity_experts") == 32))
    for order, column, falling in (("Hit rate", "hit_rate", True), ("Fewest bytes", "mib_per_token", False)):
        page.choose("order", order)
        names = here.sort(column, descending=falling)["policy"].to_list()
        assert [row[0] for row in page.rows("#explore")] == [label(name) for name in names]
    assert page.page.locator("#explore .caption").inner_text().endswith("; 5 policies")


def test_says_from_where_on_ours_pays(page: Visit):
    said = page.page.locator("#explore .even").inner_text()
    assert said.startswith(
        "Break-even of Predictor prefetch + LRU against LRU: over the links tried it pays above 1.80"
    )
    assert "up to a predictor latency of 6.24" in said
    page.choose("device", "Laptop, NVMe")
    assert "up to a predictor latency of 2.60" in page.page.locator("#explore .even").inner_text()


def test_opens_at_the_headline_capacity_of_the_hardest_split(page: Visit, tables: Tables):
    page.choose("policies", "All")
    assert page.rows("#explore") == expected_rows(tables, "test_out_of_domain", 32, "phone_ufs")
    assert page.page.locator("#explore .caption").inner_text().startswith("Another domain at 32 experts")


def test_names_the_fastest_policy_that_can_be_built(page: Visit, tables: Tables):
    timing = tables["timing"].rows.filter(
        (pl.col("split") == "test_out_of_domain")
        & (pl.col("capacity_experts") == 32)
        & (pl.col("device") == "phone_ufs")
        & (pl.col("predictor_ms") == 0.1)
        & ~pl.col("policy").str.starts_with("belady")
    )
    fastest = timing.sort("ms_per_token").row(0, named=True)
    rate = number(fastest["tokens_per_second"])
    said = page.page.locator("#explore .best").first.inner_text()
    assert (
        said == f"Fastest that can be built and gives up nothing: {label(fastest['policy'])}, {rate} tokens per second."
    )


def test_the_slider_moves_by_keyboard_and_says_where_it_is(page: Visit, tables: Tables):
    slider = page.page.locator("#explore [name=capacity]")
    page.choose("policies", "All")
    slider.press("ArrowRight")
    assert page.rows("#explore") == expected_rows(tables, "test_out_of_domain", 48, "phone_ufs")
    assert str(slider.get_attribute("aria-valuetext")).startswith("48 experts, 15.0")


def test_bars_are_as_long_as_the_hit_rates(page: Visit):
    widths = page.run(
        "[...document.querySelectorAll('#explore tbody tr')].map(row => [parseFloat(row.cells[3].textContent), "
        "100 * row.querySelector('.bar').offsetWidth / row.querySelector('.meter').offsetWidth])"
    )
    for percentage, width in widths:
        assert width == pytest.approx(percentage, abs=1.5)


def test_the_timeline_is_walked_token_by_token_with_the_keyboard(page: Visit, tables: Tables):
    """It starts at the token that waited longest, and an arrow key goes on to the next."""
    events = tables["timeline"].rows.filter(pl.col("policy") == "predictor_prefetch_lru")
    waits = events.group_by("position").agg(pl.col("stall_ms").sum()).sort("position")["stall_ms"].to_list()
    worst = waits.index(max(waits))
    step = page.page.locator(".stepper input")
    assert step.input_value() == str(worst)
    key = "ArrowLeft" if worst == len(waits) - 1 else "ArrowRight"
    step.press(key)
    shown = worst + (1 if key == "ArrowRight" else -1)
    part = events.filter(pl.col("position") == shown).sort("layer")
    cells = [[row[0], row[3], row[4]] for row in page.rows(".stepper")]
    wanted = part.select("layer", "stall_ms", "demand_loads").iter_rows()
    assert cells == [[str(layer), number(stall), number(loads)] for layer, stall, loads in wanted]
    assert f"Token {shown}, " in str(step.get_attribute("aria-valuetext"))
