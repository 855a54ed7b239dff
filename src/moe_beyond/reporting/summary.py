"""The top of the page: a sentence, four numbers, what speaks for and against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_beyond.reporting.findings import Finding, findings
from moe_beyond.reporting.headline import (
    asked_ahead_of,
    beside_published,
    contest,
    hardest_split,
    recall_name,
    scores,
    split_label,
)
from moe_beyond.reporting.names import is_learned, label, sees_the_future
from moe_beyond.reporting.sections.predictor import deployed_size
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import MISSING, change, interval, listed, mib, number, percent
from moe_beyond.reporting.verdict import Race, Verdict, races, verdict

_SHORT = 9  # characters of a commit or run id that tell it from its neighbours


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

    verdict: Verdict
    ran: str
    tiles: tuple[Tile, ...]
    findings: tuple[Finding, ...]


def summarise(tables: Tables, fraction: float, code: Mapping[str, Any]) -> Summary:
    """Compute the page's top.

    Args:
        tables: The pipeline's tables.
        fraction: Share of the model's experts that the headline's cache holds.
        code: `git.commit`, `git.dirty` and `mlflow_run` where known.
    """
    tiles = [
        *_speed_tile(tables, fraction),
        *_cache_tiles(tables, fraction),
        *_recall_tile(tables),
        *_paper_tile(tables),
    ]
    ran = what_ran(tables, code)
    return Summary(verdict(tables, fraction), ran, tuple(tiles), tuple(findings(tables, fraction)))


def what_ran(tables: Tables, code: Mapping[str, Any]) -> str:
    """One sentence on what stands behind the page: prompts, their source, test splits, commit and MLflow run."""
    counts = tables.metrics.get("split", {})
    parts = []
    if "prompts" in counts and "tokens" in counts:
        source = f" ({tables.card['source']})" if tables.card.get("source") else ""
        parts.append(f"{number(counts['tokens'])} tokens of {number(counts['prompts'])} prompts{source}")
    tested = [
        f"{number(counts[f'splits.{split}.tokens'])} of {split_label(split)}"
        for split in tables.splits
        if f"splits.{split}.tokens" in counts
    ]
    if tested:
        parts.append(f"of these, tested on {listed(tested)}")
    if code.get("git.commit"):
        changed = ", with uncommitted changes" if str(code.get("git.dirty")).lower() == "true" else ""
        parts.append(f"commit {str(code['git.commit'])[:_SHORT]}{changed}")
    if code.get("mlflow_run"):
        parts.append(f"MLflow run {str(code['mlflow_run'])[:_SHORT]}")
    return "; ".join(parts) + "." if parts else ""


def _speed_tile(tables: Tables, fraction: float) -> list[Tile]:
    """Tokens per second on the device where the predictor gains most, the others in the note."""
    split = hardest_split(tables)
    result = contest(tables, split, fraction) if split else None
    found = races(tables, result) if result is not None else []
    if not found:
        return _cost_tile(tables)
    best = max(found, key=lambda race: race.gain)
    others = "; ".join(_raced(race) for race in found if race is not best)
    note = f"{_against(best)}{f'. {others}' if others else ''}"
    name = f"Tokens per second, {label(best.device)}"
    return [Tile(name, number(1000 / best.ours_ms), note, tables["timing"].path)]


def _against(race: Race) -> str:
    rates = f"{label(race.ours)}, against {number(1000 / race.rival_ms)} with {label(race.rival)}"
    return f"{rates} ({change(race.gain)})"


def _raced(race: Race) -> str:
    return f"{label(race.device)} {number(1000 / race.ours_ms)} ({change(race.gain)})"


def _recall_tile(tables: Tables) -> list[Tile]:
    """Recall of the predictor beside the best baseline, and what an answer costs."""
    split = hardest_split(tables)
    rows = scores(tables, split) if split else []
    ours = [row for row in rows if is_learned(row.predictor)]
    others = [row for row in rows if not is_learned(row.predictor) and not sees_the_future(row.predictor)]
    if not ours or split is None:
        return []
    note = interval(ours[0].low, ours[0].high)
    if others:
        rival = max(others, key=lambda row: row.recall)
        note = f"{note} against {percent(rival.recall)} for {label(rival.predictor).lower()}".strip()
    latency, size = deployed_size(tables)
    cost = "; ".join(part for part in (latency and f"{latency} a token", size) if part and MISSING not in part)
    note += f"; {cost}" if cost else ""
    return [Tile(f"{recall_name(tables)}, {split_label(split)}", percent(ours[0].recall), note, tables["quality"].path)]


def _paper_tile(tables: Tables) -> list[Tile]:
    """Ours beside the published predictions under the paper's own protocol, where the traces carry them."""
    table = tables["published_protocol"]
    if table.frame is None:
        return []
    for split in table.frame["split"].unique(maintain_order=True).to_list():
        for row in beside_published(tables, split).head(1).iter_rows(named=True):
            note = (
                f"{interval(row['low'], row['high'])} against {percent(row['hit_rate_paper'])} "
                f"{interval(row['low_paper'], row['high_paper'])} with the published predictions, "
                f"{number(row['capacity_experts'])} experts; asked ahead of each "
                f"{asked_ahead_of(tables)}"
            )
            return [Tile("Hit rate, the paper's protocol", percent(row["hit_rate"]), note, table.path)]
    return []


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
