"""Replays as tables of the simulate stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.intervals import Interval, Resamples, interval_columns
from moe_beyond.simulator.engine.timing import TimedReplay
from moe_beyond.simulator.jit import F64
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.study.grid import Facts
from moe_beyond.simulator.study.pays import by_bandwidth_table, pays_tables
from moe_beyond.simulator.study.study import SplitReplays
from moe_beyond.simulator.study.timeline import COSTLIEST, TIMELINE, record

FACTS: dict[str, type[pl.DataType]] = {
    field.name: pl.Boolean if field.type == "bool" else pl.String for field in fields(Facts)
}
_INTERVALS = ("ms_per_token", "hit_rate", "mib_per_token", "against_lru_ms", "against_best_ms", "gap_closed")


def _floats(*names: str) -> dict[str, type[pl.DataType]]:
    """Columns of numbers, of some with their intervals."""
    spread = [interval_columns(name) if name in _INTERVALS else (name,) for name in names]
    return dict.fromkeys([column for columns in spread for column in columns], pl.Float64)


ON_DEVICE: dict[str, type[pl.DataType]] = {
    "split": pl.String,
    "device": pl.String,
    **FACTS,
    "capacity_experts": pl.Int64,
    "capacity_fraction": pl.Float64,
    **dict.fromkeys(("ours", "best_without_predictor"), pl.Boolean),
    **_floats("token_step_ms", "layer_step_ms", "ms_per_token", "tokens_per_second", "stall_ms_per_token", "hit_rate"),
    **_floats("mib_per_token", "against_lru_ms", "against_best_ms", "gap_closed", "link_idle_share", "late_share"),
    **_floats("useless_share", "bound_ms_per_token", "bound_hit_rate", "bound_mib_per_token"),
}
_COUNTED = (
    *("hits", "misses", "accesses", "tokens", "bytes_moved", "mib_per_token"),
    *("prefetches", "prefetches_useful", "prefetches_useless", "mass_given_up"),
)


def all_tables(splits: Sequence[SplitReplays], seed: int) -> dict[str, pl.DataFrame]:
    """Every table of the stage by name."""
    timeline, costliest = timeline_tables(splits)
    pays, by_width = pays_tables(splits, seed)
    return {
        "on_device": on_device_table(splits, seed),
        "unlimited_link": unlimited_link_table(splits, seed),
        "pays": pays,
        "by_bandwidth": by_bandwidth_table(splits),
        "by_width": by_width,
        "ablation": ablation_table(splits, seed),
        "timeline": timeline,
        "costliest_misses": costliest,
        "not_replayed": not_replayed_table(splits),
    }


def on_device_table(splits: Sequence[SplitReplays], seed: int) -> pl.DataFrame:
    """A row a split, device, policy and timed capacity: what decoded tokens took, with 95 % intervals by prompt.

    `ours` marks how the predictor is used there, chosen on validation prompts; `best_without_predictor` the fastest
    policy that it does not drive, chosen with hindsight on the prompts of the row. `against_*` are milliseconds a token
    more than LRU and than that policy take on the same prompts, below zero: faster. `gap_closed` is the share of the
    way from LRU to the clairvoyant bound. `token_step_ms` and `layer_step_ms` are charged there for the policy's
    predictor. A lossy policy may go below the bound: it computes less.
    """
    rows: list[dict[str, Any]] = []
    for split in splits:
        draws, facts = split.draws(seed), split.facts
        for place in split.places:
            timed = split.timed_at(place)
            if not timed:
                continue
            lru, best = timed[Lru.name], split.best_without_predictor(place)
            for policy, one in timed.items():
                row = _device_row(split, one, facts[policy], draws)
                row |= draws.difference(one.time, lru.time).columns("against_lru_ms")
                is_ours = bool(split.predictions) and facts[policy].predictor == split.predictions[0].name
                if best is not None and is_ours:
                    row |= draws.difference(one.time, best.time).columns("against_best_ms")
                if lru.ms_per_token > split.bounds[place].ms_per_token:
                    row |= gap_closed(one, lru, split.bounds[place].ms_per_token, draws).columns("gap_closed")
                row["ours"] = split.chosen.get(place) == policy
                row["best_without_predictor"] = best is not None and policy == best.replay.policy
                rows.append(row)
    return pl.DataFrame(rows, schema=ON_DEVICE)


def unlimited_link_table(splits: Sequence[SplitReplays], seed: int) -> pl.DataFrame:
    """A row a split, policy and capacity: hit rates where every prefetch arrives in time, an upper bound, and bytes."""
    rows: list[dict[str, Any]] = []
    for split in splits:
        draws = split.draws(seed)
        rows += [
            {
                "split": split.split,
                **asdict(policy.facts),
                "capacity_experts": replay.capacity_experts,
                "capacity_fraction": replay.capacity_experts / split.metadata.num_model_experts,
                **draws.ratio(replay.hit_ratio).columns("hit_rate"),
                "decode_hit_rate": replay.decode.hit_rate if replay.decode.accesses else None,
                **{name: getattr(replay.total, name) for name in _COUNTED},
            }
            for policy in split.policies
            for replay in policy.replays
        ]
    # a column of nulls alone has no type of its own
    types: dict[str, type[pl.DataType]] = dict.fromkeys(("predictor", "evicted_by", "gate"), pl.String)
    types |= dict.fromkeys((*interval_columns("hit_rate"), "decode_hit_rate"), pl.Float64)
    return pl.DataFrame(rows, infer_schema_length=None, schema_overrides=types)


def ablation_table(splits: Sequence[SplitReplays], seed: int) -> pl.DataFrame:
    """A row a split, device and step: ours put together piece by piece, at the headline capacity."""
    rows: list[dict[str, Any]] = []
    for split in splits:
        draws = split.draws(seed)
        for step, ablated in enumerate(split.ablation):
            rows += [
                {"step": step, "added": ablated.added} | _device_row(split, one, ablated.replays.facts, draws)
                for one in (ablated.replays.timed if split.bounds else ())
            ]
    columns = [name for name in ON_DEVICE if not name.startswith(("against", "gap", "ours", "best"))]
    schema: dict[str, type[pl.DataType]] = {"step": pl.Int64, "added": pl.String}
    schema |= {name: ON_DEVICE[name] for name in columns}
    return pl.DataFrame(rows, schema=schema)


def not_replayed_table(splits: Sequence[SplitReplays]) -> pl.DataFrame:
    """A row a split and policy that the traces do not allow, with the reason."""
    rows = [
        (split.split, policy.facts.title, policy.not_replayed)
        for split in splits
        for policy in split.policies
        if policy.not_replayed
    ]
    return pl.DataFrame(rows, dict.fromkeys(("split", "title", "reason"), pl.String), orient="row")


def timeline_tables(splits: Sequence[SplitReplays]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The prompt of median stall event by event, and the costliest misses of its split, which is the last.

    Under ours as it is used there (the prompt under LRU too), at the headline capacity, on the headline device. Empty
    without a predictor or a device, and where prompts run at once.
    """
    split = splits[-1]
    case, settings = split.case, split.case.settings
    if not (split.predictions and case.devices and split.chosen) or case.events.schedule is not None:
        return pl.DataFrame(schema=TIMELINE), pl.DataFrame(schema=COSTLIEST)
    ours = split.predictions[0]
    device = next(one for one in case.devices if one.name == headline_device(split))
    used = split.chosen[device.name, case.headline_slots]
    policy = next(policy for policy in split.policies_of_ours() if policy.name == used)
    recordings = [
        record(split.split, split.trace, one, case, device, probabilities_TLE=ours.token_TLE) for one in (policy, Lru())
    ]
    prompt = recordings[0].median_prompt()
    timeline = pl.concat([recording.timeline(prompt, settings.timeline_steps) for recording in recordings])
    return timeline, recordings[0].costliest(settings.costliest_misses)


