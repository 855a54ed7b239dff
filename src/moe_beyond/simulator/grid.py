"""One policy on one split: all its capacities, devices, predictor latencies and bandwidths. What a process does.

Shape suffixes: P prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.simulator.budget import Budget
from moe_beyond.simulator.device import Device
from moe_beyond.simulator.events import Events
from moe_beyond.simulator.policies.base import Policy
from moe_beyond.simulator.prepared import Prepared, prepare
from moe_beyond.simulator.replay import sweep_prepared
from moe_beyond.simulator.results import MIB, Replay
from moe_beyond.simulator.settings import SimulateSettings
from moe_beyond.simulator.timing import TimedReplay, Workload, time_on_demand, timed_sweep_prepared


@dataclass(frozen=True)
class Setting:
    """What a policy is replayed on.

    Attributes:
        events: Of the split.
        slots: Capacities in experts.
        timed_slots: Those with a clock.
        headline_slots: The one that everything is told of.
        devices: Links and processors.
        settings: Everything else.
    """

    events: Events
    slots: tuple[int, ...]
    timed_slots: tuple[int, ...]
    headline_slots: int
    devices: tuple[Device, ...]
    settings: SimulateSettings

    def headline_only(self) -> Setting:
        """The same at the headline capacity and the default latency alone, for one bandwidth a device."""
        one = (self.headline_slots,)
        settings = self.settings.model_copy(update={"predictor_latencies_ms": (), "bandwidths_gb_per_s": ()})
        return replace(self, slots=one, timed_slots=one, settings=settings)

    def workload(self, predictor_ms: float) -> Workload:
        """What there is to move and to compute, with a token step of this length."""
        settings = self.settings
        expert_bytes = None if settings.timed_expert_mib is None else round(settings.timed_expert_mib * MIB)
        lookahead, layer_ms = settings.lookahead_layers, settings.layer_latency_ms
        return Workload.like_its_experts(self.events, predictor_ms, lookahead, expert_bytes, layer_ms)


@dataclass(frozen=True)
class Timed:
    """What a policy costs in time at one capacity on one device.

    Attributes:
        policy: Its name.
        device: The device's.
        capacity_experts: Slots of the cache.
        link_gb_per_s: Bandwidth of the link, the device's own or another one.
        predictor_ms: Time of the token step, where the policy has one.
        ms_per_token: Mean of the decoded tokens.
        stall_ms_per_token: The part of it that waits for the link.
        total_ms: Of the whole split, prefill too.
        prefetches: Experts fetched ahead.
        prefetches_late: Those of them that were waited for.
        prefetches_useless: Those that nothing used.
        decode_ms_P: Time that each prompt decoded, float64.
    """

    policy: str
    device: str
    capacity_experts: int
    link_gb_per_s: float
    predictor_ms: float
    ms_per_token: float
    stall_ms_per_token: float
    total_ms: float
    prefetches: int
    prefetches_late: int
    prefetches_useless: int
    decode_ms_P: npt.NDArray[np.float64]

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens a second; 0 where nothing was decoded."""
        return 1e3 / self.ms_per_token if self.ms_per_token else 0.0


@dataclass(frozen=True)
class PolicyReplays:
    """All that was asked of one policy on one split.

    Attributes:
        policy: Its name.
        predicts: Whether it needs a predictor's answer.
        knows_future: Whether it is a bound.
        plain: Whether it fetched nothing ahead and gave nothing up.
        replays: One a capacity; without misses of single events.
        timed: One a device, timed capacity and latency.
        by_bandwidth: One a device and bandwidth, at the headline capacity and the default latency.
        left_out: Why there is nothing; empty where there is.
    """

    policy: str
    predicts: bool
    knows_future: bool
    plain: bool
    replays: tuple[Replay, ...]
    timed: tuple[Timed, ...]
    by_bandwidth: tuple[Timed, ...]
    left_out: str = ""

    @classmethod
    def without(cls, policy: str, reason: str) -> PolicyReplays:
        """Of a policy that the traces do not allow."""
        return cls(policy, False, False, False, (), (), (), reason)

    @property
    def is_rival(self) -> bool:
        """Whether it is what a predictor must beat: lossless, on demand, without prediction or foresight."""
        return self.plain and not (self.predicts or self.knows_future)


