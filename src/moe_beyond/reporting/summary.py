"""The top of the page: a sentence, four numbers, what speaks for and against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moe_beyond.reporting.blocks import Absent, Block, Section
from moe_beyond.reporting.explorer import headline_policies
from moe_beyond.reporting.findings import Finding, findings, verdict
from moe_beyond.reporting.headline import contest, hardest_split, recall_name, scores, split_label
from moe_beyond.reporting.names import is_learned, label
from moe_beyond.reporting.predictor_sections import deployed_size, score_table
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import MISSING, interval, mib, percent


@dataclass(frozen=True)
class Tile:
    """One headline number: what it is, the number, what to hold it against, and the file behind it."""

    name: str
    value: str
    note: str
    source: str


@dataclass(frozen=True)
class Summary:
    """Everything above the first section."""

    verdict: str
    tiles: tuple[Tile, ...]
    findings: tuple[Finding, ...]
    scores: Section


def summarise(tables: Tables, fraction: float) -> Summary:
    """Compute the page's top for a cache that holds `fraction` of the model's experts."""
    blocks: list[Block] = []
    if tables["quality"].frame is None:
        blocks.append(Absent("Scores of the predictors", tables["quality"].absent))
    else:
        blocks += [score_table(tables, split) for split in tables.splits if scores(tables, split)]
    blocks += headline_policies(tables, fraction)
    lead = (
        f"The fast memory holds {percent(fraction, 0)} of the experts here; the explorer below shows every other size."
    )
    section = Section("numbers", "Headline numbers", "Headline numbers", lead, tuple(blocks))
    tiles = [*_recall_tile(tables), *_cache_tiles(tables, fraction), *_cost_tile(tables)]
    return Summary(verdict(tables, fraction), tuple(tiles), tuple(_bad_first(findings(tables, fraction))), section)


def _bad_first(found: Sequence[Finding]) -> list[Finding]:
    return sorted(found, key=lambda finding: ("bad", "neutral", "good").index(finding.tone))


def _recall_tile(tables: Tables) -> list[Tile]:
    split = hardest_split(tables)
    rows = scores(tables, split) if split else []
    ours = [row for row in rows if is_learned(row.predictor)]
    others = [row for row in rows if not is_learned(row.predictor)]
    if not ours or split is None:
        return []
    note = interval(ours[0].low, ours[0].high)
    if others:
        rival = max(others, key=lambda row: row.recall)
        note = f"{note} against {percent(rival.recall)} for {label(rival.predictor).lower()}".strip()
    return [Tile(f"{recall_name(tables)}, {split_label(split)}", percent(ours[0].recall), note, tables["quality"].path)]


def _cache_tiles(tables: Tables, fraction: float) -> list[Tile]:
    split = hardest_split(tables)
    result = contest(tables, split, fraction) if split else None
    if result is None:
        return []
    ours, rival, source = result.ours, result.rival, tables["replay"].path
    bound = f"; {label(result.bound.policy)} {percent(result.bound.hit_rate)}" if result.bound else ""
    note = (
        f"{interval(ours.low, ours.high)} against {percent(rival.hit_rate)} with {label(rival.policy)}{bound}".strip()
    )
    tiles = [Tile(f"Hit rate at {percent(ours.capacity_fraction, 0)} capacity", percent(ours.hit_rate), note, source)]
    demand = result.demand or rival
    note = f"against {mib(demand.mib_per_token)} with {label(demand.policy)}"
    return [*tiles, Tile("Moved per token, there", mib(ours.mib_per_token), note, source)]


def _cost_tile(tables: Tables) -> list[Tile]:
    latency, size = deployed_size(tables)
    if latency == MISSING:
        return []
    note = "" if size == MISSING else f"{size} as ONNX"
    return [Tile("Predictor, one token step", latency, note, "reports/export/metrics.json")]
