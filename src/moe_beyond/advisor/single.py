"""One policy on one trace, as a document: what `moe-beyond replay` prints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from moe_beyond.advisor.plans import Fetch, Lessons, Plan, Room, Split, budget_of, parse_plan, policy_of
from moe_beyond.devices.device import Device
from moe_beyond.devices.workload import Workload
from moe_beyond.errors import InputError
from moe_beyond.intervals import Resamples
from moe_beyond.predictor.base import LayerPredictor
from moe_beyond.simulator.engine.prepared import prepare
from moe_beyond.simulator.engine.replay import sweep_prepared
from moe_beyond.simulator.engine.results import MIB, Replay
from moe_beyond.simulator.engine.timing import TimedReplay, timed_sweep
from moe_beyond.simulator.policies.fitted_split import LayerLruFitted
from moe_beyond.simulator.policies.predictions import Predictions, prefetch_width
from moe_beyond.simulator.schedule.events import Events, Prefill, events_of
from moe_beyond.traces.schema import Trace


@dataclass(frozen=True)
class Setup:
    """How one policy is replayed.

    Attributes:
        policy: Its name, as `plans.parse_plan` understands it.
        room: How much the cache holds.
        split: How layers share it; None: the policy's own way.
        width: Experts that a predictor fetches ahead at most for each layer; None: as many as a step wants.
        threshold: Least probability of those.
        prefill: Whether a prompt's prefill is one step.
        batch: Prompts that run at once.
        keep_warm: Whether the cache lives on from prompt to prompt, or from wave to wave.
        sequential: Judge each access by itself, as older papers do.
        device: Where to take the time; None: nowhere.
        token_step_ms: Charged for the predictor's token step on one thread, before the device's slowdown.
        layer_step_ms: And for its layer step.
        lookahead: For how many layers beyond the present one prefetches may be under way.
        samples: Resamples of prompts behind the interval.
        seed: Of those.
    """

    policy: str
    room: Room
    split: Split | None = None
    width: int | None = None
    threshold: float = 0.0
    prefill: Prefill = "batched"
    batch: int = 1
    keep_warm: bool = True
    sequential: bool = False
    device: Device | None = None
    token_step_ms: float = 0.0
    layer_step_ms: float = 0.0
    lookahead: int = 2
    samples: int = 1000
    seed: int = 7


def replay_one(
    trace: Trace, setup: Setup, training: Trace | None = None, predictor: LayerPredictor | None = None
) -> dict[str, Any]:
    """Replay a trace under one policy.

    Args:
        trace: What is replayed.
        setup: How.
        training: Prompts that the policy learns from; None: it must learn nothing.
        predictor: For policies that ask one.

    Returns:
        For JSON: what was replayed, counts and ratios on an unlimited link; with a device, its own under `time`.

    Raises:
        InputError: An unknown policy, one that lacks predictor, training or weights, a budget that the model does not
            fit, a predictor of another model, or times asked of a sequential replay.
    """
    if setup.sequential and setup.device is not None:
        raise InputError("a sequential replay has no clock: its accesses are none of an engine's; leave out the device")
    if training is not None:
        trace.metadata.require_same_model(training.metadata, "training trace")
    events = events_of(trace, setup.prefill, batch=setup.batch, waves=not setup.keep_warm)
    events = events.one_by_one() if setup.sequential else events
    meta, answers = trace.metadata, None
    if predictor is not None:
        answers = Predictions(predictor, trace, events, setup.token_step_ms, setup.layer_step_ms)
    fetch = Fetch(prefetch_width(meta, setup.batch, setup.width), setup.threshold)
    plan = parse_plan(setup.policy, fetch, setup.split)
    lessons = Lessons.none(plan.policy) if training is None else Lessons(training, setup.prefill, setup.batch)
    policy = policy_of(plan, lessons, answers)
    if setup.split is None and policy.per_layer:
        plan = replace(plan, split="fitted" if isinstance(policy, LayerLruFitted) else "even")
    budget = budget_of(plan, policy, lessons, trace.metadata, setup.room)
    document = {"policy": policy.name, **_asked(events, plan, setup, budget.capacity_experts)}
    prepared = prepare(events, policy, keep_warm=setup.keep_warm)
    document |= _counts(sweep_prepared(prepared, [budget])[0], setup)
    if setup.device is not None:
        workload = Workload.of(meta, setup.lookahead)
        document["time"] = _times(timed_sweep(prepared, [budget], [setup.device], workload)[0])
    return document


def _asked(events: Events, plan: Plan, setup: Setup, capacity: int) -> dict[str, Any]:
    meta = events.metadata
    return {
        "model": meta.model_id,
        "split_over_layers": plan.split,
        "prefetch": plan.row()["prefetch"],
        "capacity_experts": capacity,
        "capacity_fraction": capacity / meta.num_model_experts,
        "budget_mib": setup.room.total / MIB if setup.room.in_bytes else None,
        "batch": setup.batch,
        "prefill": setup.prefill,
        "cache_between_prompts": "kept" if setup.keep_warm else "emptied",
        "judged": "access by access (sequential, for comparison with older papers only)"
        if setup.sequential
        else "event by event",
        "prompts": events.num_prompts,
        "tokens": int(events.prompt_tokens_PF.sum()),
    }


def _counts(counted: Replay, setup: Setup) -> dict[str, Any]:
    total, decode = counted.total, counted.decode
    interval = Resamples.draw(len(counted.tokens_PF), setup.samples, setup.seed).ratio(counted.hit_ratio)
    return {
        "accesses": total.accesses,
        "hits": total.hits,
        "misses": total.misses,
        "compulsory_misses": total.compulsory_misses,
        "hit_rate_unlimited_link": total.hit_rate,
        "hit_rate_unlimited_link_low": interval.low,
        "hit_rate_unlimited_link_high": interval.high,
        "decode_hit_rate_unlimited_link": decode.hit_rate,
        "mib_per_token": total.mib_per_token,
        "evictions": total.evictions,
        "prefetches": total.prefetches,
        "prefetches_useful": total.prefetches_useful,
        "prefetches_useless": total.prefetches_useless,
        "router_weight_given_up": total.mass_given_up,
    }


def _times(timed: TimedReplay) -> dict[str, Any]:
    return {
        "device": timed.device.name,
        "ms_per_token": timed.ms_per_token,
        "tokens_per_second": timed.tokens_per_second,
        "stall_ms_per_token": timed.stall.value,
        "hit_rate": timed.hits.value,
        "mib_per_token": timed.moved.value,
        "token_step_ms_charged": timed.token_step_ms,
        "layer_step_ms_charged": timed.layer_step_ms,
        "prefetches": timed.replay.total.prefetches,
        "prefetches_late": timed.late_prefetches,
    }