def replay_policy(index: int, setting: Setting, policy: Policy) -> tuple[int, PolicyReplays]:
    """Replay one policy; `index` comes back with the result, to tell it from others that run beside it.

    Raises:
        InputError: The split lacks what the policy needs, and the policy was asked for by name.
    """
    settings, events = setting.settings, setting.events
    try:
        prepared = prepare(events, policy, keep_warm=settings.keep_warm)
    except InputError as error:
        if settings.policies is not None:
            raise
        return index, PolicyReplays.without(policy.name, str(error))
    counted = sweep_prepared(prepared, _budgets(setting, policy, setting.slots))
    by_slots = {replay.capacity_experts: replay for replay in counted}
    at_times = [by_slots[slots] for slots in setting.timed_slots]
    plain = not any(r.total.prefetches or r.total.skipped or r.total.mass_given_up for r in counted)
    timed = _timed(setting, prepared, at_times, plain=plain) if setting.devices else []
    by_bandwidth: list[Timed] = []
    if plain or policy.predicts:
        headline = [by_slots[setting.headline_slots]]
        links = [
            device.model_copy(update={"link_gb_per_s": bandwidth})
            for device in setting.devices
            for bandwidth in settings.bandwidths_gb_per_s
        ]
        by_bandwidth = _clocked(setting, prepared, headline, links, settings.predictor_latency_ms, plain=plain)
    slim = tuple(replace(replay, misses_N=np.zeros(0, np.int32)) for replay in counted)
    return index, PolicyReplays(
        policy.name, policy.predicts, policy.knows_future, plain, slim, tuple(timed), tuple(by_bandwidth)
    )


def _budgets(setting: Setting, policy: Policy, slots: Sequence[int]) -> list[Budget]:
    meta = setting.events.metadata
    return [policy.budget(meta, capacity) for capacity in slots]


def _timed(setting: Setting, prepared: Prepared, replays: Sequence[Replay], *, plain: bool) -> Iterator[Timed]:
    """All latencies; a policy that does not predict takes as long with each."""
    policy, latencies = prepared.policy, setting.settings.latencies_ms
    for predictor_ms in latencies if policy.predicts else latencies[:1]:
        rows = _clocked(setting, prepared, replays, setting.devices, predictor_ms, plain=plain)
        for row in rows:
            if policy.predicts:
                yield row
            else:
                yield from (replace(row, predictor_ms=other_ms) for other_ms in latencies)


def _clocked(
    setting: Setting,
    prepared: Prepared,
    replays: Sequence[Replay],
    devices: Sequence[Device],
    predictor_ms: float,
    *,
    plain: bool,
) -> list[Timed]:
    """Devices first. A policy that neither fetches ahead nor does without needs no second replay."""
    events, policy, workload = setting.events, prepared.policy, setting.workload(predictor_ms)
    if plain:
        done = [
            time_on_demand(events, replay, device, workload, predicts=policy.predicts)
            for device in devices
            for replay in replays
        ]
    else:
        budgets = _budgets(setting, policy, [replay.capacity_experts for replay in replays])
        done = timed_sweep_prepared(prepared, budgets, devices, workload)
    links = [device.link_gb_per_s for device in devices for _ in replays]
    return [_row(events, timed, link, predictor_ms) for timed, link in zip(done, links, strict=True)]


def _row(events: Events, timed: TimedReplay, link_gb_per_s: float, predictor_ms: float) -> Timed:
    total = timed.replay.total
    return Timed(
        policy=timed.replay.policy,
        device=timed.device,
        capacity_experts=timed.replay.capacity_experts,
        link_gb_per_s=link_gb_per_s,
        predictor_ms=predictor_ms,
        ms_per_token=timed.ms_per_token,
        stall_ms_per_token=timed.stall_ms_per_token,
        total_ms=timed.total_ms,
        prefetches=total.prefetches,
        prefetches_late=timed.late_prefetches,
        prefetches_useless=total.prefetches_useless,
        decode_ms_P=events.by_prompt(timed.step_ms_S),
    )
