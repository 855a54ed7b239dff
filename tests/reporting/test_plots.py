import json
import re
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest
from PIL import Image  # matplotlib, which mlflow needs, brings it

from moe_beyond.reporting.blocks import Figure
from moe_beyond.reporting.figures import plots, theme
from moe_beyond.reporting.page import chart_spec, figure_svg, svg_png
from moe_beyond.reporting.sections.break_even import break_even_section
from moe_beyond.reporting.sections.cache import cache_section
from moe_beyond.reporting.sections.contest import timing_section
from moe_beyond.reporting.sections.model import model_section
from moe_beyond.reporting.sections.pair import pairs_section
from moe_beyond.reporting.sections.predictor import predictor_section, search_section, training_section
from moe_beyond.reporting.sections.trust import trust_section
from moe_beyond.reporting.sections.why import why_section
from moe_beyond.reporting.tables import Tables


def all_figures(tables: Tables) -> dict[str, Figure]:
    sections = [
        make(tables)
        for make in (
            predictor_section,
            trust_section,
            search_section,
            training_section,
            model_section,
            pairs_section,
            why_section,
            break_even_section,
        )
    ]
    sections += [cache_section(tables, 0.1), timing_section(tables, {}, 0.1)]
    return {figure.name: figure for section in sections for figure in section.figures}


def data(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return max(spec["datasets"].values(), key=len)


def test_every_figure_of_the_page_is_there(tables: Tables):
    splits = ("test_in_domain", "test_out_of_domain")
    per_split = {f"{name}_{split}" for name in ("hit_rate", "bytes_per_token", "recall_by_layer") for split in splits}
    assert set(all_figures(tables)) == per_split | {
        "time_phone_ufs",
        "time_laptop_nvme",
        "recall",
        "pareto",
        "training_loss",
        "training_recall",
        "heat_map",
        "layers",
        "hit_curves",
        "reuse_distances",
        "calibration",
        "coverage",
        "coactivation",
        "transitions",
        "pair_bits",
        "timeline",
        "timeline_layers",
        "bandwidth_phone_ufs",
        "bandwidth_laptop_nvme",
        *(f"recall_by_horizon_{split}" for split in splits),
    }


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_painting_leaves_no_colour_token(tables: Tables, mode: theme.Mode):
    for figure in all_figures(tables).values():
        painted = json.dumps(theme.paint(chart_spec(figure.chart) | {"config": theme.config()}, mode))
        assert '"@' not in painted, figure.name
        assert theme.COLOURS[mode]["muted"] in painted


def test_both_themes_have_the_same_tokens():
    assert set(theme.COLOURS["light"]) == set(theme.COLOURS["dark"])


def test_a_chart_draws_the_rows_of_its_table(tables: Tables):
    replay = tables["replay"].rows.filter(pl.col("split") == "test_in_domain")
    rows = data(chart_spec(plots.hit_rate(replay, tables.policies, 0.09, 30)))
    assert sorted(row["hit_rate"] for row in rows) == sorted(replay["hit_rate"].to_list())
    assert {row["series"] for row in rows} >= {"LRU", "Predictor prefetch + LRU", "Belady (demand bound)"}


@pytest.mark.parametrize(("fraction", "marks"), [(0.09, 1), (None, 0), (1.5, 0)])
def test_the_token_cycle_is_marked_only_where_it_lies_on_the_axis(tables: Tables, fraction: float | None, marks: int):
    replay = tables["replay"].rows.filter(pl.col("split") == "test_in_domain")
    text = json.dumps(chart_spec(plots.hit_rate(replay, tables.policies, fraction, 30)))
    assert text.count('"type": "rule"') == marks
    assert ("one token cycle, 30 experts" in text) == bool(marks)


def test_line_dash_repeats_what_colour_says(tables: Tables):
    replay = tables["replay"].rows.filter(pl.col("split") == "test_in_domain")
    text = json.dumps(chart_spec(plots.hit_rate(replay, tables.policies, None, None)))
    assert '"strokeDash": {"field": "series"' in text


def test_a_heat_map_may_have_more_cells_than_altair_allows_unasked():
    frame = pl.DataFrame(
        {"layer": [i // 160 for i in range(60 * 160)], "expert": [i % 160 for i in range(60 * 160)], "share": 1 / 160}
    )
    rows = data(chart_spec(plots.heat_map(frame, 160)))
    assert len(rows) == 9600
    assert {row["fold"] for row in rows} == {1.0}


@pytest.mark.parametrize("height", [1, 5, 160, 161, 4000])
def test_thinning_keeps_both_ends_and_the_order(height: int):
    frame = plots.thin(pl.DataFrame({"x": range(height)}))
    values = frame["x"].to_list()
    assert values == sorted(set(values))
    assert (values[0], values[-1]) == (0, height - 1)
    assert len(values) == min(height, 160)


def test_the_chosen_trial_alone_is_ringed(tables: Tables):
    spec = chart_spec(all_figures(tables)["pareto"].chart)
    assert [row["trial"] for row in data(spec) if row["chosen_trial"]] == [4]
    assert {row["kind"] for row in data(spec)} == {"on the Pareto front", "dominated"}


def test_a_png_has_the_asked_width_and_is_not_blank(tables: Tables, tmp_path: Path):
    png = svg_png(figure_svg(all_figures(tables)["hit_rate_test_in_domain"], 400), 1)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    (width,) = struct.unpack(">I", png[16:20])
    assert 400 <= width <= 700
    path = tmp_path / "figure.png"
    path.write_bytes(png)
    with Image.open(path) as image:
        colours = image.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    seen = {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in colours}  # type: ignore[misc]
    light = theme.COLOURS["light"]
    # the page's white, and the lines of LRU and of ours
    assert {light["page"], light["vermilion"], light["blue"]} <= seen


def test_an_svg_is_whole_has_its_title_and_does_not_depend_on_what_was_drawn_before(tables: Tables):
    figures = all_figures(tables)
    first = {name: figure_svg(figures[name], 400) for name in ("heat_map", "coverage")}
    for name, text in first.items():
        root = ElementTree.fromstring(text)  # noqa: S314 - our own text
        assert root.tag.endswith("svg")
        assert figures[name].title in "".join(root.itertext())
        assert '"@' not in text
        assert figure_svg(figures[name], 400) == text
    # every reference within the file has its target
    ids = set(re.findall(r'id="([^"]+)"', first["heat_map"]))
    used = set(re.findall(r"url\(#([^)]+)\)", first["heat_map"]))
    assert used
    assert used <= ids


def test_the_reliability_chart_draws_the_bins_and_the_diagonal(tables: Tables):
    spec = chart_spec(all_figures(tables)["calibration"].chart)
    rows = data(spec)
    assert sorted(row["observed_share"] for row in rows) == sorted(tables["calibration"].rows["observed_share"])
    assert {"stated": 1.0, "came": 1.0} in [row for part in spec["datasets"].values() for row in part]


@pytest.mark.parametrize(("k", "words"), [(6, "the router uses 6"), (None, "")])
def test_coverage_marks_the_routers_own_width_where_it_is_known(tables: Tables, k: int | None, words: str):
    text = json.dumps(chart_spec(plots.coverage(tables["width"].rows, ["test_in_domain", "test_out_of_domain"], k)))
    assert text.count('"type": "rule"') == (k is not None)
    assert words in text
