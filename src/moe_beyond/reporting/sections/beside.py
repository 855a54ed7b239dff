"""Sections that set this run beside others: the cards of other models, and the paper's own replay."""

from __future__ import annotations

from typing import Any

import polars as pl

from moe_beyond.reporting.blocks import Absent, Block, DataTable, Passage, Section
from moe_beyond.reporting.headline import ahead_of_published, asked_ahead_of, beside_published, recall_name, split_label
from moe_beyond.reporting.names import label, ordered
from moe_beyond.reporting.tables import TOKEN, Tables
from moe_beyond.reporting.text import MISSING, interval, listed, number, percent, points, signed

_SHAPE = {"num_layers": "MoE layers", "num_experts": "Experts in each", "top_k": "Top-k"}
_SHARES = {
    "previous_token_overlap": "Overlap with previous token",
    "entropy_ratio": "Evenness of popularity",
    "working_set_64_fraction": "Working set, 64 tokens",
    "static_skew": "Static skew",
    "temporal_locality": "Temporal locality",
}
_CACHES = {
    "published": "the paper's LRU",
    "published_touched": "the paper's LRU, what is still expected touched",
    "lru": "LRU that only uses renew",
    "anticipate": "eviction by predicted next use",
}
_RATES = {"lru_hit_rate": "LRU", "static_popularity_hit_rate": "Static popularity", "belady_hit_rate": "Belady"}


def models_section(tables: Tables) -> Section:
    """The suitability cards of several models, this one's first, and how they differ."""
    title, table = "Beside other models", tables["cards"]
    if table.frame is None:
        return Section("models", "Other models", title, blocks=(Absent(title, table.absent),))
    cards = table.frame
    if cards.height < 2:
        reason = (
            f"{table.path} holds this model alone; name traces of others under assess.others in params.yaml to compare"
        )
        return Section("models", "Other models", title, blocks=(Absent(title, reason),))
    lead = (
        "One rule judged every model by its own routing on its own prompts. The first row is this page's model; hit "
        "rates are those of a cache that holds the same share of each model's experts, every token replayed."
    )
    blocks = (Passage(_differences(cards)), _verdicts(cards, table.path), _routing(cards, table.path))
    return Section("models", "Other models", title, lead, blocks)


def _verdicts(cards: pl.DataFrame, source: str) -> DataTable:
    rows = tuple(
        (
            row["model"],
            row["verdict"],
            percent(row["budget_fraction"], 0),
            *(percent(row[name]) for name in _RATES),
            number(row["prompts"]),
            number(row["tokens"]),
        )
        for row in cards.iter_rows(named=True)
    )
    columns = ("Model", "Verdict", "Capacity", *_RATES.values(), "Prompts", "Tokens")
    return DataTable("Verdict, and hit rate at one capacity", columns, rows, source, emphasis=0)


def _routing(cards: pl.DataFrame, source: str) -> DataTable:
    rows = tuple(
        (
            row["model"],
            *(number(row[name]) for name in _SHAPE),
            # a trace that does not know its experts' size says 0
            number(round(row["model_mib"])) if row["model_mib"] else MISSING,
            *(percent(row[name]) for name in _SHARES),
            number(row["gini"]),
        )
        for row in cards.iter_rows(named=True)
    )
    columns = ("Model", *_SHAPE.values(), "All, MiB", *_SHARES.values(), "Gini")
    return DataTable("Shape and routing", columns, rows, source, emphasis=0)


def _differences(cards: pl.DataFrame) -> str:
    """Verdicts, and who stands highest and lowest where it matters."""
    last = [name.rsplit("/", 1)[-1] for name in cards["model"].to_list()]
    if len(set(last)) == len(last):  # the owner's name adds nothing where models differ without it
        cards = cards.with_columns(model=pl.Series(last))
    verdicts = cards.group_by("verdict", maintain_order=True).agg(pl.col("model"))
    if verdicts.height == 1:
        said = f"All {cards.height} models get the verdict \u201c{cards['verdict'][0]}\u201d."
    else:
        groups = [f"\u201c{row['verdict']}\u201d for {listed(row['model'])}" for row in verdicts.iter_rows(named=True)]
        said = f"The verdict is {', '.join(groups)}."
    return (
        f"{said} At the capacity below LRU hits {_range(cards, 'lru_hit_rate')}, and Belady's bound is "
        f"{_range(cards, 'belady_hit_rate')}. Of a token's experts the token before had used "
        f"{_range(cards, 'previous_token_overlap')}.{_levers(cards)}"
    )


