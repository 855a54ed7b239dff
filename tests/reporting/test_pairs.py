"""Co-activation and transitions on the page: the numbers of the tables, groups side by side, reasons where absent."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from moe_beyond.assess.pair_tables import PairTables, pair_tables
from moe_beyond.reporting.blocks import Absent, Figure
from moe_beyond.reporting.figures.pairs import together
from moe_beyond.reporting.page import chart_spec
from moe_beyond.reporting.sections.pair import pairs_section
from moe_beyond.reporting.tables import Tables, read_tables
from moe_beyond.reporting.text import number, percent
from tests.traces.random_traces import random_trace


def figures(tables: Tables) -> dict[str, Figure]:
    return {figure.name: figure for figure in pairs_section(tables).figures}


def test_the_most_telling_layer_is_drawn_whole_and_its_extremes_are_listed(tables: Tables):
    frame = tables["coactivation"].rows
    sizes = frame.group_by("layer").len().sort("len", descending=True)
    part = frame.filter(pl.col("layer") == sizes["layer"][0])
    assert part.height == 64 * 63 // 2
    figure = figures(tables)["coactivation"]
    cells = max(chart_spec(figure.chart)["datasets"].values(), key=len)
    assert len(cells) == 64 * 63
    top = part.sort("lift", descending=True).row(0, named=True)
    assert figure.table.rows[0] == (f"{top['expert']} and {top['other']}", number(top["tokens"]), number(top["lift"]))


def test_transitions_name_the_chance_of_the_next_expert(tables: Tables):
    frame = tables["transitions"].rows
    layer = frame.group_by("layer").len().sort("len", descending=True)["layer"][0]
    top = frame.filter(pl.col("layer") == layer).sort("lift", descending=True).row(0, named=True)
    row = figures(tables)["transitions"].table.rows[0]
    assert row[2:] == (percent(top["probability"]), number(top["lift"]))


def test_the_lead_says_by_how_much_one_layer_narrows_the_next(tables: Tables):
    layers = tables["layers"].rows
    row = layers.sort("next_layer_bits", descending=True, nulls_last=True).row(0, named=True)
    after = layers.filter(pl.col("layer") == row["layer"] + 1)["entropy_bits"][0]
    narrowed = number(2 ** (after - row["next_layer_bits"]), 2)
    assert f"from {number(2**after, 2)} equally likely ones to {narrowed}" in pairs_section(tables).lead


@pytest.mark.parametrize("sizes", [(6, 6), (3, 4, 5)])
def test_experts_of_one_group_stand_side_by_side(sizes: tuple[int, ...]):
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    pairs = pl.DataFrame(
        [(a, b, 5, 4.0 if groups[a] == groups[b] else 0.1) for a in range(12) for b in range(a + 1, 12)],
        ["expert", "other", "tokens", "lift"],
        orient="row",
    )
    order = [int(expert) for expert in chart_spec(together(pairs, 1))["encoding"]["x"]["sort"]]
    assert sorted(order) == list(range(12))
    assert sum(groups[a] != groups[b] for a, b in pairwise(order)) == len(sizes) - 1


def written(tmp_path: Path, pairs: PairTables) -> Tables:
    folder = tmp_path / "reports" / "assess"
    folder.mkdir(parents=True)
    pairs.coactivation.write_csv(folder / "coactivation.csv")
    pairs.transitions.write_csv(folder / "transitions.csv")
    return read_tables(tmp_path)


def test_a_router_of_one_expert_or_a_model_of_one_layer_is_said_and_not_drawn(tmp_path: Path):
    single = pair_tables(random_trace([30], layers=1, experts=4, top_k=1), 5)
    section = pairs_section(written(tmp_path, single))
    assert section.figures == []
    reasons = [block.reason for block in section.blocks if isinstance(block, Absent)]
    assert reasons == [
        "the router chooses one expert a token, so none go together",
        "the model has one Mixture-of-Experts layer",
        "reports/assess/layers.csv was not written",
    ]