def gap_closed(one: TimedReplay, lru: TimedReplay, bound_ms: float, draws: Resamples) -> Interval:
    """The share of the way from LRU to the clairvoyant bound that a policy goes.

    The bound is taken as it is: it comes from all prompts at once. Resamples in which LRU reaches it do not count.
    """

    def share(own_ms: npt.ArrayLike, lru_ms: npt.ArrayLike) -> F64:
        gap_ms = np.asarray(lru_ms) - bound_ms
        return np.divide(lru_ms - np.asarray(own_ms), gap_ms, out=np.full_like(gap_ms, np.nan), where=gap_ms > 0)

    return draws.of(share, one.time, lru.time)


def headline_device(split: SplitReplays) -> str:
    """The name of the device of the headline, which the settings may give as the path of a file."""
    settings = split.case.settings
    place = 0 if settings.headline_device is None else settings.devices.index(settings.headline_device)
    return split.case.devices[place].name


def _device_row(split: SplitReplays, one: TimedReplay, facts: Facts, draws: Resamples) -> dict[str, Any]:
    total, bound = one.replay.total, split.bounds[one.device.name, one.replay.capacity_experts]
    return {
        "split": split.split,
        "device": one.device.name,
        **asdict(facts),
        "capacity_experts": one.replay.capacity_experts,
        "capacity_fraction": one.replay.capacity_experts / split.metadata.num_model_experts,
        "token_step_ms": one.token_step_ms,
        "layer_step_ms": one.layer_step_ms,
        **draws.ratio(one.time).columns("ms_per_token"),
        "tokens_per_second": one.tokens_per_second,
        "stall_ms_per_token": one.stall.value,
        **draws.ratio(one.hits).columns("hit_rate"),
        **draws.ratio(one.moved).columns("mib_per_token"),
        "link_idle_share": one.link_idle_share,
        "late_share": one.late_prefetches / total.prefetches if total.prefetches else None,
        "useless_share": total.prefetches_useless / total.prefetches if total.prefetches else None,
        "bound_ms_per_token": bound.ms_per_token,
        "bound_hit_rate": bound.hit_rate,
        "bound_mib_per_token": bound.mib_per_token,
    }
