"""An advice as a document: verdict, plan, numbers, and what they rest on."""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_beyond.advisor.advisor import Advice, Measured
from moe_beyond.advisor.plans import Room
from moe_beyond.devices.device import MILLISECONDS
from moe_beyond.intervals import Interval
from moe_beyond.simulator.engine.results import MIB

GIB = 2**30


def document(advice: Advice, target_tokens_per_second: float) -> dict[str, Any]:
    """For JSON and for a screen.

    Args:
        advice: The answer.
        target_tokens_per_second: The speed from which on offloading is worth it.
    """
    asked = advice.question
    memory = _memory(advice)
    learned, chose, confirmed = advice.num_prompts
    return {
        "verdict": _verdict(advice, target_tokens_per_second, memory),
        "model": advice.metadata.model_id,
        "device": asked.device.name,
        "memory": memory,
        "best": _measured(advice.best)
        | {
            "ms_per_token_low": advice.interval.low,
            "ms_per_token_high": advice.interval.high,
            "ms_per_token_where_chosen": advice.tried[0].ms_per_token,
            "slots_per_layer": _slots(advice),
        },
        "runner_up": _measured(advice.runner_up) | {"slower_by_ms": _interval(advice.ahead)},
        "today": _measured(advice.today) | {"slower_by_ms": _interval(advice.saved)},
        "speed": {
            "all_resident_ms_per_token": advice.resident_ms,
            "clairvoyant_bound_ms_per_token": advice.bound_ms,
            "share_of_bound": advice.share_of_bound,
        },
        "more_memory": [
            _room(more.room)
            | {
                "ms_per_token": more.measured.ms_per_token,
                "tokens_per_second": MILLISECONDS / more.measured.ms_per_token,
            }
            for more in advice.more_memory
        ],
        "tried": [{"plan": str(other.plan), "ms_per_token": other.ms_per_token} for other in advice.tried],
        "not_tried": advice.refused,
        "prompts": {"learned_on": learned, "chosen_on": chose, "confirmed_on": confirmed},
        "settings": {
            "token_step_ms": asked.token_step_ms * asked.device.predictor_slowdown,
            "layer_step_ms": asked.layer_step_ms * asked.device.predictor_slowdown,
            "lookahead_layers": asked.lookahead,
            "batch": asked.batch,
            "lossy": asked.lossy,
            "target_tokens_per_second": target_tokens_per_second,
            "seed": asked.seed,
        },
        "notes": _notes(advice),
    }


def _verdict(advice: Advice, target: float, memory: dict[str, Any]) -> dict[str, str]:
    speed, bound = MILLISECONDS / advice.best.ms_per_token, MILLISECONDS / advice.bound_ms
    share = f"{100 * advice.share_of_bound:.0f} % of what perfect foresight would reach"
    enough = next((m for m in advice.more_memory if MILLISECONDS / m.measured.ms_per_token >= target), None)
    if memory["fits"] is False:
        return {
            "answer": "no",
            "reason": f"{memory['needed_gib']:.1f} GiB are needed for this cache and the dense parts, the device has "
            f"{memory['device_gib']:g}",
        }
    if memory["capacity_fraction"] >= 1:
        return {"answer": "not needed", "reason": "all experts fit into the budget: nothing has to be offloaded"}
    if speed >= target:
        return {"answer": "yes", "reason": f"{speed:.1f} tokens/s, above {target:g}; {share}"}
    if bound < target and enough is None:
        return {
            "answer": "no",
            "reason": f"even perfect foresight reaches {bound:.1f} tokens/s at this budget, below {target:g}",
        }
    if enough is not None:
        return {
            "answer": "with more memory",
            "reason": f"{speed:.1f} tokens/s, below {target:g}; {_size(enough.room)} give "
            f"{MILLISECONDS / enough.measured.ms_per_token:.1f}",
        }
    return {"answer": "no", "reason": f"{speed:.1f} tokens/s, below {target:g}; {share}"}


def _memory(advice: Advice) -> dict[str, Any]:
    asked, meta = advice.question, advice.metadata
    mean_bytes = sum(meta.expert_bytes) / meta.num_layers
    cache_bytes = asked.room.total if asked.room.in_bytes else asked.room.total * mean_bytes
    cache_bytes = min(cache_bytes, sum(meta.expert_bytes) * meta.num_experts)
    needed = (cache_bytes + advice.dense_bytes) / GIB
    return {
        **_room(asked.room),
        "cache_mib": cache_bytes / MIB,
        "capacity_experts": advice.capacity_experts,
        "capacity_fraction": advice.capacity_experts / meta.num_model_experts,
        "dense_mib": advice.dense_bytes / MIB,
        "dense_is_assumed": asked.dense_bytes is None,
        "needed_gib": needed,
        "device_gib": asked.device.memory_gib,
        "fits": None if asked.device.memory_gib is None else needed <= asked.device.memory_gib,
    }


def _room(room: Room) -> dict[str, float | None]:
    return {
        "budget_mib": room.total / MIB if room.in_bytes else None,
        "budget_experts": None if room.in_bytes else room.total,
    }


def _size(room: Room) -> str:
    return f"{room.total / MIB:.0f} MiB" if room.in_bytes else f"{room.total} experts"


def _measured(measured: Measured) -> dict[str, Any]:
    total = measured.timed.replay.total
    return {
        "plan": str(measured.plan),
        **measured.plan.row(),
        "ms_per_token": measured.ms_per_token,
        "tokens_per_second": MILLISECONDS / measured.ms_per_token,
        "stall_ms_per_token": measured.timed.stall.value,
        "hit_rate": measured.timed.hits.value,
        "mib_per_token": measured.timed.moved.value,
        "token_step_ms": measured.timed.token_step_ms,
        "layer_step_ms": measured.timed.layer_step_ms,
        "prefetches_useless": total.prefetches_useless,
        "router_weight_given_up": total.mass_given_up,
    }


def _slots(advice: Advice) -> list[int] | None:
    """Experts that each layer may keep, where layers do not share."""
    budget, meta = advice.best.budget, advice.metadata
    if len(budget.budget_G) != meta.num_layers or advice.best.plan.split == "shared":
        return None
    first_M = np.arange(meta.num_layers) * meta.num_experts
    return [int(slots) for slots in budget.budget_G // budget.units_M[first_M]]


def _interval(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _notes(advice: Advice) -> list[str]:
    notes = []
    if advice.prefill == "token_by_token":
        notes.append("The trace holds prefill alone; it was replayed as if it was decoded.")
    if advice.ahead.high < 0:
        notes.append("The runner-up is faster on the prompts that confirm: take it, or record more to choose on.")
    elif advice.ahead.low <= 0:
        notes.append("These prompts do not tell the best plan from the runner-up: take the simpler one.")
    if advice.question.dense_bytes is None:
        notes.append("Dense parts are assumed to weigh what a token's experts do; say better with --dense-mib.")
    if advice.best.timed.replay.total.mass_given_up > 0:
        notes.append("The best plan gives up router weight: measure the model's answers before you ship it.")
    if advice.best.ms_per_token > 1.1 * advice.tried[0].ms_per_token:
        notes.append("The best plan did clearly better where it was chosen than where it was confirmed.")
    return notes
