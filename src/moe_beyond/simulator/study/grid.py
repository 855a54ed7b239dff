"""One policy on one split: all its capacities and devices, other links and widths. What a process does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moe_beyond.devices.device import Device
from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.policy_inputs import Prepared, prepare
from moe_beyond.simulator.engine.replay import sweep_prepared
from moe_beyond.simulator.engine.results import Replay
from moe_beyond.simulator.engine.timing import TimedReplay, time_on_demand, timed_sweep
from moe_beyond.simulator.study.case import Case


@dataclass(frozen=True)
class Facts:
    """What kind of policy it is: columns of every row about it.

    Attributes:
        policy: Its name.
        title: Its name for people.
        predictor: The predictor that drives it; None: none.
        ahead_of_layers: Whether that predictor predicts anew after each layer's router.
        bound: Whether it reads the future, so that it cannot be built.
        lossy: Whether the model's outputs are not its own: router weight is lost, or it needs another router.
        prefetches: Whether it fetched anything ahead.
        evicted_by: Another predictor by whose predictions it evicts; None: none.
        gate: Whether the next gate that it reads is the model's own or a stand-in; None: it reads none.
    """

    policy: str
    title: str
    predictor: str | None
    ahead_of_layers: bool
    bound: bool
    lossy: bool
    prefetches: bool
    evicted_by: str | None = None
    gate: str | None = None

    def is_driven_by(self, predictor: str | None) -> bool:
        """Whether this predictor prefetches or evicts."""
        return predictor is not None and predictor in (self.predictor, self.evicted_by)

    @property
    def can_win(self) -> bool:
        """Whether it can be built and keeps the model's outputs."""
        return not (self.bound or self.lossy)


@dataclass(frozen=True)
class PolicyReplays:
    """All replays of one policy on one split.

    Attributes:
        facts: What kind of policy it is.
        replays: One a capacity, on an unlimited link; without misses of single events.
        timed: One a device and timed capacity, devices first.
        by_link: At the headline capacity, one a device and bandwidth tried; empty where none was tried.
        not_replayed: Why there is nothing; empty where there is.
    """

    facts: Facts
    replays: tuple[Replay, ...] = ()
    timed: tuple[TimedReplay, ...] = ()
    by_link: tuple[TimedReplay, ...] = ()
    not_replayed: str = ""


def facts_of(policy: Policy, replays: Sequence[Replay] = ()) -> Facts:
    """A policy's facts, the last two from what its replays counted."""
    totals = [replay.total for replay in replays]
    return Facts(
        policy=policy.name,
        title=policy.title if policy.gate_kind is None else f"{policy.title} ({policy.gate_kind})",
        predictor=policy.predictor,
        ahead_of_layers=policy.layer_step_ms > 0,
        bound=policy.knows_future,
        lossy=policy.needs_another_router or any(total.skipped or total.mass_given_up for total in totals),
        prefetches=any(total.prefetches for total in totals),
        evicted_by=policy.evicted_by,
        gate=policy.gate_kind,
    )


def replay_policy(index: int, case: Case, policy: Policy, links: bool) -> tuple[int, PolicyReplays]:
    """Replay one policy; `index` comes back with the result, to tell it from others that run beside it.

    Args:
        index: Place of the result.
        case: What it is replayed on.
        policy: The policy.
        links: Whether to time it with other bandwidths too, where a predictor drives it, or it loads on demand alone
            and keeps the model's outputs.

    Raises:
        InputError: The split lacks what the policy needs, and the policy is named in the settings.
    """
    try:
        prepared = prepare(case.events, policy, keep_warm=case.settings.keep_warm)
    except InputError as error:
        if case.settings.policies is not None:
            raise
        return index, PolicyReplays(facts_of(policy), not_replayed=str(error))
    counted = sweep_prepared(prepared, _budgets(case, policy, case.slots), overrun=case.settings.overrun)
    by_slots = {replay.capacity_experts: replay for replay in counted}
    facts = facts_of(prepared.policy, counted)
    on_demand = not (facts.prefetches or facts.lossy)
    timed = clocked(case, prepared, [by_slots[slots] for slots in case.timed_slots], case.devices, on_demand)
    by_link: list[TimedReplay] = []
    if links and (facts.predictor is not None or (facts.can_win and not facts.prefetches)):
        by_link = clocked(case, prepared, [by_slots[case.headline_slots]], case.links, on_demand)
    slim = tuple(replace(replay, misses_N=np.zeros(0, np.int32)) for replay in counted)
    return index, PolicyReplays(facts, slim, tuple(timed), tuple(by_link))


def clocked(
    case: Case, prepared: Prepared, replays: Sequence[Replay], devices: Sequence[Device], on_demand: bool
) -> list[TimedReplay]:
    """The same replays with a clock on each device, devices first; what loads on demand needs no second replay."""
    if on_demand and all(device.miss == "load" and device.page_gb_per_s is None for device in devices):
        return [time_on_demand(prepared, replay, device, case.workload) for device in devices for replay in replays]
    budgets = _budgets(case, prepared.policy, [replay.capacity_experts for replay in replays])
    return timed_sweep(prepared, budgets, devices, case.workload, overrun=case.settings.overrun)


def _budgets(case: Case, policy: Policy, slots: Sequence[int]) -> list[Budget]:
    return [policy.budget(case.events.metadata, capacity) for capacity in slots]
