"""Where prefetching by a predictor begins and ceases to pay: over the link's bandwidth, and the predictor's latency.

A rival is the fastest policy that needs no predictor, fetches nothing ahead and knows no future, at each bandwidth. Its
time and the predicting policy's are straight lines between the bandwidths that were replayed, over the bandwidth's
logarithm; where they cross, prefetching breaks even.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from moe_beyond.simulator.experiment import SplitReplays
from moe_beyond.simulator.grid import Timed

BREAK_EVEN: dict[str, type[pl.DataType]] = {
    "split": pl.String,
    "device": pl.String,
    "capacity_experts": pl.Int64,
    "policy": pl.String,
    "against": pl.String,
    "bandwidth_gb_per_s": pl.Float64,
    "pays": pl.String,
    "predictor_ms_limit": pl.Float64,
}
"""Columns of break_even.csv: a row a crossing, `pays` says on which side of it (`above`, `below`) the policy is the
faster. Without a crossing one row with no bandwidth, where it pays `always` or `never` within the links that were
tried. `predictor_ms_limit`: at the device's own bandwidth a token step of this length makes both equally fast, to first
order: more latency delays the prefetches too; below 0 no predictor is fast enough."""
BY_BANDWIDTH: dict[str, type[pl.DataType]] = {
    "split": pl.String,
    "device": pl.String,
    "capacity_experts": pl.Int64,
    "policy": pl.String,
    "bandwidth_gb_per_s": pl.Float64,
    "ms_per_token": pl.Float64,
}
"""Columns of time_by_bandwidth.csv."""


def by_bandwidth_table(splits: Sequence[SplitReplays]) -> pl.DataFrame:
    """A row a split, device, policy and bandwidth."""
    rows = [
        {
            "split": split.split,
            "device": timed.device,
            "capacity_experts": timed.capacity_experts,
            "policy": timed.policy,
            "bandwidth_gb_per_s": timed.link_gb_per_s,
            "ms_per_token": timed.ms_per_token,
        }
        for split in splits
        for policy in split.policies
        for timed in policy.by_bandwidth
    ]
    return pl.DataFrame(rows, schema=BY_BANDWIDTH)


def break_even_table(splits: Sequence[SplitReplays]) -> pl.DataFrame:
    """A row a split, device, predicting policy and crossing."""
    rows: list[dict[str, Any]] = []
    for split in splits:
        for device in split.setting.devices:
            rivals = rivals_of(split, device.name)
            for policy in split.policies:
                mine = [timed for timed in policy.by_bandwidth if timed.device == device.name]
                if policy.predicts and mine and rivals:
                    known = {
                        "split": split.split,
                        "device": device.name,
                        "capacity_experts": mine[0].capacity_experts,
                        "policy": policy.policy,
                        "predictor_ms_limit": latency_limit_ms(split, device.name, policy.policy),
                    }
                    rows += [{**known, **crossing} for crossing in crossings(mine, rivals)]
    return pl.DataFrame(rows, schema=BREAK_EVEN)


def rivals_of(split: SplitReplays, device: str) -> list[Timed]:
    """At each bandwidth the fastest policy that a predictor must beat."""
    fastest: dict[float, Timed] = {}
    for policy in split.policies:
        for timed in policy.by_bandwidth if policy.is_rival else ():
            best = fastest.get(timed.link_gb_per_s)
            if timed.device == device and (best is None or timed.ms_per_token < best.ms_per_token):
                fastest[timed.link_gb_per_s] = timed
    return [fastest[bandwidth] for bandwidth in sorted(fastest)]


def crossings(mine: Sequence[Timed], rivals: Sequence[Timed]) -> list[dict[str, Any]]:
    """Where one line crosses the other, bandwidths rising."""
    gain_ms = np.array([rival.ms_per_token - own.ms_per_token for own, rival in zip(mine, rivals, strict=True)])
    found: list[dict[str, Any]] = []
    for i in range(len(gain_ms) - 1):
        low, high = float(gain_ms[i]), float(gain_ms[i + 1])
        if (low > 0) != (high > 0):
            share = low / (low - high)
            logs = np.log([mine[i].link_gb_per_s, mine[i + 1].link_gb_per_s])
            bandwidth = float(np.exp(logs[0] + share * (logs[1] - logs[0])))
            against = rivals[i + round(share)].policy
            pays = "above" if high > 0 else "below"
            found.append({"against": against, "bandwidth_gb_per_s": bandwidth, "pays": pays})
    if found:
        return found
    pays = "always" if gain_ms[0] > 0 else "never"
    return [{"against": rivals[0].policy, "bandwidth_gb_per_s": None, "pays": pays}]


def latency_limit_ms(split: SplitReplays, device: str, policy: str) -> float:
    """The token step's time at which a policy is as fast as its best rival, at the headline capacity."""
    setting = split.setting
    default_ms = setting.settings.predictor_latency_ms
    at = [
        timed
        for timed in split.timed
        if (timed.device, timed.capacity_experts, timed.predictor_ms) == (device, setting.headline_slots, default_ms)
    ]
    own_ms = next(timed.ms_per_token for timed in at if timed.policy == policy)
    return best_without_prediction(split)[device, setting.headline_slots] - own_ms + default_ms


def best_without_prediction(split: SplitReplays) -> dict[tuple[str, int], float]:
    """Milliseconds of a decoded token under the fastest policy that a predictor must beat."""
    best: dict[tuple[str, int], float] = {}
    for policy in split.policies:
        for timed in policy.timed if policy.is_rival else ():
            key = (timed.device, timed.capacity_experts)
            best[key] = min(best.get(key, float("inf")), timed.ms_per_token)
    return best