def _levers(cards: pl.DataFrame) -> str:
    """Which of the two causes of that overlap is the stronger, model by model."""
    known = cards.drop_nulls(["temporal_locality", "static_skew"])
    local = known.filter(pl.col("temporal_locality") > pl.col("static_skew"))["model"].to_list()
    skewed = [name for name in known["model"].to_list() if name not in local]
    causes = [("nearness of the two tokens", local), ("popularity of a few experts", skewed)]
    said = [f"the {cause} in {listed(names)}" for cause, names in causes if names]
    return f" Beyond chance, what explains that most is {'; '.join(said)}." if said else ""


def _range(cards: pl.DataFrame, column: str) -> str:
    """`12 % (a) to 40 % (b)`; one number where all are the same."""
    known = cards.drop_nulls(column).sort(column)
    if known.is_empty():
        return "unknown"
    low, high = known.row(0, named=True), known.row(-1, named=True)
    if percent(low[column]) == percent(high[column]):
        return f"{percent(low[column])} in all"
    return f"{percent(low[column])} ({low['model']}) to {percent(high[column])} ({high['model']})"


def paper_section(tables: Tables) -> Section:
    """Our predictor, the published one and the paper's baseline under the paper's own protocol."""
    title, table = "The paper's own protocol", tables["published_protocol"]
    if table.frame is None:
        reason = "no test split carries a published predictor's answers" if table.empty else table.absent
        return Section("paper", "The paper", title, blocks=(Absent(title, reason),))
    lead = (
        "The replay of arXiv 2508.17137: an LRU filled at random at each prompt's start, tokens one by one, the first "
        "ten uncounted, predictions resident at once. Published predictions are the answers that the paper's authors "
        "published for these very prompts; their baseline, an average of nine prompts' counts, is made here of the "
        "first training prompts. The protocol counts no bytes and no time, and naming every expert would score "
        "100\u00a0%: it compares with the paper and decides nothing. Hit rates are means over ten fillings."
    )
    blocks: list[Block] = []
    named = _with_horizons(table.rows)
    for split in named["split"].unique(maintain_order=True).to_list():
        part = named.filter(pl.col("split") == split)
        if sentence := paper_sentence(tables, split):
            blocks.append(Passage(sentence))
        blocks.append(_paper_table(tables, part, split))
        blocks += _other_caches(tables, split)
    return Section("paper", "The paper", title, lead, tuple(blocks))


def _with_horizons(rows: pl.DataFrame) -> pl.DataFrame:
    """A predictor asked some layers ahead is another predictor in the table."""
    if "horizon" not in rows.columns:
        return rows
    ahead = pl.format("{}_ahead_{}", pl.col("predictor"), pl.col("horizon"))
    name = pl.when(pl.col("horizon") == TOKEN).then(pl.col("predictor")).otherwise(ahead)
    return rows.with_columns(predictor=name)


def paper_sentence(tables: Tables, split: str) -> str:
    """Ours against the published predictions at every capacity of one split; empty where one of them is missing."""
    both = beside_published(tables, split)
    if both.is_empty():
        return ""
    said = []
    for row in both.iter_rows(named=True):
        doubt = "" if ahead_of_published(row) else " (undecided)"
        said.append(
            f"{percent(row['hit_rate'])} against {percent(row['hit_rate_paper'])} at "
            f"{number(row['capacity_experts'])} experts{doubt}"
        )
    more = both.filter(pl.col("hit_rate") > pl.col("hit_rate_paper")).height
    return (
        f"On {split_label(split)} our predictor, asked ahead of each "
        f"{asked_ahead_of(tables)}, hits more than the published predictions at {more} of "
        f"{both.height} capacities: {listed(said)}."
    )


def _paper_table(tables: Tables, part: pl.DataFrame, split: str) -> DataTable:
    sizes = part["capacity_experts"].unique().sort().to_list()
    cells = {(row["predictor"], row["capacity_experts"]): row for row in part.iter_rows(named=True)}
    rows = []
    for name in ordered(part["predictor"].to_list()):
        mine = [cells.get((name, size)) for size in sizes]
        recall = next(row["recall_at_k"] for row in mine if row is not None)
        rates = (
            MISSING if row is None else f"{percent(row['hit_rate'])} {interval(row['low'], row['high'])}".strip()
            for row in mine
        )
        rows.append((label(name), percent(recall), *rates))
    headings = ("Predictor", recall_name(tables), *(f"{number(size)} experts" for size in sizes))
    caption = f"Hit rate under the paper's protocol with 95\u00a0% interval, {split_label(split)}"
    return DataTable(caption, headings, tuple(rows), tables["published_protocol"].path)


