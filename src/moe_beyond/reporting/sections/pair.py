"""The section on experts that go together: within a layer, and from one layer to the next."""

from __future__ import annotations

import polars as pl

from moe_beyond.reporting.blocks import Absent, Block, DataTable, Figure, Section
from moe_beyond.reporting.figures import pairs as pair_plots
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import number, percent

_BITS = {
    "coactivation_bits": "two experts of the layer",
    "next_layer_bits": "an expert here and one of the next layer",
    "next_layer_bits_by_chance": "the same for unrelated tokens",
}
_LISTED = 20  # pairs below a heat map; the file has all


def pairs_section(tables: Tables) -> Section:
    """Co-activation and transitions, each as a heat map of its most telling layer, and both layer by layer."""
    lead = (
        "Experts that come together more often than their popularity explains can be stored side by side and loaded in "
        "one request; a layer that tells much about the next makes prefetch one layer ahead possible. Experts that "
        "behave alike stand side by side in the pictures, so groups show as blocks."
    )
    said = " ".join(part for part in (_said_together(tables), _said_onward(tables)) if part)
    blocks = (*_together(tables), *_onward(tables), *_bits(tables))
    return Section("pairs", "Pairs", "Experts that go together", f"{lead} {said}".strip(), blocks)


def _whole_layer(frame: pl.DataFrame) -> int:
    """The layer whose pairs are all in the table: it has the most rows."""
    return int(frame.group_by("layer").len().sort("len", "layer", descending=[True, False])["layer"][0])


def _said_together(tables: Tables) -> str:
    frame = tables["coactivation"].frame
    if frame is None:
        return ""
    top = frame.filter(pl.col("layer") == _whole_layer(frame)).sort("lift", descending=True).row(0, named=True)
    return (
        f"In layer {top['layer']}, experts {top['expert']} and {top['other']} meet {number(top['lift'])} times as "
        "often as by chance."
    )


def _said_onward(tables: Tables) -> str:
    """By how many equally likely experts the next layer's choice narrows, where most and least is known."""
    layers = tables["layers"]
    if not layers.has("next_layer_bits", "entropy_bits"):
        return ""
    frame = layers.rows.sort("layer").with_columns(next_entropy=pl.col("entropy_bits").shift(-1))
    frame = frame.drop_nulls(["next_layer_bits", "next_entropy"]).sort("next_layer_bits", descending=True)
    if frame.is_empty():
        return ""
    row = frame.row(0, named=True)
    before, after = 2 ** row["next_entropy"], 2 ** (row["next_entropy"] - row["next_layer_bits"])
    return (
        f"Layer {row['layer']} tells most about the next: knowing one of its experts narrows an expert there from "
        f"{number(before, 2)} equally likely ones to {number(after, 2)} ({number(row['next_layer_bits'])} bits)."
    )


def _together(tables: Tables) -> list[Block]:
    table, title = tables["coactivation"], "Experts of one layer that are used together"
    if table.frame is None:
        reason = "the router chooses one expert a token, so none go together" if table.empty else table.absent
        return [Absent(title, reason)]
    layer = _whole_layer(table.frame)
    part = table.frame.filter(pl.col("layer") == layer).sort("lift", descending=True)
    rows = tuple(
        (f"{row['expert']} and {row['other']}", number(row["tokens"]), number(row["lift"]))
        for row in part.head(_LISTED).iter_rows(named=True)
    )
    top = part.row(0, named=True)
    data = DataTable(
        f"Pairs of layer {layer} farthest above chance; the file has all of this layer and the most telling of every "
        "other",
        ("Experts", "Tokens that use both", "Times as often as by chance"),
        rows,
        table.path,
    )
    never = part.filter(pl.col("tokens") == 0).height
    alt = (
        f"Heat map of the experts of layer {layer} by themselves. Most above chance are experts {top['expert']} and "
        f"{top['other']}, {number(top['lift'])} times; {number(never)} of {number(part.height)} pairs never met."
    )
    chart = pair_plots.together(part, layer)
    return [Figure("coactivation", f"Used together in layer {layer}, where pairs tell most", alt, chart, data)]


def _onward(tables: Tables) -> list[Block]:
    table, title = tables["transitions"], "From one layer to the next"
    if table.frame is None:
        reason = "the model has one Mixture-of-Experts layer" if table.empty else table.absent
        return [Absent(title, reason)]
    layer = _whole_layer(table.frame)
    part = table.frame.filter(pl.col("layer") == layer).sort("lift", descending=True)
    next_layer = int(part["next_layer"][0])
    rows = tuple(
        (
            f"{row['expert']}, then {row['next_expert']}",
            number(row["tokens"]),
            percent(row["probability"]),
            number(row["lift"]),
        )
        for row in part.head(_LISTED).iter_rows(named=True)
    )
    data = DataTable(
        f"Pairs of layers {layer} and {next_layer} farthest above chance; the file has all of them and the most "
        "telling of every other layer",
        ("Experts", "Tokens that use both", "Chance of the next", "Times as often as by chance"),
        rows,
        table.path,
    )
    top = part.row(0, named=True)
    alt = (
        f"Heat map of the experts of layer {layer} by those of layer {next_layer}. Most above chance: after expert "
        f"{top['expert']} comes expert {top['next_expert']} with a chance of {percent(top['probability'])}, "
        f"{number(top['lift'])} times its usual one."
    )
    chart = pair_plots.onward(part, layer, next_layer)
    shown = f"From layer {layer} to layer {next_layer}, where the step tells most"
    return [Figure("transitions", shown, alt, chart, data)]


def _bits(tables: Tables) -> list[Block]:
    table, title = tables["layers"], "What one expert tells about another"
    measures = {
        name: words
        for name, words in _BITS.items()
        if table.has(name) and table.rows[name].null_count() < table.rows.height
    }
    if not measures:
        return [Absent(title, table.absent or f"{table.path} has no column {next(iter(_BITS))}")]
    frame = table.rows.sort("layer")
    if frame.height < 2:
        return [Absent(title, f"{table.path} has one layer")]
    rows = tuple((str(row["layer"]), *(number(row[name]) for name in measures)) for row in frame.iter_rows(named=True))
    data = DataTable(
        "Bits of mutual information by layer",
        ("Layer", *(words.capitalize() for words in measures.values())),
        rows,
        table.path,
    )
    ends = [
        f"{words}, from {number(frame[name].min())} to {number(frame[name].max())}"  # type: ignore[arg-type]
        for name, words in measures.items()
    ]
    alt = f"Line chart of bits over layers: {'; '.join(ends)}."
    chart, legend = pair_plots.bits_by_layer(frame, measures), pair_plots.bits_looks(measures)
    return [Figure("pair_bits", f"{title}, layer by layer", alt, chart, data, wide=True, legend=legend)]
