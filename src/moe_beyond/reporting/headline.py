"""The few numbers that decide: recall of the predictors, and what a cache of the headline size saves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from moe_beyond.reporting.names import is_bound, is_learned, label, ordered
from moe_beyond.reporting.tables import TOKEN, Tables, find
from moe_beyond.settings import flatten


@dataclass(frozen=True)
class Score:
    """recall@k of one predictor on one split, all phases and layers, with its interval where the table has one."""

    predictor: str
    recall: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class CacheRow:
    """What one policy did on one split at one capacity."""

    policy: str
    capacity_experts: int
    capacity_fraction: float
    hit_rate: float
    low: float | None
    high: float | None
    mib_per_token: float
    prefetches: int
    useful: int
    useless: int
    decode_hit_rate: float | None
    loads_avoided: int | None
    mass_given_up: float | None = None

    @property
    def useful_share(self) -> float | None:
        """Prefetched experts that were then used, of all prefetched; None where nothing was prefetched."""
        return self.useful / self.prefetches if self.prefetches else None


@dataclass(frozen=True)
class Contest:
    """Ours against the others on one split at the headline capacity.

    Attributes:
        ours: The policy that the trained predictor drives, see `Tables.learned_policy`.
        rival: The best by hit rate of the others that can be built and that do all the router wants.
        bound: The replay that knows the future and loads on demand, or None. No policy loads less; one that prefetches
            may hit more.
        demand: The best policy that fetches nothing ahead, or None.
    """

    split: str
    ours: CacheRow
    rival: CacheRow
    bound: CacheRow | None
    demand: CacheRow | None


def scores(tables: Tables, split: str) -> list[Score]:
    """Overall recall of each predictor on `split`, ours first; empty where the table is absent."""
    frame = tables["quality"].frame
    if frame is None:
        return []
    rows = overall(frame, split)
    found = {row["predictor"]: row for row in rows.iter_rows(named=True)}
    return [
        Score(name, found[name]["recall_at_k"], found[name].get("recall_low"), found[name].get("recall_high"))
        for name in ordered(list(found))
    ]


_LAYER = "1"
"""Horizon of a step that is asked one layer ahead."""


def at_horizon(quality: pl.DataFrame, horizon: str = TOKEN) -> pl.DataFrame:
    """Rows of predictors asked at that step; a table without the column knows the token step alone."""
    return quality.filter(pl.col("horizon") == horizon) if "horizon" in quality.columns else quality


def overall(quality: pl.DataFrame, split: str, horizon: str = TOKEN) -> pl.DataFrame:
    """Rows of one split over all phases and layers."""
    rows = at_horizon(quality, horizon)
    return rows.filter((pl.col("split") == split) & (pl.col("phase") == "all") & (pl.col("layer") == "all"))


def by_layer(quality: pl.DataFrame, split: str, horizon: str = TOKEN) -> pl.DataFrame:
    """Rows of one split over all phases, one a layer and predictor, in order of layer."""
    rows = at_horizon(quality, horizon)
    rows = rows.filter((pl.col("split") == split) & (pl.col("phase") == "all") & (pl.col("layer") != "all"))
    return rows.with_columns(pl.col("layer").cast(pl.Int64)).sort("layer", maintain_order=True)


def nearest_capacity(replay: pl.DataFrame, split: str, fraction: float) -> int:
    """The replayed capacity, in experts, closest to `fraction` of the model."""
    rows = replay.filter(pl.col("split") == split).select("capacity_experts", "capacity_fraction").unique()
    rows = rows.sort((pl.col("capacity_fraction") - fraction).abs(), "capacity_experts")
    return int(rows["capacity_experts"][0])


def cache_rows(tables: Tables, split: str, capacity_experts: int) -> list[CacheRow]:
    """What each policy did on `split` at that capacity, ours first and bounds last."""
    frame = tables["replay"].frame
    if frame is None:
        return []
    rows = frame.filter((pl.col("split") == split) & (pl.col("capacity_experts") == capacity_experts))
    found = {row["policy"]: row for row in rows.iter_rows(named=True)}
    return [
        CacheRow(
            policy=name,
            capacity_experts=int(row["capacity_experts"]),
            capacity_fraction=row["capacity_fraction"],
            hit_rate=row["hit_rate"],
            low=row.get("hit_rate_low"),
            high=row.get("hit_rate_high"),
            mib_per_token=row["mib_per_token"],
            prefetches=int(row["prefetches"]),
            useful=int(row["prefetches_useful"]),
            useless=int(row["prefetches_useless"]),
            decode_hit_rate=row.get("decode_hit_rate"),
            loads_avoided=row.get("loads_avoided"),
            mass_given_up=row.get("mass_given_up"),
        )
        for name in ordered(list(found))
        for row in (found[name],)
    ]


def contest(tables: Tables, split: str, fraction: float) -> Contest | None:
    """Ours against the rest on `split`; None where there is no learned policy or nothing to compare it with."""
    frame = tables["replay"].frame
    if frame is None or split not in frame["split"].unique():
        return None
    rows = cache_rows(tables, split, nearest_capacity(frame, split, fraction))
    ours = [row for row in rows if row.policy == tables.learned_policy]
    honest = [row for row in rows if tables.can_win(row.policy)]
    rivals = [row for row in honest if not is_learned(row.policy)]
    if not ours or not rivals:
        return None
    bounds = [row for row in rows if is_bound(row.policy)]
    demand = [row for row in rivals if row.prefetches == 0]

    def hits(row: CacheRow) -> float:
        return row.hit_rate

    best_bound, best_demand = max(bounds, key=hits, default=None), max(demand, key=hits, default=None)
    return Contest(split, ours[0], max(rivals, key=hits), best_bound, best_demand)


def beside_published(tables: Tables, split: str) -> pl.DataFrame:
    """Ours beside the published predictions under the paper's protocol, a row a capacity of one split.

    The protocol lets a prediction come ahead of each layer, so ours is asked there where it can answer.

    Returns:
        Columns of published_protocol.csv for ours, with the ending `_paper` for theirs; no rows where one is missing.
    """
    rows = tables["published_protocol"].rows.filter(pl.col("split") == split)
    learned = [name for name in rows["predictor"].unique().to_list() if is_learned(name)]
    ours = at_horizon(rows, _LAYER if asked_ahead_of(tables) == "layer" else TOKEN).filter(
        pl.col("predictor").is_in(learned)
    )
    theirs = at_horizon(rows).filter(pl.col("predictor") == "published_predictions")
    return ours.join(theirs, on="capacity_experts", suffix="_paper").sort("capacity_experts")


def ahead_of_published(row: dict[str, Any]) -> Literal[-1, 0, 1]:
    """1 where ours hits more than the published predictions in a row of `beside_published`, -1 where less, else 0.

    Decided by the difference paired by prompt, where the table has it; else by intervals that do not overlap.
    """
    low, high = row.get("gain_low"), row.get("gain_high")
    if low is None or high is None:
        low, high = row["low"] - row["high_paper"], row["high"] - row["low_paper"]
    return 1 if low > 0 else -1 if high < 0 else 0


def asked_ahead_of(tables: Tables) -> Literal["layer", "token"]:
    """Ahead of what ours answered the paper's protocol: of each layer where it can, else of each token."""
    rows = tables["published_protocol"].rows
    return "layer" if "horizon" in rows.columns and _LAYER in rows["horizon"].to_list() else "token"


def hardest_split(tables: Tables) -> str | None:
    """The split that the first sentence speaks of: another domain where there is one."""
    return tables.splits[-1] if tables.splits else None


def top_k(tables: Tables) -> int | None:
    """The router's k, where a stage's metrics name it."""
    merged = {f"{stage}.{key}": value for stage, metrics in tables.metrics.items() for key, value in metrics.items()}
    value = find(merged | flatten(tables.card), "top_k")
    return None if value is None else int(value)


def recall_name(tables: Tables) -> str:
    """`recall@6`, or `recall@k` where no table says what k is."""
    k = top_k(tables)
    return f"recall@{k}" if k else "recall@k"


def split_label(split: str) -> str:
    """A split in the middle of a sentence."""
    known = {
        "test_in_domain": "held-out prompts of the same domain",
        "test_out_of_domain": "another domain",
    }
    return known.get(split, label(split).lower())
