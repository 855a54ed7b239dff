"""The paper's own replay: our predictor and the published predictions in the same caches."""

from __future__ import annotations

from moe_beyond.reporting.blocks import Block, Section, folded, section, table
from moe_beyond.reporting.names import PAPER_LRU, label
from moe_beyond.reporting.read import TOKEN, Run
from moe_beyond.reporting.text import Cell, bounds, number, of, percent, points, signed, spread

_CACHES = {"paper_lru": "The paper's LRU, its replay unchanged", "lru": "LRU in which only a use renews an expert"}
_CELLS: dict[str, Cell] = {
    "Experts": of("capacity_experts"),
    "Hit rate, ours": spread("ours_hit_rate", percent),
    "Hit rate, published": spread("paper_hit_rate", percent),
    "Difference": lambda row: f"{points(row['difference_hit_rate'])} {bounds(row, 'difference_hit_rate', percent)}",
    "MiB per token, ours": spread("ours_mib_per_token"),
    "MiB per token, published": spread("paper_mib_per_token"),
    "Difference in MiB": lambda row: (
        f"{signed(row['difference_mib_per_token'])} {bounds(row, 'difference_mib_per_token')}"
    ),
}
_PROTOCOL: dict[str, Cell] = {
    "Predictor": lambda row: label(row["predictor"]),
    "Layers ahead": lambda row: "before the token" if row["horizon"] == TOKEN else row["horizon"],
    "Split": lambda row: label(row["split"]),
    "Experts": of("capacity_experts"),
    "recall@k": of("recall_at_k", percent),
    "Hit rate": lambda row: f"{percent(row['hit_rate'])} [{percent(row['low'])}, {percent(row['high'])}]",
    "MiB per token": lambda row: (
        f"{number(row['mib_per_token'])} [{number(row['mib_low'])}, {number(row['mib_high'])}]"
    ),
}


def paper_section(run: Run) -> Section:
    """Both sides in every row, so that no row compares two caches; the paper's own replay first."""
    blocks: list[Block] = []
    for split in run.splits:
        rows = run.tables["paper_replay"].filter(split=split)
        caches = sorted(rows["cache"].unique(maintain_order=True).to_list(), key=lambda cache: cache != PAPER_LRU)
        blocks += [
            table(f"{_CACHES.get(c, label(c))}: {label(split).lower()}", rows.filter(cache=c), _CELLS) for c in caches
        ]
    every = table("Every predictor in the paper's own replay", run.tables["published_protocol"], _PROTOCOL)
    return section("paper", [*blocks, *folded(every.caption, [every] if every.rows else [])])
