"""Does prefetching by the predictor pay here? From counts that replays have: idle link time, misses predicted, bytes.

What prefetching can gain depends on how long the link idles, not on recall alone: a link that demand loads keep busy
has no time for prefetches (docs/policies.md, "What careful people found").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from moe_beyond.devices.device import Device
from moe_beyond.intervals import Ratio, Resamples, interval_columns
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.policy_inputs import Prepared, prepare
from moe_beyond.simulator.engine.results import MIB
from moe_beyond.simulator.engine.timed_loop import Times, run
from moe_beyond.simulator.engine.timing import TimedReplay, timed_sweep
from moe_beyond.simulator.engine.usage import MISSED
from moe_beyond.simulator.jit import Bools
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.policies.predictions import scaled_width
from moe_beyond.simulator.policies.prefetch import Prefetch
from moe_beyond.simulator.study.study import Place, SplitReplays

PLACE = {"split": pl.String, "device": pl.String, "capacity_experts": pl.Int64}
_NAMED = dict.fromkeys(("policy", "title"), pl.String)
PAYS = {
    **PLACE,
    "answer": pl.String,
    **_NAMED,
    **dict.fromkeys(("against", "against_title"), pl.String),
    **dict.fromkeys(("ms_per_token", "against_ms_per_token", *interval_columns("difference_ms")), pl.Float64),
    **dict.fromkeys(("link_idle_share_on_demand", "link_idle_share", "prefetches_in_time"), pl.Float64),
    **dict.fromkeys(("recall_on_lru_misses", "bytes_read_per_byte_saved", "pays_from_gb_per_s"), pl.Float64),
    "break_even_width": pl.Int64,
    **dict.fromkeys(("break_even_token_step_ms", "token_step_ms", "layer_step_ms"), pl.Float64),
}
BY_BANDWIDTH = {**PLACE, **_NAMED, **dict.fromkeys(("bandwidth_gb_per_s", "ms_per_token"), pl.Float64)}
BY_WIDTH = {
    **PLACE,
    **_NAMED,
    "width": pl.Int64,
    **dict.fromkeys(("ms_per_token", "mib_per_token", "hit_rate"), pl.Float64),
}
_FASTER_LINKS = (2.0, 4.0, 16.0)
_ROUNDS, _FACTORS = 3, 6


def pays_tables(splits: Sequence[SplitReplays], seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Does prefetching pay, a row a split, device and timed capacity; and how wide it should be.

    The first predictor's fastest way of prefetching there on validation prompts, against the fastest policy that
    prefetches nothing, eviction by the same predictor among them, which is chosen with hindsight on the prompts of the
    row. So the verdict is about prefetching, not about what the predictor is worth for eviction. `answer`: `yes` where
    the paired 95 % interval of `difference_ms` lies below zero; else `only with more bandwidth` where it does so with a
    link of 2, 4 or 16 times the device's (`pays_from_gb_per_s` is the first of them); else `no`.

    - `link_idle_share_on_demand`: share of the decoding time in which the link carries nothing under LRU;
      `link_idle_share`: under the prefetching policy.
    - `prefetches_in_time`: share of the prefetches that were used and not waited for.
    - `recall_on_lru_misses`: share of the decoded accesses that LRU misses which were among the prefetch requests.
    - `bytes_read_per_byte_saved`: bytes prefetched over the bytes by which demand loads fell below LRU's; null where
      they did not fall.
    - `break_even_width`: at the headline capacity, the greatest of the tried widths at which it is still the faster;
      0: none. `break_even_token_step_ms`: the time of a token step, the layer step slowed down alike, at which it is
      as fast as the fastest policy that prefetches nothing and needs no predictor; null where it loses as it is.

    Returns:
        Columns PAYS; and BY_WIDTH, a row a split, device and width at the headline capacity.
    """
    rows, widths = [], []
    for split in splits:
        replays, draws = _Replays(split), split.draws(seed)
        for place in split.places:
            contest = _contest(replays, place)
            if contest is None:
                continue
            row = _row(contest, draws)
            if place[1] == split.case.headline_slots:
                found = _by_width(contest)
                keys = {name: row[name] for name in ("split", "device", "capacity_experts", "policy", "title")}
                widths += [
                    {
                        **keys,
                        "width": width,
                        "ms_per_token": timed.ms_per_token,
                        "mib_per_token": timed.moved.value,
                        "hit_rate": timed.hits.value,
                    }
                    for width, timed in found.items()
                ]
                faster = [width for width, timed in found.items() if timed.ms_per_token < contest.rival.ms_per_token]
                row["break_even_width"] = max(faster, default=0)
                row["break_even_token_step_ms"] = _break_even_token_step_ms(contest)
            rows.append(row)
    return pl.DataFrame(rows, schema=PAYS), pl.DataFrame(widths, schema=BY_WIDTH)


