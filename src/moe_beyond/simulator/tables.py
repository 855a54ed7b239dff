"""Replays as rows for reports: what stands in `reports/simulate`, and the headline of its `metrics.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.simulator.bounds import Belady
from moe_beyond.simulator.break_even import best_without_prediction, break_even_table, by_bandwidth_table
from moe_beyond.simulator.experiment import SplitReplays
from moe_beyond.simulator.intervals import Ratio, Resamples
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.results import Replay
from moe_beyond.simulator.settings import SimulateSettings
from moe_beyond.simulator.timeline import COSTLIEST, TIMELINE, record

BOUND = Belady.name
# a table without rows still has its columns: no device may be asked for
_TIMING: dict[str, type[pl.DataType]] = {
    "split": pl.String,
    "device": pl.String,
    "policy": pl.String,
    "capacity_experts": pl.Int64,
    "capacity_fraction": pl.Float64,
    "predictor_ms": pl.Float64,
    "ms_per_token": pl.Float64,
    "ms_per_token_low": pl.Float64,
    "ms_per_token_high": pl.Float64,
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

_COMPARISONS: dict[str, type[pl.DataType]] = {
    "split": pl.String,
    "capacity_experts": pl.Int64,
    "a": pl.String,
    "b": pl.String,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "ms_device": pl.String,
    "ms_difference": pl.Float64,
    "ms_low": pl.Float64,
    "ms_high": pl.Float64,
}
_ABLATION: dict[str, type[pl.DataType]] = {
    "split": pl.String,
    "device": pl.String,
    "capacity_experts": pl.Int64,
    "step": pl.Int64,
    "added": pl.String,
    "policy": pl.String,
    "hit_rate": pl.Float64,
    "hit_rate_low": pl.Float64,
    "hit_rate_high": pl.Float64,
    "mib_per_token": pl.Float64,
    "ms_per_token": pl.Float64,
    "ms_per_token_low": pl.Float64,
    "ms_per_token_high": pl.Float64,
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
                    "mass_given_up": total.mass_given_up,
                    "mass_skipped": total.weight_skipped / total.tokens,
                    "mass_substituted": total.weight_substituted / total.tokens,
                    "mass_low_precision": total.weight_low_precision / total.tokens,
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


def timing_table(splits: Sequence[SplitReplays], settings: SimulateSettings, seed: int) -> pl.DataFrame:
    """A row a split, device, policy, capacity and predictor latency.

    Milliseconds of a decoded token, with their interval over prompts, and the whole against its bound; a lossy policy
    may beat the bound: it computes less.

    `break_even_latency_ms` stands with policies that predict: a token step that took this long would make the policy as
    slow as the best lossless one that loads on demand and predicts nothing; below zero no predictor is fast enough.
    """
    rows: list[dict[str, Any]] = []
    for split in splits:
        rivals_ms, resamples = best_without_prediction(split), _resamples(split, settings, seed)
        for policy in split.policies:
            for timed in policy.timed:
                key = (timed.device, timed.capacity_experts)
                limit_ms = rivals_ms[key] - timed.ms_per_token + timed.predictor_ms if policy.predicts else None
                interval = resamples.ratio(timed.decode_ms_P, _decoded_P(split))
                rows.append(
                    {
                        "split": split.split,
                        "device": timed.device,
                        "policy": timed.policy,
                        "capacity_experts": timed.capacity_experts,
                        "capacity_fraction": timed.capacity_experts / split.metadata.num_model_experts,
                        "predictor_ms": timed.predictor_ms,
                        "ms_per_token": timed.ms_per_token,
                        "ms_per_token_low": interval.low,
                        "ms_per_token_high": interval.high,
                        "tokens_per_second": timed.tokens_per_second,
                        "stall_ms_per_token": timed.stall_ms_per_token,
                        "prefetches": timed.prefetches,
                        "prefetches_late": timed.prefetches_late,
                        "prefetches_useless": timed.prefetches_useless,
                        "total_ms": timed.total_ms,
                        "bound_ms": split.bounds_ms[key],
                        "fraction_of_bound": split.bounds_ms[key] / timed.total_ms,
                        "break_even_latency_ms": limit_ms,
                    }
                )
    return pl.DataFrame(rows, schema=_TIMING)


def comparison_table(splits: Sequence[SplitReplays], settings: SimulateSettings, seed: int) -> pl.DataFrame:
    """A row a split, capacity and pair of policies: by how much a's hit rate exceeds b's, paired by prompt.

    Where the capacity is timed, beside it by how many milliseconds a token of a is slower (below zero: faster) than one
    of b on `ms_device`, the first one asked for, at the default predictor latency.
    """
    rows: list[dict[str, Any]] = []
    for split in splits:
        resamples = _resamples(split, settings, seed)
        for capacity in split.setting.slots:
            replays = list(split.at(capacity).values())
            rates = [Ratio(replay.hits_P, replay.accesses_P) for replay in replays]
            times = [_first_device(split, replay.policy, capacity) for replay in replays]
            rates_B = [resamples.ratios_B(rate) for rate in rates]
            times_B = [None if time is None else resamples.ratios_B(time) for time in times]
            for i, a in enumerate(replays):
                for j, b in enumerate(replays[:i]):
                    difference = resamples.between(rates[i].value - rates[j].value, rates_B[i], rates_B[j])
                    row: dict[str, Any] = {
                        "split": split.split,
                        "capacity_experts": capacity,
                        "a": a.policy,
                        "b": b.policy,
                        "difference": difference.value,
                        "low": difference.low,
                        "high": difference.high,
                    }
                    time_a, time_b, a_B, b_B = times[i], times[j], times_B[i], times_B[j]
                    if time_a is not None and time_b is not None and a_B is not None and b_B is not None:
                        slower = resamples.between(time_a.value - time_b.value, a_B, b_B)
                        row |= {"ms_difference": slower.value, "ms_low": slower.low, "ms_high": slower.high}
                        row["ms_device"] = split.setting.devices[0].name
                    rows.append(row)
    return pl.DataFrame(rows, schema=_COMPARISONS)


def ablation_table(splits: Sequence[SplitReplays], settings: SimulateSettings, seed: int) -> pl.DataFrame:
    """A row a split, device and step: ours put together piece by piece, at the headline capacity.

    Hit rates and bytes are those of a replay without a clock, times those of the device; both with their intervals.
    """
    rows: list[dict[str, Any]] = []
    for split in splits:
        resamples = _resamples(split, settings, seed)
        for step, ablated in enumerate(split.ablation):
            for replay in ablated.replays.replays:
                rate = resamples.hit_rate(replay)
                counted = {
                    "split": split.split,
                    "capacity_experts": replay.capacity_experts,
                    "step": step,
                    "added": ablated.added,
                    "policy": replay.policy,
                    "hit_rate": rate.value,
                    "hit_rate_low": rate.low,
                    "hit_rate_high": rate.high,
                    "mib_per_token": replay.total.mib_per_token,
                }
                for timed in ablated.replays.timed:
                    slow = resamples.ratio(timed.decode_ms_P, _decoded_P(split))
                    rows.append(
                        {
                            **counted,
                            "device": timed.device,
                            "ms_per_token": timed.ms_per_token,
                            "ms_per_token_low": slow.low,
                            "ms_per_token_high": slow.high,
                        }
                    )
                rows += [] if ablated.replays.timed else [counted]
    return pl.DataFrame(rows, schema=_ABLATION)


def left_out_table(splits: Sequence[SplitReplays]) -> pl.DataFrame:
    """A row a split and policy that the traces do not allow, with the reason."""
    rows = [
        {"split": split.split, "policy": policy.policy, "reason": policy.left_out}
        for split in splits
        for policy in split.policies
        if policy.left_out
    ]
    return pl.DataFrame(rows, schema={"split": pl.String, "policy": pl.String, "reason": pl.String})


def all_tables(splits: Sequence[SplitReplays], settings: SimulateSettings, seed: int) -> dict[str, pl.DataFrame]:
    """Every table of the stage by the name of its file."""
    timeline, costliest = timeline_tables(splits, settings)
    return {
        "replay.csv": replay_table(splits, settings, seed),
        "timing.csv": timing_table(splits, settings, seed),
        "comparisons.csv": comparison_table(splits, settings, seed),
        "ablation.csv": ablation_table(splits, settings, seed),
        "break_even.csv": break_even_table(splits),
        "time_by_bandwidth.csv": by_bandwidth_table(splits),
        "timeline.csv": timeline,
        "costliest_misses.csv": costliest,
        "left_out.csv": left_out_table(splits),
    }


def timeline_tables(splits: Sequence[SplitReplays], settings: SimulateSettings) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The prompt of median stall event by event, and the costliest misses of its split, which is the last.

    Under the first predictor's first policy (the prompt under LRU too), at the headline capacity, on the first device.
    Empty without a predictor or a device, and where prompts run at once.
    """
    split = splits[-1]
    setting = split.setting
    if not (split.answers and setting.devices) or setting.events.schedule is not None:
        return pl.DataFrame(schema=TIMELINE), pl.DataFrame(schema=COSTLIEST)
    answers = split.answers[0]
    ours = answers.policies(settings.prefetch_threshold)[0]
    recordings = [
        record(split.split, split.trace, policy, setting, probabilities_TLE=answers.probabilities_TLE)
        for policy in (ours, Lru())
    ]
    prompt = recordings[0].median_prompt()
    timeline = pl.concat([recording.timeline(prompt, settings.timeline_steps) for recording in recordings])
    return timeline, recordings[0].costliest(settings.costliest_misses)


