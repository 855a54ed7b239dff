"""Measured live: the model decoded beside the replay, and what lossy policies change."""

import json
import shutil

import polars as pl
import pytest

from moe_beyond.files import write_tables
from moe_beyond.reporting.blocks import Figure, Text
from moe_beyond.reporting.figures.theme import chart_spec
from moe_beyond.reporting.sections.live import judged, live_section
from tests.reporting.conftest import html_of, run_of
from tests.reporting.example import LIVE

OURS = "Predictor: prefetch, predicted eviction"


@pytest.fixture(scope="module")
def section(run):
    return live_section(run)


def rows_of(section, place):
    table = [block for block in section.blocks if block.kind == "table"][place]
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def sentences(section):
    return [
        point.replace("\u00a0", " ") for block in section.blocks if isinstance(block, Text) for point in block.points
    ]


def test_measured_stands_beside_modelled(section):
    lru, ours, lossy = rows_of(section, 0)
    assert [row["Error of the model"] for row in (lru, ours, lossy)] == [
        "0.0\u00a0%",
        "\u221210.0\u00a0%",
        "10.0\u00a0%",
    ]
    assert (ours["Measured, ms per token"], ours["Modelled"]) == ("40", "36")
    assert (ours["Measured hit rate"], ours["Modelled hit rate"]) == ("37.5\u00a0%", "39.5\u00a0%")
    assert [row["that differ"] for row in (lru, ours, lossy)] == ["0", "\u2013", "3"]
    assert "0.0250 GB/s" in section.lead and "(Laptop, NVMe (no recording))" in section.lead


def test_findings_say_where_the_replay_is_wrong(section):
    said = sentences(section)
    assert "3 of 600 events on demand have other hits than the replay says." in said
    assert f"{OURS}: the modelled time is 10.0 % too short, the modelled hit rate differs by +2.0 points." in said
    assert "Ours is 20.0 % faster than LRU as measured, 28.0 % faster as modelled." in said


def test_quality_stands_with_its_intervals(section):
    (mote,) = [row for row in rows_of(section, 1) if row["Policy"] == "MoTE"]
    assert mote["Divergence, nats"] == "0.0100 [0.00750,\u00a00.0125]"
    assert mote["Same first choice"] == "98.0\u00a0% [97.0\u00a0%,\u00a099.0\u00a0%]"
    assert (mote["Perplexity"], mote["of the full model"]) == ("16.1 [14.1,\u00a018.1]", "16 [14,\u00a018]")
    assert mote["Measured, ms per token"].startswith("20")


def test_each_lossy_policy_has_its_verdict(run, section):
    better = dict(judged(run).select("policy", "better").iter_rows())
    assert better == {"mote": None, "drop_cold": "MoTE", "hobbit_int4": None, "layer_lru": None}
    said = sentences(section)
    best = "up to 0.00100 nats HOBBIT, 4 bits (40 ms); up to 0.0100 nats MoTE (20 ms)"
    assert f"The fastest, by the divergence that is accepted: {best}." in said
    assert "No policy moves the perplexity by more than 1.0 %." in said
    drop = "Drop cold: 34.8 % faster than without loss, another first choice for 4.0 % of tokens"
    assert f"{drop}; MoTE is faster and changes less." in said


def test_a_lossy_policy_that_is_slower_saves_nothing(copy):
    path = copy / "reports/verify/tables/quality.parquet"
    slow = pl.when(policy="mote").then(92.0).otherwise("ms_per_token")
    pl.read_parquet(path).with_columns(ms_per_token=slow).write_parquet(path)
    said = sentences(live_section(run_of(copy)))
    slower = "MoTE: 100.0 % slower than without loss, another first choice for 2.0 % of tokens"
    assert f"{slower}; it changes the output and saves nothing." in said


def test_the_frontier_draws_the_lossy_ones_and_joins_the_best(section):
    (figure,) = [block for block in section.blocks if isinstance(block, Figure)]
    spec = chart_spec(figure.chart)
    points = max(spec["datasets"].values(), key=lambda rows: len(rows[0]))
    assert {row["title"]: (row["kl"], row["on_front"]) for row in points} == {
        "HOBBIT, 4 bits": (LIVE["hobbit_int4"][0], True),
        "MoTE": (LIVE["mote"][0], True),
        "Drop cold": (LIVE["drop_cold"][0], False),
    }
    assert [row["title"] for rows in spec["datasets"].values() for row in rows].count("Layer lru") == 1
    assert '"type": "log"' in json.dumps(spec)
    assert "MoTE 20 ms at 0.0100" in figure.alt


def test_lossy_policies_that_lost_nothing_leave_no_frontier(copy):
    path = copy / "reports/verify/tables/quality.parquet"
    pl.read_parquet(path).with_columns(kl=pl.lit(0.0)).write_parquet(path)
    section = live_section(run_of(copy))
    assert not [block for block in section.blocks if isinstance(block, Figure)]
    assert not any("divergence" in sentence for sentence in sentences(section))


def test_without_measurements_a_sentence_says_why(copy):
    tables = copy / "reports/verify/tables"
    write_tables(tables, {"not_verified": pl.DataFrame({"reason": ["traces come without weights"]})})
    assert "Nothing was decoded live: traces come without weights." in html_of(copy)
    shutil.rmtree(tables)
    assert "Nothing was decoded live: the stage verify has not run." in html_of(copy)
