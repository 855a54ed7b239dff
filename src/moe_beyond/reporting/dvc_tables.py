"""Wide tables beside the figures: DVC's own line plots draw a line a column, and compare revisions."""

from __future__ import annotations

import polars as pl

from moe_beyond.reporting.headline import by_layer
from moe_beyond.reporting.tables import Tables


def dvc_tables(tables: Tables) -> dict[str, pl.DataFrame]:
    """By file name: hit rate and bytes over capacity, time per token, recall by layer and by horizon."""
    wide: dict[str, pl.DataFrame] = {}
    for split in tables.splits:
        wide |= _over_capacity(tables, split) | _times(tables, split) | _recall(tables, split)
    return wide


def _over_capacity(tables: Tables, split: str) -> dict[str, pl.DataFrame]:
    replay = tables["replay"].frame
    if replay is None:
        return {}
    part = replay.filter(pl.col("split") == split).sort("capacity_fraction")
    return {
        f"{value}_{split}.csv": part.pivot("policy", index="capacity_fraction", values=value, maintain_order=True)
        for value in ("hit_rate", "mib_per_token")
    }


def _times(tables: Tables, split: str) -> dict[str, pl.DataFrame]:
    """Milliseconds per token of every device at the predictor's own latency."""
    found: dict[str, pl.DataFrame] = {}
    times = tables.times
    if times is None:
        return found
    for device in tables.devices:
        part = times.filter((pl.col("split") == split) & (pl.col("device") == device)).sort("capacity_experts")
        if not part.is_empty():
            found[f"ms_per_token_{device}_{split}.csv"] = part.pivot(
                "policy", index="capacity_experts", values="ms_per_token", maintain_order=True
            )
    return found


def _recall(tables: Tables, split: str) -> dict[str, pl.DataFrame]:
    quality = tables["quality"].frame
    if quality is None:
        return {}
    token = by_layer(quality, split)
    found = {
        f"recall_by_layer_{split}.csv": token.pivot(
            "predictor", index="layer", values="recall_at_k", maintain_order=True
        )
    }
    if len(tables.horizons) > 1 and tables.learned_predictor is not None:
        parts = [
            by_layer(quality, split, horizon)
            .filter(pl.col("predictor") == tables.learned_predictor)
            .select("layer", "recall_at_k", horizon=pl.lit(horizon))
            for horizon in tables.horizons
        ]
        found[f"recall_by_horizon_{split}.csv"] = pl.concat(parts).pivot(
            "horizon", index="layer", values="recall_at_k", maintain_order=True
        )
    return found
