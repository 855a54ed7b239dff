"""Known models: their published tables, what is appended to them, and how the band holds a model left out."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from benchmarks.golden.card_checks import card_checks
from benchmarks.golden.known_models import REFERENCE_MODEL
from moe_beyond.assess.assessment import assess, hit_curves
from moe_beyond.assess.known import (
    CARD,
    COLUMNS,
    CURVES,
    KnownCurve,
    band,
    beside_table,
    held_out,
    hub_tables,
    known_curves,
    known_tables,
    position_of,
)
from moe_beyond.assess.settings import AssessSettings
from moe_beyond.formats import importers
from tests.phone_traces import shared
from tests.traces.refusals import refused
from tests.traces_of_chance import chance_trace


def curve(model, num_experts, top_k, rates):
    return KnownCurve(model, 2, num_experts, top_k, 100, np.linspace(0.25, 1, len(rates)), np.array(rates))


def test_positions_put_cycles_of_all_models_at_zero():
    fine, coarse = curve("fine", 64, 16, [0.2, 0.6, 0.8, 1.0]), curve("coarse", 8, 4, [0.0, 0.4, 0.7, 1.0])
    assert position_of(0.25, 16, 64) == position_of(0.5, 4, 8) == 0
    assert (position_of(0.0, 4, 8), position_of(1.0, 4, 8)) == (-1, 1)
    # of two layers: nothing hits in half a cycle
    np.testing.assert_allclose(fine.at(np.array([-1, -0.5, -0.25, 0, 1])), [0, 0, 0.1, 0.2, 1.0])
    np.testing.assert_allclose(coarse.at(np.array([0, 0.5])), [0.4, 0.7])
    assert band([fine, coarse], 0) == (pytest.approx(0.2), pytest.approx(0.4))


def test_held_out_models_lie_inside_or_so_far_outside():
    low, middle, high = (curve(f"{i}", 8 + i, 2, [x, x, x, x]) for i, x in enumerate((0.2, 0.5, 0.9)))
    inside, farthest = held_out([low, middle, high])
    assert inside == pytest.approx(1 / 3)
    assert farthest == pytest.approx(0.4)
    # a variant of one shape is no other model
    variant = replace(high, model="variant")
    assert held_out([low, middle, high, variant])[1] == pytest.approx(0.4)
    refused("curves of a single model", held_out, [high, variant])
    refused("curves of a single model", held_out, [])


def test_published_curves_are_those_of_their_traces():
    curves, cards = known_tables(None)
    assert curves.columns == list(COLUMNS)
    assert set(curves["policy"]) == {"lru", "belady"}
    assert cards["model"].to_list() == curves["model"].unique(maintain_order=True).to_list()
    assert REFERENCE_MODEL in cards["model"]
    for name in ("qwen", "gptoss"):
        trace = importers.read("bigmoe-route", shared("bigmoe-on-edge", f"{name}.route.csv.gz"))
        whole = hit_curves(trace, AssessSettings())
        for policy, rates in whole.items():
            rows = curves.filter(model=trace.metadata.model_id, policy=policy)
            held = np.round(rows["capacity_fraction"].to_numpy() * trace.metadata.num_model_experts).astype(int)
            np.testing.assert_allclose(rates[held], rows["hit_rate"].to_numpy(), atol=6e-5)


def test_recorded_runs_lie_where_the_card_says():
    checks = list(card_checks(shared()))
    assert [str(check) for check in checks if check.fails] == []


def test_others_append_a_file_and_stand_beside(tmp_path):
    tables = hub_tables(assess(chance_trace(16), AssessSettings(curve_points=10)), "theirs")
    for name, table in tables.items():
        (tmp_path / name).mkdir()
        table.write_parquet(tmp_path / name / "a.parquet")
        # another window of the working set is another column
        ours = table.with_columns(pl.lit("ours").alias("model")).drop("working_set_64_fraction", strict=False)
        ours.write_parquet(tmp_path / name / "b.parquet")
    curves, cards = known_tables(tmp_path)
    assert curves["model"].unique(maintain_order=True).to_list() == ["theirs", "ours"]
    rows = beside_table(known_curves([curves, known_tables(None)[0]]), [cards, known_tables(None)[1]])
    assert [row["model"] for row in rows][:2] == ["theirs", "ours"]
    assert len(rows) == 2 + known_tables(None)[1].height
    assert all(row["verdict"] for row in rows)
    assert all(0 <= row["lru_hit_rate_at_20%"] <= row["lru_hit_rate_at_50%"] <= 1 for row in rows)


def test_damaged_tables_are_one_line(tmp_path):
    refused("no hit_curves/", known_tables, tmp_path)
    good = hub_tables(assess(chance_trace(16), AssessSettings(curve_points=10)))
    for name, table in good.items():
        (tmp_path / name).mkdir()
        table.write_parquet(tmp_path / name / "a.parquet")
    path = tmp_path / CURVES / "a.parquet"
    for changed, said in (
        (good[CURVES].drop("hit_rate"), "lacks the column 'hit_rate'"),
        (good[CURVES].with_columns(pl.lit("x").alias("hit_rate")), "conversion"),
        (good[CURVES].with_columns(pl.lit(1.5).alias("hit_rate")), "expected shares from 0 to 1"),
        (good[CURVES].with_columns(pl.lit(None, pl.Float64).alias("capacity_fraction")), "expected shares from 0 to 1"),
        (good[CURVES].with_columns(pl.lit(0).alias("top_k")), "top-k below E"),
        (good[CURVES].with_columns(pl.lit(None, pl.Int64).alias("num_layers")), "top-k below E"),
        (good[CURVES].with_columns(pl.lit(None, pl.String).alias("model")), "top-k below E"),
    ):
        changed.write_parquet(path)
        refused(said, known_tables, tmp_path)
    path.write_bytes(b"PAR1 and no more")
    refused("not readable as one table", known_tables, tmp_path)
    good[CURVES].write_parquet(path)
    (tmp_path / CARD / "a.parquet").write_bytes(b"")
    refused("not readable as one table", known_tables, tmp_path)
