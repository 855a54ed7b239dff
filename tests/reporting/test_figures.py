"""Charts, their words and numbers, and the pictures that are made of them."""

import json
import re
import struct
from dataclasses import replace
from xml.etree import ElementTree

import polars as pl
import pytest

from moe_beyond.reporting.figures.lines import Axis, curves, thin
from moe_beyond.reporting.figures.theme import chart_spec, figure_svg, paint, svg_png, theme
from moe_beyond.reporting.names import Look, looks
from moe_beyond.reporting.page import sections_of
from moe_beyond.reporting.sections.routing import routing_section
from tests.reporting.conftest import SMALL

X, Y = Axis("x", "capacity", "percent"), Axis("y", "ms per token")


def drawn(figure):
    return max(chart_spec(figure.chart)["datasets"].values(), key=len)


def line(points, name="a"):
    places = range(points)
    return pl.DataFrame({"series": name, "x": [i / points for i in places], "y": [10.0 + i for i in places]})


@pytest.fixture(scope="module")
def figures(run):
    return {figure.name: figure for section in sections_of(run) for figure in section.figures}


def test_a_figure_for_each_thing_that_decides(figures):
    """Plain names stand for the headline's device and split."""
    assert set(figures) == {
        *("ms_per_token", "ms_per_token_phone_ufs_test_out_of_domain"),
        *("ms_per_token_laptop_nvme_test_in_domain", "ms_per_token_phone_ufs_test_in_domain"),
        *("bandwidth", "bandwidth_phone_ufs_test_out_of_domain", "timeline", "timeline_layers", "calibration"),
        *("recall_by_layer", "recall_by_layer_test_in_domain", "training", "pareto", "frontier"),
        *("heat_map", "hit_curves", "reuse_distances"),
    }


def test_every_figure_has_words_numbers_and_colours_of_both_modes(figures):
    for figure in figures.values():
        assert len(figure.alt) > 40, figure.name
        assert figure.table.rows, figure.name
        assert all(len(row) == len(figure.table.columns) for row in figure.table.rows), figure.name
        spec = chart_spec(figure.chart) | {"config": theme()["config"]}
        for mode in ("light", "dark"):
            assert not re.findall(r'"@\w+"', json.dumps(paint(spec, mode))), figure.name
    assert theme()["colours"]["light"].keys() == theme()["colours"]["dark"].keys()


def test_the_times_of_a_chart_come_with_the_latency_that_is_charged(figures):
    for name in ("ms_per_token", "bandwidth", "timeline"):
        assert "prefetch, predicted eviction 0.200\u00a0a\u00a0token" in figures[name].note, name


def test_a_prefill_in_one_step_is_not_drawn_among_tokens(figures):
    assert {row["position"] for row in drawn(figures["timeline"])} == {7, 8, 9}
    assert figures["timeline"].title.startswith("75\u00a0% of this prompt's time is stall")


def test_curves_say_their_ends_print_their_points_and_draw_the_first_of_the_legend_last():
    frame = pl.concat([line(4), line(4, "b").with_columns(pl.col("y") * 2)])
    figure = curves("name", "Title", frame, looks(["a", "b"]), x=X, y=Y, mark=(0.3, "here"))
    words = "Line chart of ms per token over capacity. From left to right: a from 10 to 13; b from 20 to 26."
    assert figure.alt == words
    assert (figure.table.columns, figure.table.rows[1]) == (("capacity", "a", "b"), ("25.0\u00a0%", "11", "22"))
    assert "here" in json.dumps(chart_spec(figure.chart))
    assert [row["series"] for row in drawn(figure)] == ["b"] * 4 + ["a"] * 4


def test_long_curves_are_thinned_but_keep_their_ends_and_a_single_line_has_no_legend():
    frame = line(1000)
    assert thin(frame, 25)[[0, -1]].equals(frame[[0, -1]])
    figure = curves("name", "Title", frame, {"a": Look("@blue")}, x=X, y=Y)
    assert (len(drawn(figure)), len(figure.table.rows), figure.looks) == (160, 25, {})
    assert chart_spec(figure.chart)["layer"][0]["encoding"]["color"]["legend"] is None


def test_a_picture_is_valid_and_has_its_title_and_note(figures):
    figure = figures["ms_per_token"]
    svg = figure_svg(figure, 400)
    ElementTree.fromstring(svg)  # noqa: S314 - our own drawing
    text = " ".join(re.sub(r"<[^>]+>", " ", svg).split())
    assert figure.title in text
    assert figure.note.replace("\u00a0", " ") in text.replace("\u00a0", " ")
    png = svg_png(svg, 2)
    assert png.startswith(b"\x89PNG")
    assert struct.unpack(">I", png[16:20])[0] == pytest.approx(2 * width_of(svg), abs=2)
    # a long note takes more lines, not more width
    assert width_of(svg) == width_of(figure_svg(replace(figure, note=""), 400))


def width_of(svg):
    return float(re.findall(r'width="([\d.]+)"', svg)[0])


def test_pictures_of_all_figures_lie_in_the_folder(rendered, figures):
    folder = rendered / "reports" / "figures"
    assert {path.stem for path in folder.glob("*.png")} == {path.stem for path in folder.glob("*.svg")} == set(figures)
    # however many others were drawn before it
    assert (folder / "heat_map.svg").read_text() == figure_svg(figures["heat_map"], SMALL.chart_width)


@pytest.mark.parametrize(("layers", "experts", "together"), [(48, 512, 5), (94, 128, 3), (5, 64, 1)])
def test_the_heat_map_of_a_large_model_has_no_more_cells_than_a_page_should(run, layers, experts, together):
    ids = pl.DataFrame({"layer": range(layers)}).join(pl.DataFrame({"expert": range(experts)}), how="cross")
    popularity = ids.with_columns(share=pl.lit(1 / experts))
    card = run.card | {"num_layers": layers, "num_experts": experts}
    found = routing_section(replace(run, card=card, tables=run.tables | {"popularity": popularity}))
    figure = next(one for one in found.figures if one.name == "heat_map")
    cells = drawn(figure)
    assert len(cells) == layers * -(-experts // together) <= 6_000
    # of equally popular experts every mean is an even share
    assert {cell["fold"] for cell in cells} == {1}
    assert (f"mean of {together} experts" in figure.alt) == (together > 1)