def by_bandwidth_table(splits: Sequence[SplitReplays]) -> pl.DataFrame:
    """A row a split, device, policy and bandwidth at the headline capacity."""
    rows = [
        {
            "split": split.split,
            "device": one.device.name,
            "capacity_experts": one.replay.capacity_experts,
            "policy": policy.facts.policy,
            "title": policy.facts.title,
            "bandwidth_gb_per_s": one.device.link_gb_per_s,
            "ms_per_token": one.ms_per_token,
        }
        for split in splits
        if split.decoded_P.any()
        for policy in split.policies
        for one in policy.by_link
    ]
    return pl.DataFrame(rows, schema=BY_BANDWIDTH)


class _Replays:
    """Replays of the first predictor's ways of prefetching on a split; what does not depend on a device, once."""

    def __init__(self, split: SplitReplays) -> None:
        self.split = split
        self.policies = {policy.name: policy for policy in split.policies_of_ours()}
        self._prepared: dict[tuple[str, int], Prepared] = {}
        self._recalls: dict[tuple[str, int], float | None] = {}

    def prepared(self, policy: Policy) -> Prepared:
        """A policy and what it computes from the split."""
        key = (policy.name, policy.width if isinstance(policy, Prefetch) else 0)
        if key not in self._prepared:
            case = self.split.case
            self._prepared[key] = prepare(case.events, policy, keep_warm=case.settings.keep_warm)
        return self._prepared[key]

    def recall_on_lru_misses(self, policy: Policy, slots: int) -> float | None:
        """Of the decoded accesses that LRU misses at a capacity, the share that the policy's requests name."""
        key = (policy.name, slots)
        if key not in self._recalls:
            lru, own = self.prepared(Lru()), self.prepared(policy)
            budget = Lru().budget(self.split.metadata, slots)
            overrun = self.split.case.settings.overrun
            outcome_A = run(lru, lru.prefetches, budget, Times.none(lru), overrun=overrun).outcome_A
            missed_A = (outcome_A >= MISSED) & own.events.is_decode_A
            self._recalls[key] = float(_requested_A(own)[missed_A].mean()) if missed_A.any() else None
        return self._recalls[key]


@dataclass(frozen=True)
class _Contest:
    """A way of prefetching against a policy that prefetches nothing, on a device at a capacity."""

    replays: _Replays
    place: Place
    policy: Prefetch
    own: TimedReplay
    rival: TimedReplay
    ms_without_predictor: float

    def timed(self, devices: Sequence[Device], width: int | None = None) -> list[TimedReplay]:
        """The prefetching policy on some devices, also at another width."""
        case, policy = self.replays.split.case, self.policy
        if width is not None and width != policy.width:
            policy = replace(policy, width=width)
        budget = policy.budget(case.events.metadata, self.place[1])
        overrun = case.settings.overrun
        return timed_sweep(self.replays.prepared(policy), [budget], devices, case.workload, overrun=overrun)


def _contest(replays: _Replays, place: Place) -> _Contest | None:
    """The first predictor's prefetching at a place against the best that prefetches nothing; None where one is missing.

    It prefetches as chosen there, or where the chosen way only evicts, by the token step as well.
    """
    split = replays.split
    chosen = replays.policies.get(split.chosen.get(place, ""))
    ours = chosen if isinstance(chosen, Prefetch) else None
    if chosen is not None and ours is None:
        ours = next((policy for policy in replays.policies.values() if isinstance(policy, Prefetch)), None)
    rival = split.fastest(place, lambda facts: not facts.prefetches)
    without = split.fastest(place, lambda facts: not facts.prefetches and facts.predictor is None)
    if ours is None or rival is None or without is None:
        return None
    return _Contest(replays, place, ours, split.timed_at(place)[ours.name], rival, without.ms_per_token)


