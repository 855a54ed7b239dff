"""The model's routing: is it worth offloading, which experts are popular and how soon they come back, other models."""

from __future__ import annotations

import polars as pl

from moe_beyond.reporting.blocks import Figure, Section, Table, Text, facts, folded, section, table
from moe_beyond.reporting.columns import cells
from moe_beyond.reporting.figures.charts import heat
from moe_beyond.reporting.figures.lines import Axis, curves
from moe_beyond.reporting.names import DASHES, Look, label
from moe_beyond.reporting.read import Run
from moe_beyond.reporting.text import number, of

_FAVOURITES, _PAIRS = 5, 10
_CELLS = 6_000
_CURVES = {"belady": Look("@ink", DASHES[2]), "lru": Look("@vermilion"), "static_popularity": Look("@green", DASHES[1])}


def routing_section(run: Run) -> Section:
    """The suitability card and the figures behind it."""
    card = facts("Suitability card", {name: fact for name, fact in run.card.items() if name != "reasons"})
    verdict = Text("", tuple(run.card["reasons"]), f"Verdict from the traces: {run.card['verdict']}")
    layers = {label(name): of(name) for name in run.tables["layers"].columns}
    more = [card, table("Routing by layer", run.tables["layers"], layers), *_pairs(run)]
    figures = (_curves(run), _heat_map(run), _reuse(run))
    return section("routing", [verdict, *figures, *folded("Card, layers, pairs", more)])


def _heat_map(run: Run) -> Figure:
    experts = run.card["num_experts"]
    frame = run.tables["popularity"].with_columns(fold=pl.col("share") * experts)
    ranked = frame.sort("share", descending=True, maintain_order=True)
    favourites = ranked.group_by("layer", maintain_order=True).head(_FAVOURITES).sort("layer", maintain_order=True)
    top, value = ranked.row(0, named=True), Axis("fold", "multiple of an even share")
    # the page must not grow with the model: of a large one a cell is several neighbours
    together = -(-experts // max(1, _CELLS // run.card["num_layers"]))
    shown = frame.group_by("layer", pl.col("expert") // together * together, maintain_order=True).agg(
        pl.col("fold").mean()
    )
    each = f" A cell is the mean of {together} experts from the one on that it names." if together > 1 else ""
    return Figure(
        "heat_map",
        "How often each expert is chosen",
        f"Heat map of {run.card['num_layers']} layers by {experts} experts. The most popular is expert {top['expert']} "
        f"of layer {top['layer']}, chosen {number(top['fold'])} times as often as an even share.{each}",
        heat(shown, Axis("expert", "expert", "count"), Axis("layer", "layer", "count"), value),
        table("The most popular experts of each layer; the file has all", favourites, cells("favourites")),
        {},
        wide=True,
    )


def _curves(run: Run) -> Figure:
    names = {name: label(name) for name in _CURVES}
    return curves(
        "hit_curves",
        "Hit rate of loading on demand, every token replayed",
        run.tables["hit_curves"].with_columns(series=pl.col("policy").replace_strict(names)),
        {names[name]: look for name, look in _CURVES.items()},
        x=Axis("capacity_fraction", "capacity, share of the model's experts", "percent"),
        y=Axis("hit_rate", "hit rate", "percent", whole=True),
        mark=run.token_cycle,
    )


def _reuse(run: Run) -> Figure:
    return curves(
        "reuse_distances",
        "How soon an expert comes back",
        run.tables["reuse_distances"].with_columns(series=pl.lit("Accesses")),
        {"Accesses": Look("@blue")},
        x=Axis("distance", "tokens since its last use", "count", log=True),
        y=Axis("cumulative_share", "share of accesses", "percent", whole=True),
        wide=True,
    )


def _pairs(run: Run) -> list[Table]:
    """Pairs of experts used together most above chance, within a layer and from one layer to the next."""
    captions = {"other": "Used together in one layer", "next_expert": "Used one after the other in neighbouring layers"}
    shown = []
    frames = (run.tables["coactivation"], run.tables["transitions"])
    for frame, (other, caption) in zip(frames, captions.items(), strict=True):
        top = frame.sort("lift", descending=True, maintain_order=True).head(_PAIRS)
        shown += [table(caption, top.rename({other: "other"}), cells("pairs"))] if top.height else []
    return shown


def models_section(run: Run) -> Section:
    """The suitability cards of several models, this one's first."""
    cards = run.tables["cards"]
    return section("models", [table("Suitability cards", cards, cells("models"))] if cards.height > 1 else [])
