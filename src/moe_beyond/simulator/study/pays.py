"""Does prefetching by the predictor pay here? From counts that replays have: idle link time, misses foreseen, bytes.

What prefetching can gain depends on how long the link idles, not on recall alone: a link that demand loads keep busy
has no time for prefetches (docs/policies.md, "What careful people found").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import polars as pl

from moe_beyond.devices.device import Device
from moe_beyond.intervals import Ratio, Resamples
from moe_beyond.simulator.engine.loop import Times, run
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.prepared import Prepared, prepare
from moe_beyond.simulator.engine.results import MIB
from moe_beyond.simulator.engine.timing import TimedReplay, timed_sweep
from moe_beyond.simulator.engine.usage import MISSED
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.policies.predictions import prefetch_width
from moe_beyond.simulator.policies.prefetch import Prefetch
from moe_beyond.simulator.study.study import Place, SplitReplays

Answer = Literal["yes", "no", "only with more bandwidth"]
PAYS = {
    "split": pl.String,
    "device": pl.String,
    "capacity_experts": pl.Int64,
    "answer": pl.String,
    "policy": pl.String,
    "title": pl.String,
    "against": pl.String,
    "against_title": pl.String,
    "ms_per_token": pl.Float64,
    "against_ms_per_token": pl.Float64,
    "difference_ms": pl.Float64,
    "difference_ms_low": pl.Float64,
    "difference_ms_high": pl.Float64,
    "link_idle_share_on_demand": pl.Float64,
    "link_idle_share": pl.Float64,
    "prefetches_in_time": pl.Float64,
    "recall_on_lru_misses": pl.Float64,
    "bytes_read_per_byte_saved": pl.Float64,
    "pays_from_gb_per_s": pl.Float64,
    "break_even_width": pl.Int64,
    "break_even_token_step_ms": pl.Float64,
    "token_step_ms": pl.Float64,
    "layer_step_ms": pl.Float64,
}
BY_BANDWIDTH = {
    "split": pl.String,
    "device": pl.String,
    "capacity_experts": pl.Int64,
    "policy": pl.String,
    "title": pl.String,
    "bandwidth_gb_per_s": pl.Float64,
    "ms_per_token": pl.Float64,
}
BY_WIDTH = {
    "split": pl.String,
    "device": pl.String,
    "capacity_experts": pl.Int64,
    "policy": pl.String,
    "title": pl.String,
    "width": pl.Int64,
    "ms_per_token": pl.Float64,
    "mib_per_token": pl.Float64,
    "hit_rate": pl.Float64,
}
_FASTER_LINKS = (2.0, 4.0, 16.0)
_ROUNDS, _FACTORS = 3, 6


def pays_table(splits: Sequence[SplitReplays], seed: int) -> pl.DataFrame:
    """A row a split, device and timed capacity.

    The first predictor's fastest way of prefetching there on validation prompts, against the fastest policy that
    prefetches nothing, eviction by the same predictor among them, which is chosen with hindsight on the prompts of the
    row. So the answer is about prefetching, not about what the predictor is worth for eviction. `answer`: `yes` where
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
    """
    rows = []
    for split in splits:
        replayer, recalls = _Replayer(split), dict[tuple[str, int], float | None]()
        draws = Resamples.draw(split.trace.num_prompts, split.case.settings.bootstrap_samples, seed)
        rows += [_row(replayer, place, draws, recalls) for place in split.places if split.timed_at(place)]
    return pl.DataFrame([row for row in rows if row], schema=PAYS)


def by_bandwidth_table(splits: Sequence[SplitReplays]) -> pl.DataFrame:
    """A row a split, device, policy and bandwidth at the headline capacity."""
    rows = [
        {
            "split": split.split,
            "device": timed.device.name,
            "capacity_experts": timed.replay.capacity_experts,
            "policy": policy.facts.policy,
            "title": policy.facts.title,
            "bandwidth_gb_per_s": timed.device.link_gb_per_s,
            "ms_per_token": timed.ms_per_token,
        }
        for split in splits
        if split.decoded_P.any()
        for policy in split.policies
        for timed in policy.by_link
    ]
    return pl.DataFrame(rows, schema=BY_BANDWIDTH)


def by_width_table(splits: Sequence[SplitReplays]) -> pl.DataFrame:
    """A row a split, device and prefetch width at the headline capacity: how the first predictor prefetches there."""
    rows = []
    for split in splits:
        replayer = _Replayer(split)
        for place in split.places:
            found = replayer.contest(place) if split.timed_at(place) else None
            if place[1] != split.case.headline_slots or found is None:
                continue
            for width, timed in _by_width(found):
                rows.append(
                    {
                        "split": split.split,
                        "device": place[0],
                        "capacity_experts": place[1],
                        "policy": timed.replay.policy,
                        "title": split.facts[timed.replay.policy].title,
                        "width": width,
                        "ms_per_token": timed.ms_per_token,
                        "mib_per_token": timed.moved.value,
                        "hit_rate": timed.hits.value,
                    }
                )
    return pl.DataFrame(rows, schema=BY_WIDTH)


class _Replayer:
    """Replays of the first predictor's ways of prefetching on a split, what a policy says of it worked out once."""

    def __init__(self, split: SplitReplays) -> None:
        settings = split.case.settings
        self.split = split
        self.width = prefetch_width(split.metadata, settings.batch, settings.prefetch_width)
        policies = split.predictions[0].policies(self.width, settings.prefetch_threshold) if split.predictions else []
        self.policies = {policy.name: policy for policy in policies}
        self._prepared: dict[tuple[str, int], Prepared] = {}

    def prepared(self, policy: Policy) -> Prepared:
        """What a policy says of the split."""
        key = (policy.name, policy.width if isinstance(policy, Prefetch) else 0)
        if key not in self._prepared:
            case = self.split.case
            self._prepared[key] = prepare(case.events, policy, keep_warm=case.settings.keep_warm)
        return self._prepared[key]

    def timed(self, policy: Policy, devices: Sequence[Device], slots: int) -> list[TimedReplay]:
        """A policy on some devices."""
        case = self.split.case
        return timed_sweep(self.prepared(policy), [policy.budget(case.events.metadata, slots)], devices, case.workload)

    def prefetching(self, place: Place) -> Prefetch | None:
        """How the first predictor prefetches there: as chosen, or where that only evicts, by the token step as well."""
        chosen = self.policies.get(self.split.chosen.get(place, ""))
        if chosen is None or isinstance(chosen, Prefetch):
            return chosen
        return next((policy for policy in self.policies.values() if isinstance(policy, Prefetch)), None)

    def contest(self, place: Place) -> _Contest | None:
        """Its prefetching against the best that loads on demand; None where one of them is missing."""
        ours = self.prefetching(place)
        rival = self.split.fastest(place, lambda facts: not facts.prefetches)
        without = self.split.fastest(place, lambda facts: not facts.prefetches and facts.predictor is None)
        if ours is None or rival is None or without is None:
            return None
        return _Contest(self, place, ours, self.split.timed_at(place)[ours.name], rival, without.ms_per_token)

    @cached_property
    def lru(self) -> Prepared:
        """LRU, for what it misses."""
        return self.prepared(Lru())