def _row(contest: _Contest, draws: Resamples) -> dict[str, Any]:
    split, own, rival = contest.replays.split, contest.own, contest.rival
    (device, slots), facts = contest.place, split.facts
    difference = draws.difference(own.time, rival.time)
    replay, lru = own.replay, split.timed_at(contest.place)[Lru.name]
    saved = lru.replay.decode.demand_bytes - replay.decode.demand_bytes
    prefetches, in_time = replay.total.prefetches, replay.total.prefetches_useful - own.late_prefetches
    pays = difference.below(0)
    pays_from = None if pays else _pays_from(contest, draws)
    return {
        "split": split.split,
        "device": device,
        "capacity_experts": slots,
        "answer": "yes" if pays else "no" if pays_from is None else "only with more bandwidth",
        "policy": replay.policy,
        "title": facts[replay.policy].title,
        "against": rival.replay.policy,
        "against_title": facts[rival.replay.policy].title,
        "ms_per_token": own.ms_per_token,
        "against_ms_per_token": rival.ms_per_token,
        **difference.columns("difference_ms"),
        "link_idle_share_on_demand": lru.link_idle_share,
        "link_idle_share": own.link_idle_share,
        "prefetches_in_time": in_time / prefetches if prefetches else None,
        "recall_on_lru_misses": contest.replays.recall_on_lru_misses(contest.policy, slots),
        "bytes_read_per_byte_saved": replay.decode.prefetch_bytes / saved if saved > 0 else None,
        "pays_from_gb_per_s": pays_from,
        "token_step_ms": own.token_step_ms,
        "layer_step_ms": own.layer_step_ms,
    }


def _pays_from(contest: _Contest, draws: Resamples) -> float | None:
    """The first of some faster links with which prefetching pays; None: none of them."""
    own, rival = contest.own, contest.rival
    links = [own.device.link_gb_per_s * factor for factor in _FASTER_LINKS]
    replayed = contest.timed([own.device.with_link(link) for link in links])
    loaded_mb_P = rival.moved.numerator_P * (MIB / 1e6)
    for link, faster in zip(links, replayed, strict=True):
        # on demand a token's loads come one after another: their time shrinks with the bandwidth, their setups do not
        saved_ms_P = loaded_mb_P * (1 / own.device.link_gb_per_s - 1 / link)
        rival_ms_P = np.asarray(rival.time.numerator_P - saved_ms_P, np.float64)
        if draws.difference(faster.time, Ratio(rival_ms_P, rival.tokens_P)).below(0):
            return link
    return None


def _by_width(contest: _Contest) -> dict[int, TimedReplay]:
    """The way of prefetching at each width that is tried, rising."""
    meta, settings = contest.replays.split.metadata, contest.replays.split.case.settings
    widths = sorted({scaled_width(meta, settings.step_tokens, share) for share in settings.widths})
    return {width: contest.timed([contest.own.device], width)[0] for width in widths}


def _break_even_token_step_ms(contest: _Contest) -> float | None:
    """On a logarithmic scale between the latency as it is and one that loses, in rounds of a few replays."""
    device, limit = contest.own.device, contest.ms_without_predictor
    if contest.own.token_step_ms == 0 or contest.own.ms_per_token >= limit:
        return None
    # a token step as long as the whole gain ahead of every token, and nothing hidden: it loses for sure
    low, high = 1.0, max(2.0, limit / contest.own.token_step_ms)
    for _ in range(_ROUNDS):
        factors = np.geomspace(low, high, _FACTORS).tolist()
        slower = [
            device.model_copy(update={"predictor_slowdown": device.predictor_slowdown * factor}) for factor in factors
        ]
        wins = [timed.ms_per_token < limit for timed in contest.timed(slower)]
        if all(wins):
            return contest.own.token_step_ms * high
        first = wins.index(False)
        low, high = factors[max(0, first - 1)], factors[first]
    return contest.own.token_step_ms * low


def _requested_A(prepared: Prepared) -> Bools:
    """Whether each accessed expert was among the last requests for its event, bool [A]."""
    events = prepared.events
    offsets_N, experts = prepared.prefetches.just_in_time(events.num_events)
    num_experts = events.metadata.num_model_experts
    requested = np.repeat(np.arange(events.num_events), np.diff(offsets_N)) * num_experts + experts
    return np.isin(events.event_A * num_experts + events.members_A, requested)