def _other_caches(tables: Tables, split: str) -> list[Block]:
    """The same prompts, counted by the same rules: the paper's cache put to more use, and caches of ours."""
    table = tables["published_cache"]
    if table.frame is None:
        return [] if table.empty else [Absent("The same prompts through other caches", table.absent)]
    rows = table.frame.filter(pl.col("split") == split)
    if rows.is_empty():
        return []
    sizes = rows["capacity_experts"].unique().sort().to_list()
    cells = {(row["predictor"], row["cache"], row["capacity_experts"]): row for row in rows.iter_rows(named=True)}
    lines = []
    for name in ordered(rows["predictor"].to_list()):
        for cache, words in _CACHES.items():
            mine = [cells.get((name, cache, size)) for size in sizes]
            if any(row is not None for row in mine):
                lines.append((f"{label(name)}, {words}", *(cell for row in mine for cell in _rate_and_bytes(row))))
    headings = [heading for size in sizes for heading in (f"{number(size)} experts", "MiB per token")]
    caption = f"The same prompts through other caches, hit rate with 95\u00a0% interval, {split_label(split)}"
    blocks: list[Block] = [DataTable(caption, ("Predictor, cache", *headings), tuple(lines), table.path, wide=True)]
    if sentence := other_caches_sentence(rows):
        blocks.insert(0, Passage(sentence))
    return blocks


def _rate_and_bytes(row: dict[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return MISSING, MISSING
    rate = f"{percent(row['hit_rate'])} {interval(row['low'], row['high'])}".strip()
    return rate, number(row["mib_per_token"])


def smallest_caches(rows: pl.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of published_cache.csv, one split, at the smallest capacity, by predictor and cache."""
    smallest = rows.filter(pl.col("capacity_experts") == pl.col("capacity_experts").min())
    return {(row["predictor"], row["cache"]): row for row in smallest.iter_rows(named=True)}


def other_caches_sentence(rows: pl.DataFrame) -> str:
    """Ours against the paper's whole system at the smallest cache, and what the cache gives by itself.

    Args:
        rows: Of published_cache.csv, one split; the sentence is empty where it lacks a side.
    """
    found = smallest_caches(rows)
    sides = (
        ("predictor", "published_touched"),
        ("published_predictions", "published_touched"),
        ("predictor", "anticipate"),
        ("published_predictions", "lru"),
    )
    if not found.keys() >= set(sides):
        return ""
    touched, theirs_touched, ours, theirs = (found[side] for side in sides)
    return (
        "In the paper's cache a wrong prediction counts as a use and stays for a round of all layers. In the same "
        f"replay, its LRU included, our predictor at {number(touched['capacity_experts'])} experts hits "
        f"{percent(touched['hit_rate'])} when, before each layer, it touches the residents that it still expects of "
        "the token; that loads nothing, and as many experts are fetched ahead of a layer as were published: "
        f"{_against_the_paper(touched)}. The paper's predictions, which name experts without a probability, hit "
        f"{percent(theirs_touched['hit_rate'])} that way. Through a cache of ours, with as many slots, our predictor "
        f"hits {percent(ours['hit_rate'])}: {_against_the_paper(ours)}. Much of that is the cache's: the paper's "
        f"predictions, which know the rest of the prompt, hit {percent(theirs['hit_rate'])} where only uses renew an "
        "expert."
    )


def _against_the_paper(row: dict[str, Any]) -> str:
    """How a row differs from the paper's predictions in its own cache, paired by prompt."""
    moved = "fewer" if row["mib_change"] < 0 else "more"
    change = sorted(abs(row[name]) for name in ("mib_change_low", "mib_change_high"))
    same_side = row["mib_change_low"] * row["mib_change_high"] > 0
    doubt = f" [{number(change[0])}, {number(change[1])}]" if same_side else ""
    return (
        f"{points(row['gain'])} [{signed(row['gain_low'], 1)}, {signed(row['gain_high'], 1)}] against the paper's "
        f"predictions in its own replay, with {number(abs(row['mib_change']))} MiB{doubt} {moved} a token"
    )