@dataclass(frozen=True)
class _Contest:
    """A way of prefetching against a policy that loads on demand, on a device at a capacity."""

    replayer: _Replayer
    place: Place
    policy: Prefetch
    own: TimedReplay
    rival: TimedReplay
    ms_without_predictor: float

    def timed(self, devices: Sequence[Device]) -> list[TimedReplay]:
        """The prefetching policy on other devices."""
        return self.replayer.timed(self.policy, devices, self.place[1])


def _row(replayer: _Replayer, place: Place, draws: Resamples, recalls: dict[tuple[str, int], float | None]) -> Any:
    found = replayer.contest(place)
    if found is None:
        return None
    split, own, rival = replayer.split, found.own, found.rival
    facts = split.facts
    difference = draws.difference(own.time, rival.time)
    total, lru = own.replay, split.timed_at(place)[Lru.name]
    saved = lru.replay.decode.demand_bytes - total.decode.demand_bytes
    used = total.total.prefetches_useful - own.late_prefetches
    pays_from = None if difference.high < 0 else _pays_from(found, draws)
    answer: Answer = "yes" if difference.high < 0 else "no" if pays_from is None else "only with more bandwidth"
    named = (found.policy.name, place[1])
    if named not in recalls:
        recalls[named] = _recall_on_lru_misses(found)
    row = {
        "split": split.split,
        "device": place[0],
        "capacity_experts": place[1],
        "answer": answer,
        "policy": total.policy,
        "title": facts[total.policy].title,
        "against": rival.replay.policy,
        "against_title": facts[rival.replay.policy].title,
        "ms_per_token": own.ms_per_token,
        "against_ms_per_token": rival.ms_per_token,
        "difference_ms": difference.value,
        "difference_ms_low": difference.low,
        "difference_ms_high": difference.high,
        "link_idle_share_on_demand": lru.link_idle_share,
        "link_idle_share": own.link_idle_share,
        "prefetches_in_time": used / total.total.prefetches if total.total.prefetches else None,
        "recall_on_lru_misses": recalls[named],
        "bytes_read_per_byte_saved": total.decode.prefetch_bytes / saved if saved > 0 else None,
        "pays_from_gb_per_s": pays_from,
        "token_step_ms": own.token_step_ms,
        "layer_step_ms": own.layer_step_ms,
    }
    if place[1] == split.case.headline_slots:
        faster = [width for width, timed in _by_width(found) if timed.ms_per_token < rival.ms_per_token]
        row["break_even_width"] = max(faster, default=0)
        row["break_even_token_step_ms"] = _break_even_token_step_ms(found)
    return row