def headline(splits: Sequence[SplitReplays], settings: SimulateSettings) -> dict[str, Any]:
    """Nested numbers at the headline capacity: split, policy, then the number's name."""
    metrics: dict[str, Any] = {"headline_capacity": settings.headline_capacity}
    for split in splits:
        capacity = split.setting.headline_slots
        replays = split.at(capacity)
        metrics[split.split] = {"capacity_experts": capacity, "token_cycle_experts": split.metadata.token_cycle}
        metrics[split.split] |= {name: _headline(replay, replays[BOUND]) for name, replay in replays.items()}
    return metrics


def _headline(replay: Replay, bound: Replay) -> dict[str, float]:
    total = replay.total
    return {
        "hit_rate": total.hit_rate,
        "mass_given_up": total.mass_given_up,
        "decode_hit_rate": replay.decode.hit_rate,
        "mib_per_token": total.mib_per_token,
        # of the loads that perfect foresight avoids, the share that this policy avoids: prefetched loads count as loads
        "fraction_of_belady": total.loads_avoided / bound.total.loads_avoided if bound.total.hits else 0.0,
    }


def _decoded_P(split: SplitReplays) -> npt.NDArray[np.int64]:
    return np.asarray(split.setting.events.prompt_tokens_PF[:, 1])


def _first_device(split: SplitReplays, policy: str, capacity: int) -> Ratio | None:
    """Milliseconds over decoded tokens on the first device at the default latency; None where that is not timed."""
    setting = split.setting
    if not setting.devices or capacity not in setting.timed_slots:
        return None
    wanted = (policy, setting.devices[0].name, capacity, setting.settings.predictor_latency_ms)
    timed = next(t for t in split.timed if (t.policy, t.device, t.capacity_experts, t.predictor_ms) == wanted)
    return Ratio(timed.decode_ms_P, _decoded_P(split))


def _resamples(split: SplitReplays, settings: SimulateSettings, seed: int) -> Resamples:
    return Resamples.draw(len(split.replays[0].tokens_PF), settings.bootstrap_samples, seed)
