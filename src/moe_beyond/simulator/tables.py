"""Replays as rows for reports: `replay.csv`, `comparisons.csv` and the headline of `metrics.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from moe_beyond.simulator.bounds import Belady
from moe_beyond.simulator.experiment import SplitReplays, capacity_experts
from moe_beyond.simulator.intervals import Resamples
from moe_beyond.simulator.results import Replay
from moe_beyond.simulator.settings import SimulateSettings

BOUND = Belady.name
# a table without rows still has its columns: no device may be asked for
_TIMING: dict[str, type[pl.DataType]] = {
    "split": pl.String,
    "device": pl.String,
    "policy": pl.String,
    "capacity_experts": pl.Int64,
    "capacity_fraction": pl.Float64,
    "ms_per_token": pl.Float64,
    "tokens_per_second": pl.Float64,
    "stall_ms_per_token": pl.Float64,
    "prefetches": pl.Int64,
    "prefetches_late": pl.Int64,
    "prefetches_useless": pl.Int64,
    "total_ms": pl.Float64,
    "bound_ms": pl.Float64,
    "fraction_of_bound": pl.Float64,
    "break_even_latency_ms": pl.Float64,
}


def replay_table(splits: Sequence[SplitReplays], settings: SimulateSettings, seed: int) -> pl.DataFrame:
    """A row a split, policy and capacity: counts, ratios, and the hit rate's 95 % interval over prompts."""
    rows: list[dict[str, Any]] = []
    for split in splits:
        resamples = _resamples(split, settings, seed)
        for replay in split.replays:
            total, decode, interval = replay.total, replay.decode, resamples.hit_rate(replay)
            rows.append(
                {
                    "split": split.split,
                    "policy": replay.policy,
                    "capacity_experts": replay.capacity_experts,
                    "capacity_fraction": replay.capacity_experts / split.metadata.num_model_experts,
                    "accesses": total.accesses,
                    "hits": total.hits,
                    "misses": total.misses,
                    "hit_rate": total.hit_rate,
                    "hit_rate_low": interval.low,
                    "hit_rate_high": interval.high,
                    "bytes_moved": total.bytes_moved,
                    "mib_per_token": total.mib_per_token,
                    "tokens": total.tokens,
                    "prefetches": total.prefetches,
                    "prefetches_useful": total.prefetches_useful,
                    "prefetches_useless": total.prefetches_useless,
                    "loads_avoided": total.loads_avoided,
                    "decode_accesses": decode.accesses,
                    "decode_hits": decode.hits,
                    "decode_hit_rate": decode.hit_rate,
                    "decode_mib_per_token": decode.mib_per_token,
                }
            )
    return pl.DataFrame(rows)


def timing_table(splits: Sequence[SplitReplays], settings: SimulateSettings) -> pl.DataFrame:
    """A row a split, device, policy and capacity: milliseconds of a decoded token, and the whole against its bound.

    `break_even_latency_ms` stands with policies that predict: a predictor that took this long would make the policy as
    slow as the best one that predicts nothing; below zero no predictor is fast enough.
    """
    rows: list[dict[str, Any]] = []
    for split in splits:
        rivals_ms = _best_without_prediction(split)
        for timed in split.timed:
            capacity, total = timed.replay.capacity_experts, timed.replay.total
            bound = split.bounds_ms[timed.device, capacity]
            rows.append(
                {
                    "split": split.split,
                    "device": timed.device,
                    "policy": timed.replay.policy,
                    "capacity_experts": capacity,
                    "capacity_fraction": capacity / split.metadata.num_model_experts,
                    "ms_per_token": timed.ms_per_token,
                    "tokens_per_second": timed.tokens_per_second,
                    "stall_ms_per_token": timed.stall_ms_per_token,
                    "prefetches": total.prefetches,
                    "prefetches_late": timed.late_prefetches,
                    "prefetches_useless": total.prefetches_useless,
                    "total_ms": timed.total_ms,
                    "bound_ms": bound,
                    "fraction_of_bound": bound / timed.total_ms,
                    "break_even_latency_ms": (
                        rivals_ms[timed.device, capacity] - timed.ms_per_token + settings.predictor_latency_ms
                        if split.policies[timed.replay.policy].predicts
                        else None
                    ),
                }
            )
    return pl.DataFrame(rows, schema=_TIMING)


def _best_without_prediction(split: SplitReplays) -> dict[tuple[str, int], float]:
    """Milliseconds of a decoded token under the fastest policy that can be built without a predictor."""
    best: dict[tuple[str, int], float] = {}
    for timed in split.timed:
        policy = split.policies[timed.replay.policy]
        if not (policy.predicts or policy.knows_future):
            key = (timed.device, timed.replay.capacity_experts)
            best[key] = min(best.get(key, float("inf")), timed.ms_per_token)
    return best


def comparison_table(splits: Sequence[SplitReplays], settings: SimulateSettings, seed: int) -> pl.DataFrame:
    """A row a split, capacity and pair of policies: by how much a's hit rate exceeds b's, paired by prompt."""
    rows: list[dict[str, Any]] = []
    for split in splits:
        resamples = _resamples(split, settings, seed)
        for capacity in dict.fromkeys(replay.capacity_experts for replay in split.replays):
            replays = list(split.at(capacity).values())
            for i, a in enumerate(replays):
                for b in replays[:i]:
                    difference = resamples.difference(a, b)
                    rows.append(
                        {
                            "split": split.split,
                            "capacity_experts": capacity,
                            "a": a.policy,
                            "b": b.policy,
                            "difference": difference.value,
                            "low": difference.low,
                            "high": difference.high,
                        }
                    )
    return pl.DataFrame(rows)


def headline(splits: Sequence[SplitReplays], settings: SimulateSettings) -> dict[str, Any]:
    """Nested numbers at the headline capacity: split, policy, then the number's name."""
    metrics: dict[str, Any] = {"headline_capacity": settings.headline_capacity}
    for split in splits:
        capacity = capacity_experts(split.metadata, settings.headline_capacity)
        replays = split.at(capacity)
        metrics[split.split] = {"capacity_experts": capacity, "token_cycle_experts": split.metadata.token_cycle}
        metrics[split.split] |= {name: _headline(replay, replays[BOUND]) for name, replay in replays.items()}
    return metrics


def _headline(replay: Replay, bound: Replay) -> dict[str, float]:
    total = replay.total
    return {
        "hit_rate": total.hit_rate,
        "decode_hit_rate": replay.decode.hit_rate,
        "mib_per_token": total.mib_per_token,
        # of the loads that perfect foresight avoids, the share that this policy avoids: prefetched loads count as loads
        "fraction_of_belady": total.loads_avoided / bound.total.loads_avoided if bound.total.hits else 0.0,
    }


def _resamples(split: SplitReplays, settings: SimulateSettings, seed: int) -> Resamples:
    return Resamples.draw(len(split.replays[0].tokens_PF), settings.bootstrap_samples, seed)