def _pays_from(found: _Contest, draws: Resamples) -> float | None:
    """The first of some faster links with which the answer is yes; None: none of them."""
    own, rival = found.own, found.rival
    links = [own.device.link_gb_per_s * factor for factor in _FASTER_LINKS]
    replayed = found.timed([own.device.model_copy(update={"link_gb_per_s": link}) for link in links])
    loaded_mb_P = rival.moved.numerator_P * (MIB / 1e6)
    for link, faster in zip(links, replayed, strict=True):
        # on demand a token's loads come one after another: their time shrinks with the bandwidth, their setups do not
        saved_ms_P = loaded_mb_P * (1 / own.device.link_gb_per_s - 1 / link)
        rival_ms_P = np.asarray(rival.time.numerator_P - saved_ms_P, np.float64)
        if draws.difference(faster.time, Ratio(rival_ms_P, rival.tokens_P)).high < 0:
            return link
    return None


def _by_width(found: _Contest) -> list[tuple[int, TimedReplay]]:
    """The way of prefetching at each width that is tried, rising."""
    split, device = found.replayer.split, found.own.device
    meta, settings = split.metadata, split.case.settings
    k = prefetch_width(meta, settings.batch)
    widths = sorted({min(max(1, round(share * k)), meta.num_experts) for share in settings.widths})
    policies = [found.policy if width == found.policy.width else replace(found.policy, width=width) for width in widths]
    return [
        (width, found.replayer.timed(policy, [device], found.place[1])[0])
        for width, policy in zip(widths, policies, strict=True)
    ]


def _break_even_token_step_ms(found: _Contest) -> float | None:
    """On a scale of logarithms between the latency as it is and one that loses, in two rounds of a few replays."""
    device, limit = found.own.device, found.ms_without_predictor
    if found.own.token_step_ms == 0 or found.own.ms_per_token >= limit:
        return None
    # a token step as long as the whole gain ahead of every token, and nothing hidden: it loses for sure
    low, high = 1.0, max(2.0, limit / found.own.token_step_ms)
    for _ in range(_ROUNDS):
        factors = np.geomspace(low, high, _FACTORS)
        slower = [
            device.model_copy(update={"predictor_slowdown": device.predictor_slowdown * factor})
            for factor in factors.tolist()
        ]
        wins = np.array([timed.ms_per_token for timed in found.timed(slower)]) < limit
        if wins.all():
            return found.own.token_step_ms * high
        first = int(np.argmin(wins))
        low, high = float(factors[max(0, first - 1)]), float(factors[first])
    return found.own.token_step_ms * low


def _recall_on_lru_misses(found: _Contest) -> float | None:
    """Of the decoded accesses that LRU misses at this capacity, the share that the policy's requests name."""
    lru = found.replayer.lru
    budget = Lru().budget(lru.events.metadata, found.place[1])
    outcome_A = run(lru, lru.prefetches, budget, Times.none(lru)).outcome_A
    own = found.replayer.prepared(found.policy)
    missed_A = (outcome_A >= MISSED) & own.events.is_decode_A
    return float(_named_A(own)[missed_A].mean()) if missed_A.any() else None


def _named_A(prepared: Prepared) -> Any:
    """Whether each accessed expert was among the last requests for its event, bool [A]."""
    events = prepared.events
    offsets_N, experts = prepared.prefetches.just_in_time(events.num_events)
    num = events.metadata.num_model_experts
    requested = np.repeat(np.arange(events.num_events), np.diff(offsets_N)) * num + experts
    wanted = events.event_A * num + events.members_A
    return np.isin(wanted, requested)
