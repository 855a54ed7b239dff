"""The timeline, the costliest misses, break-even and ablation: what the page says is what the simulator wrote."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from moe_beyond.reporting.blocks import Absent, DataTable, Figure, Folded, Passage, Section
from moe_beyond.reporting.clock import Clock
from moe_beyond.reporting.page import chart_spec
from moe_beyond.reporting.sections.ablation import ablation_section
from moe_beyond.reporting.sections.break_even import break_even_section
from moe_beyond.reporting.sections.why import why_section
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import number, percent
from tests.reporting.test_findings import OURS, with_table


def data_of(figure: Figure) -> list[dict[str, Any]]:
    return max(chart_spec(figure.chart)["datasets"].values(), key=len)


def tables_of(section: Section) -> list[DataTable]:
    return [block for block in section.blocks if isinstance(block, DataTable)]


def test_a_token_is_as_long_as_its_layers_together(tables: Tables):
    figure = why_section(tables).figures[0]
    frame = tables["timeline"].rows.filter(pl.col("policy") == OURS)
    waited, computed = float(frame["stall_ms"].sum()), float(frame["compute_ms"].sum())
    assert sum(row["value"] for row in data_of(figure)) == pytest.approx(waited + computed)
    assert figure.title.startswith(percent(waited / (waited + computed), 0))
    assert len(figure.table.rows) == frame["position"].n_unique() == 14
    third = frame.filter(pl.col("position") == 3)
    sums = [
        number(float(third[name].sum())) for name in ("compute_ms", "stall_ms", "demand_loads", "prefetches_in_time")
    ]
    assert list(figure.table.rows[3][2:6]) == sums
    assert figure.table.rows[3][:2] == ("3", "\u2423word3")


def test_every_event_is_a_cell(tables: Tables):
    figure = why_section(tables).figures[1]
    rows = data_of(figure)
    frame = tables["timeline"].rows.filter(pl.col("policy") == OURS)
    assert len(rows) == frame.height
    assert {(row["position"], row["layer"]) for row in rows} == set(frame.select("position", "layer").rows())


def test_the_other_policies_stand_beside_ours_on_the_same_prompt(tables: Tables):
    (beside,) = [table for table in tables_of(why_section(tables)) if table.caption.startswith("The same prompt")]
    assert [row[0] for row in beside.rows] == ["Predictor prefetch + LRU", "LRU"]
    lru = tables["timeline"].rows.filter(pl.col("policy") == "lru")
    assert beside.rows[1][3:5] == (number(float(lru["stall_ms"].sum())), number(float(lru["demand_loads"].sum())))


def test_a_very_long_prompt_is_cut_and_says_so(tables: Tables):
    frame = tables["timeline"].rows.filter(pl.col("layer") == 1)
    long = pl.concat([frame.with_columns(position=pl.col("position") + 14 * turn) for turn in range(10)])
    figure = why_section(with_table(tables, "timeline", long)).figures[0]
    assert "its first 96 tokens" in figure.title
    assert len(figure.table.rows) == 96


def test_the_costliest_misses_say_whether_the_predictor_saw_them_coming(tables: Tables):
    section = why_section(tables)
    misses = next(table for table in tables_of(section) if table.caption.startswith("The costliest misses"))
    assert len(misses.rows) == 12
    assert misses.rows[0][:5] == ("<b>\u23ce", "1", "90", "0", "70.0\u00a0%")
    assert misses.rows[1][:5] == ("\u2423return", "2", "86", "3, 4", "5.0\u00a0%")
    (said,) = [block.text for block in section.blocks if isinstance(block, Passage)]
    assert said.startswith("Of the listed misses 10 of 30 are in layer 1. In 20 of 30 the predictor")
    (folded,) = [block for block in section.blocks if isinstance(block, Folded)]
    assert folded.title == "All 30 that the file lists"


def test_break_even_marks_the_bandwidth_of_each_device_and_names_the_limit_of_latency(tables: Tables):
    section = break_even_section(tables)
    assert [figure.name for figure in section.figures] == ["bandwidth_phone_ufs", "bandwidth_laptop_nvme"]
    datasets = chart_spec(section.figures[0].chart)["datasets"].values()
    marks = [row for rows in datasets for row in rows if "text" in row]
    assert marks == [{"x": 1.8, "text": "pays above 1.8 GB/s"}]
    (limits,) = tables_of(section)
    # export measured 0.52 ms
    assert limits.rows[0][4:] == ("above 1.80 GB/s", "6.24\u00a0ms (12 times the measured one)")
    assert limits.rows[2][4:] == ("never", "none: too slow even if it took no time")


def test_the_ablation_puts_devices_side_by_side_with_intervals(tables: Tables):
    (table,) = tables_of(ablation_section(tables))
    assert table.columns[-2:] == ("Phone, UFS flash, ms per token", "Laptop, NVMe, ms per token")
    assert table.rows[0][:3] == ("LRU", "31.0\u00a0% [30.0,\u00a032.0]", "0.700")
    assert table.rows[2][-2] == "16 [15.5, 16.5]"


def test_an_ablation_that_names_no_piece_is_left_out(tables: Tables):
    nameless = with_table(tables, "ablation", tables["ablation"].rows.drop("step", "added", "policy"))
    (absent,) = ablation_section(nameless).blocks
    assert isinstance(absent, Absent)
    assert "has none of the columns" in absent.reason


def test_what_predicts_nothing_is_timed_once_and_shown_at_every_latency(tables: Tables):
    frame = tables["timing"].rows
    once = frame.filter((pl.col("policy") == OURS) | (pl.col("predictor_ms") == 0.1))
    clock = Clock.read(once)
    assert clock.latencies == (0.1, 5.0)
    lru = clock.ms("test_in_domain", "lru", 32)
    assert lru[0][0] == lru[0][1]
    ours = clock.ms("test_in_domain", OURS, 32)
    assert ours[0][0] != ours[0][1]
    timed = replace(tables, csv=tables.csv | {"timing": replace(tables["timing"], frame=once)}).times
    assert timed is not None
    assert set(timed["policy"].to_list()) == set(frame["policy"].to_list())
