"""One policy on one trace, as a document: what `moe-beyond replay` prints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from moe_beyond.advisor.plans import CacheSize, Fetch, Plan, Split, TrainingData, parse_plan
from moe_beyond.devices.device import LARGE_ERROR, NO_RECORDING, Device
from moe_beyond.devices.workload import ASSUMED_DENSE, MIB, Workload, dense_size
from moe_beyond.errors import InputError
from moe_beyond.intervals import Resamples
from moe_beyond.predictor.base import LayerPredictor
from moe_beyond.settings import DEFAULT_SEED
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.in_pieces import decides_as_it_runs, replay_in_pieces
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.policy_inputs import Prepared, prepare
from moe_beyond.simulator.engine.replay import sweep_prepared
from moe_beyond.simulator.engine.timing import TimedReplay, timed_sweep
from moe_beyond.simulator.policies.fitted_split import LayerLruFitted
from moe_beyond.simulator.policies.predictions import Predictions, prefetch_width
from moe_beyond.simulator.policies.settings import PolicySettings
from moe_beyond.simulator.schedule.events import Prefill, events_of
from moe_beyond.traces.schema import Trace

NO_PREFILL = (
    "The device's file has no prefill_tokens_per_s: the time to the first token counts loads and reading weights once, "
    "which is too little for long prompts."
)
_COUNTED = ("evictions", "prefetches", "prefetches_useful", "prefetches_useless")


@dataclass(frozen=True)
class Setup:
    """How one policy is replayed.

    Attributes:
        policy: Its name, as `plans.parse_plan` understands it.
        size: Of the cache.
        seed: Of the intervals and of fitted policies.
        split: How layers share it; None: the policy's own way.
        width: Experts that a predictor prefetches at most for each layer; None: as many as a step uses.
        threshold: Least probability of those.
        prefill: Whether a prompt's prefill is one step.
        batch: Prompts that run at once.
        block: Tokens that a decode step verifies, as for `events.events_of`.
        accepted_share: Of them the part that is kept.
        keep_warm: Whether the cache is kept from prompt to prompt, or from wave to wave.
        sequential: Judge each access by itself, as older papers do.
        device: Where to take the time; None: nowhere.
        token_step_ms: Charged for the predictor's token step on one thread, before the device's slowdown.
        layer_step_ms: And for its layer step.
        lookahead: For how many layers beyond the present one prefetches may be under way.
        dense_bytes: All weights that a token reads beside the experts; None: as traced, else assumed.
        overrun: Whether the cache keeps what an event has just used, even above its size, as for `replay.replay`.
        samples: Resamples of prompts behind the interval.
    """

    policy: str
    size: CacheSize
    seed: int = DEFAULT_SEED
    split: Split | None = None
    width: int | None = None
    threshold: float = 0.0
    prefill: Prefill = "batched"
    batch: int = 1
    block: int = 1
    accepted_share: float | None = None
    keep_warm: bool = True
    sequential: bool = False
    device: Device | None = None
    token_step_ms: float = 0.0
    layer_step_ms: float = 0.0
    lookahead: int = 2
    dense_bytes: int | None = None
    overrun: bool = True
    samples: int = 1000


def replay_one(
    trace: Trace, setup: Setup, training: Trace | None = None, predictor: LayerPredictor | None = None
) -> dict[str, Any]:
    """Replay a trace under one policy.

    Args:
        trace: What is replayed.
        setup: How.
        training: Prompts that the policy is fitted to; None: it must not need any.
        predictor: For policies that need one.

    Returns:
        For JSON: what was replayed, counts and ratios on an unlimited link; with a device, its own under `time`.

    Raises:
        InputError: An unknown policy, one that lacks predictor, training data or weights, a budget that the model does
            not fit, a predictor of another model, or a device for a sequential replay.
    """
    if setup.sequential and setup.device is not None:
        raise InputError("a sequential replay has no clock: its accesses are none of an engine's; give no device")
    meta, prepared, counted = trace.metadata, None, None
    if setup.device is None and predictor is None and setup.batch == setup.block == 1:
        policy, budget, plan = _policy_of(trace, setup, training, None)
        if decides_as_it_runs(policy):
            rules = {"keep_warm": setup.keep_warm, "overrun": setup.overrun, "sequential": setup.sequential}
            counted, held = replay_in_pieces(trace, policy, budget, prefill=setup.prefill, **rules)
    if counted is None:
        prepared, budget, plan = parts_of(trace, setup, training, predictor)
        policy, events = prepared.policy, prepared.events
        counted = sweep_prepared(prepared, [budget], overrun=setup.overrun)[0]
        held = budget.held_at_most(events.members_A, events.offsets_N, overrun=setup.overrun)
    total, decode = counted.total, counted.decode
    document = {
        "policy": policy.name,
        "model": meta.model_id,
        "split_over_layers": plan.split,
        "prefetch": plan.row()["prefetch"],
        "capacity_experts": budget.capacity_experts,
        "held_at_most_experts": held,
        "capacity_fraction": budget.capacity_experts / meta.num_model_experts,
        "budget_mib": setup.size.row()["budget_mib"],
        "batch": setup.batch,
        "block_tokens": setup.block,
        "accepted_share": setup.accepted_share,
        "prefill": setup.prefill,
        "overrun": setup.overrun,
        "cache_between_prompts": "kept" if setup.keep_warm else "emptied",
        "judged": "access by access (sequential, for comparison with older papers only)"
        if setup.sequential
        else "event by event",
        "prompts": trace.num_prompts,
        "tokens": total.tokens,
        **{name: getattr(total, name) for name in ("accesses", "hits", "misses", "compulsory_misses")},
        **Resamples.draw(trace.num_prompts, setup.samples, setup.seed)
        .ratio(counted.hit_ratio)
        .columns("hit_rate_unlimited_link"),
        "decode_hit_rate_unlimited_link": decode.hit_rate if decode.accesses else None,
        "mib_per_token": total.mib_per_token,
        **{name: getattr(total, name) for name in _COUNTED},
        "router_weight_given_up": total.mass_given_up,
    }
    if setup.device is not None and prepared is not None:
        dense_bytes, source = dense_size(meta, setup.dense_bytes, setup.device)
        workload = Workload.of(meta, setup.lookahead, dense_bytes=dense_bytes)
        timed = timed_sweep(prepared, [budget], [setup.device], workload, overrun=setup.overrun)[0]
        document["time"] = {
            "device": timed.device.name,
            **decoding(timed),
            "token_step_ms_charged": timed.token_step_ms,
            "layer_step_ms_charged": timed.layer_step_ms,
            "prefetches": timed.replay.total.prefetches,
            "prefetches_late": timed.late_prefetches,
            "dense_mib": int(workload.dense_bytes_L.sum()) / MIB,
            "dense_size_from": source,
            "resident_mib": workload.resident_bytes(meta.top_k) / MIB,
            "resident_mib_of_device": setup.device.resident_mib,
            "device_error": setup.device.fit_error,
            "device_recording": setup.device.recording,
            "ms_per_token_by_heat": timed.by_heat,
            **first_token(timed, workload),
        }
    document["notes"] = _notes(document)
    return document


def parts_of(
    trace: Trace, setup: Setup, training: Trace | None, predictor: LayerPredictor | None
) -> tuple[Prepared, Budget, Plan]:
    """Events under the policy, the cache, and the plan that both come from. Arguments and errors as of `replay_one`."""
    events = events_of(
        trace,
        setup.prefill,
        batch=setup.batch,
        waves=not setup.keep_warm,
        block=setup.block,
        accepted_share=setup.accepted_share,
    )
    events, predictions = events.one_by_one() if setup.sequential else events, None
    if predictor is not None:
        predictions = Predictions(predictor, trace, events, setup.token_step_ms, setup.layer_step_ms)
    policy, budget, plan = _policy_of(trace, setup, training, predictions)
    return prepare(events, policy, keep_warm=setup.keep_warm), budget, plan


def _policy_of(
    trace: Trace, setup: Setup, training: Trace | None, predictions: Predictions | None
) -> tuple[Policy, Budget, Plan]:
    meta = trace.metadata
    if training is not None:
        meta.require_same_model(training.metadata, "training trace")
    fetch = Fetch(prefetch_width(meta, setup.batch * setup.block, setup.width), setup.threshold)
    plan = parse_plan(setup.policy, fetch, setup.split)
    settings = PolicySettings().of_seed(setup.seed)
    data = TrainingData.none(plan.policy, settings)
    if training is not None:
        data = TrainingData(training, setup.prefill, setup.batch, settings)
    policy = data.policy(plan, predictions)
    if setup.split is None and policy.per_layer:
        plan = replace(plan, split="fitted" if isinstance(policy, LayerLruFitted) else "even")
    return policy, data.budget(plan, policy, meta, setup.size), plan


def _notes(document: dict[str, Any]) -> list[str]:
    time = document.get("time", {})
    error, held, slots = time.get("device_error"), document["held_at_most_experts"], document["capacity_experts"]
    fitted, resident = time.get("resident_mib_of_device"), time.get("resident_mib", 0.0)
    notes = {
        "Nothing was decoded, so no hit rate of decoding and no time is known: the trace holds prefill alone; "
        "--prefill token_by_token replays it as if it was decoded.": document["decode_hit_rate_unlimited_link"] is None,
        f"Up to {held} experts were held, the cache is for {slots}: what an event has just used is kept. With "
        "--no-overrun the cache keeps its size.": held > slots,
        ASSUMED_DENSE: time.get("dense_size_from") == "assumed",
        f"The device was fitted to tokens that read {fitted or 0:.0f} MiB of resident weights, these read "
        f"{resident:.0f}: if it is the same model, correct --dense-mib.": fitted is not None
        and abs(fitted - resident) > 1,
        NO_PREFILL: bool(time.get("modelled_first_token_ms_by_prompt")) and time["prefill_tokens_per_s"] is None,
        NO_RECORDING: "device" in time and time["device_recording"] is None and error is None,
        f"The device's fit was {error or 0:.0%} off on tokens that it had not seen: so may this time be.": (
            (error or 0) > LARGE_ERROR
        ),
    }
    return [note for note, applies in notes.items() if applies]


def first_token(timed: TimedReplay, workload: Workload) -> dict[str, Any]:
    """When prompts got their first token, for JSON; the same for a start of the engine, None where it is not known.

    A batched prefill's time, loads included; it does not say how long a prompt waited for others.
    """
    first, events = timed.first_token, timed.events
    ms = first.numerator_P[first.denominator_P > 0].tolist()
    model_bytes = int(workload.expert_bytes_L.sum()) * events.metadata.num_experts + int(workload.dense_bytes_L.sum())
    return {
        "modelled_first_token_ms": first.value if ms else None,
        "modelled_first_token_ms_longest": max(ms, default=None),
        "modelled_first_token_ms_by_prompt": ms,
        "modelled_start_ms": timed.device.start_ms(model_bytes),
        "prefill_tokens_per_s": timed.device.prefill_tokens_per_s,
    }


def decoding(timed: TimedReplay) -> dict[str, float | None]:
    """What decoding takes on a device, for JSON; None where nothing was decoded."""
    if not timed.time.counts:
        return dict.fromkeys(("ms_per_token", "tokens_per_second", "stall_ms_per_token", "hit_rate", "mib_per_token"))
    return {
        "ms_per_token": timed.ms_per_token,
        "tokens_per_second": timed.tokens_per_second,
        "stall_ms_per_token": timed.stall.value,
        "hit_rate": timed.hits.value,
        "mib_per_token": timed.moved.value,
    }
