"""An advice as a document, verdict, plan, numbers and what they rest on, and on one screen."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from moe_beyond.advisor.choice import Advice, Measured
from moe_beyond.advisor.decisions import decisions, size_text
from moe_beyond.advisor.one_replay import NO_PREFILL, decoding, first_token
from moe_beyond.devices.device import MILLISECONDS, NO_RECORDING
from moe_beyond.devices.workload import ASSUMED_DENSE, dense_size
from moe_beyond.simulator.engine.results import MIB

GIB = 2**30
_COLOURS = {"yes": "green", "not needed": "green", "with more memory": "yellow", "no": "red"}
_ROWS = {"best": "best", "runner_up": "runner-up", "today": "engines today"}


def document(advice: Advice, target_tokens_per_second: float) -> dict[str, Any]:
    """For JSON and for a screen.

    Args:
        advice: What `advisor.advise` found.
        target_tokens_per_second: The speed from which on offloading is worth it.
    """
    settings = advice.settings
    memory = _memory(advice)
    fit, chose, confirmed = advice.num_prompts
    return {
        "verdict": _verdict(advice, target_tokens_per_second, memory),
        "model": advice.metadata.model_id,
        "device": settings.device.name,
        "memory": memory,
        "best": _measured(advice.best)
        | {
            "ms_per_token_low": advice.interval.low,
            "ms_per_token_high": advice.interval.high,
            "ms_per_token_where_chosen": advice.tried[0].ms_per_token,
            "slots_per_layer": _slots(advice),
            **first_token(advice.best.timed, advice.workload),
        },
        "runner_up": _measured(advice.runner_up) | {"slower_by_ms": asdict(advice.ahead)},
        "today": _measured(advice.today) | {"slower_by_ms": asdict(advice.saved)},
        "speed": {
            "all_resident_ms_per_token": advice.bound.compute_ms_per_token,
            "clairvoyant_bound_ms_per_token": advice.bound.ms_per_token,
            "share_of_bound": advice.share_of_bound,
        },
        "more_memory": [
            {**size.row(), "ms_per_token": more.ms_per_token, "tokens_per_second": more.timed.tokens_per_second}
            for size, more in advice.more_memory.items()
        ],
        "decisions": decisions(advice),
        "tried": [{"plan": str(other.plan), "ms_per_token": other.ms_per_token} for other in advice.tried],
        "not_tried": advice.not_tried,
        "prompts": {"learned_on": fit, "chosen_on": chose, "confirmed_on": confirmed},
        "settings": {
            "token_step_ms": settings.token_step_ms * settings.device.predictor_slowdown,
            "layer_step_ms": settings.layer_step_ms * settings.device.predictor_slowdown,
            "lookahead_layers": settings.lookahead,
            "batch": settings.batch,
            "block_tokens": settings.block,
            "accepted_share": settings.accepted_share,
            "overrun": settings.overrun,
            "lossy": settings.lossy,
            "target_tokens_per_second": target_tokens_per_second,
            "seed": settings.seed,
        },
        "notes": _notes(advice),
    }


def _verdict(advice: Advice, target: float, memory: dict[str, Any]) -> dict[str, str]:
    speed, bound = advice.best.timed.tokens_per_second, MILLISECONDS / advice.bound.ms_per_token
    share = f"{100 * advice.share_of_bound:.0f} % of what perfect foresight would reach"
    more = {size: measured.timed.tokens_per_second for size, measured in advice.more_memory.items()}
    enough = next((size for size in more if more[size] >= target), None)
    if memory["fits"] is False:
        needed, has = memory["needed_gib"], memory["device_gib"]
        answer = "no"
        reason = f"{needed:.1f} GiB are needed for this cache and the dense parts, the device has {has:g}"
    elif memory["capacity_fraction"] >= 1:
        answer, reason = "not needed", "all experts fit into the budget: nothing has to be offloaded"
    elif speed >= target:
        answer, reason = "yes", f"{speed:.1f} tokens/s, above {target:g}; {share}"
    elif enough is not None:
        answer = "with more memory"
        reason = f"{speed:.1f} tokens/s, below {target:g}; {enough} give {more[enough]:.1f}"
    elif bound < target:
        answer = "no"
        reason = f"even perfect foresight reaches {bound:.1f} tokens/s at this budget, below {target:g}"
    else:
        answer, reason = "no", f"{speed:.1f} tokens/s, below {target:g}; {share}"
    return {"answer": answer, "reason": reason}


def _memory(advice: Advice) -> dict[str, Any]:
    settings, meta = advice.settings, advice.metadata
    size, device_gib = settings.size, settings.device.memory_gib
    model_bytes = sum(meta.expert_bytes) * meta.num_experts
    cache_bytes = size.total if size.in_bytes else size.total * (model_bytes / meta.num_model_experts)
    cache_bytes = min(cache_bytes, model_bytes)
    needed = (cache_bytes + advice.dense_bytes) / GIB
    return {
        **size.row(),
        "cache_mib": cache_bytes / MIB,
        "capacity_experts": advice.capacity_experts,
        "capacity_fraction": advice.capacity_experts / meta.num_model_experts,
        "dense_mib": advice.dense_bytes / MIB,
        "dense_size_from": dense_size(meta, settings.dense_bytes, settings.device)[1],
        "needed_gib": needed,
        "device_gib": device_gib,
        "fits": None if device_gib is None else needed <= device_gib,
    }


def _measured(measured: Measured) -> dict[str, Any]:
    total = measured.timed.replay.total
    return {
        "plan": str(measured.plan),
        **measured.plan.row(),
        **decoding(measured.timed),
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


def _notes(advice: Advice) -> list[str]:
    best, ahead = advice.best, advice.ahead
    events, slots = best.timed.events, best.budget.capacity_experts
    held = best.budget.held_at_most(events.members_A, events.offsets_N, overrun=advice.settings.overrun)
    indistinguishable = not (ahead.below(0) or ahead.above(0))
    notes = {
        "The trace holds prefill alone; it was replayed as if it was decoded.": advice.prefill == "token_by_token",
        "The runner-up is faster on the prompts that confirm: take it, or record more to choose on.": ahead.below(0),
        "These prompts do not separate the best plan from the runner-up: take the simpler one.": indistinguishable,
        NO_PREFILL: advice.best.timed.first_token.counts and advice.settings.device.prefill_tokens_per_s is None,
        NO_RECORDING: advice.settings.device.recording is None and advice.settings.device.fit_error is None,
        ASSUMED_DENSE: _memory(advice)["dense_size_from"] == "assumed",
        f"Up to {held} experts are held, the cache is for {slots}: what an event has just used is kept.": held > slots,
        "The best plan needs a model that was trained to choose its experts a layer earlier.": (
            best.needs_another_router
        ),
        "The best plan loses router weight: evaluate the model's outputs before you ship it.": (
            best.timed.replay.total.mass_given_up > 0
        ),
        "The best plan was clearly better where it was chosen than where it was confirmed.": (
            best.ms_per_token > 1.1 * advice.tried[0].ms_per_token
        ),
    }
    return [note for note, applies in notes.items() if applies]


def print_advice(found: dict[str, Any]) -> None:
    """Print what `document` made."""
    console, verdict, memory = Console(), found["verdict"], found["memory"]
    colour = _COLOURS[verdict["answer"]]
    title = f"{found['model']} on {found['device']}"
    console.print(Panel(f"[bold {colour}]{verdict['answer']}[/]: {verdict['reason']}", title=title, expand=False))
    assumed = " (assumed)" if memory["dense_size_from"] == "assumed" else ""
    has = "" if memory["device_gib"] is None else f", the device has {memory['device_gib']:g}"
    console.print(
        f"Cache {memory['cache_mib']:.0f} MiB = {memory['capacity_experts']} experts "
        f"({100 * memory['capacity_fraction']:.1f} %), dense parts {memory['dense_mib']:.0f} MiB{assumed}: "
        f"{memory['needed_gib']:.1f} GiB{has}."
    )
    for name, label in _ROWS.items():
        console.print(f"[bold]{label:14}[/]{found[name]['plan']}", highlight=False)
    console.print(_plans(found))
    speed, best = found["speed"], found["best"]
    console.print(
        f"Best between {best['ms_per_token_low']:.1f} and {best['ms_per_token_high']:.1f} ms (95 %). "
        f"All in memory {speed['all_resident_ms_per_token']:.1f} ms; perfect foresight at this budget "
        f"{speed['clairvoyant_bound_ms_per_token']:.1f} ms, of which the best plan reaches "
        f"{100 * speed['share_of_bound']:.0f} %."
    )
    if best["modelled_first_token_ms"] is not None:
        start = best["modelled_start_ms"]
        cold = "" if start is None else f"; starting the engine takes {start / MILLISECONDS:.1f} s more"
        console.print(
            f"First token, modelled: after {best['modelled_first_token_ms'] / MILLISECONDS:.2f} s on average, "
            f"{best['modelled_first_token_ms_longest'] / MILLISECONDS:.2f} s at most{cold}."
        )
    if best["slots_per_layer"] is not None:
        console.print("Experts a layer: " + " ".join(map(str, best["slots_per_layer"])))
    console.print("Memory: " + "; ".join(map(_size, found["decisions"]["memory_sweep"])))
    for sentence in found["decisions"]["advice"]:
        console.print(sentence, highlight=False)
    prompts = found["prompts"]
    console.print(
        f"Chosen among {len(found['tried'])} plans on {prompts['chosen_on']} prompts after learning from "
        f"{prompts['learned_on']}; the times above are of {prompts['confirmed_on']} others."
    )
    for note in found["notes"]:
        console.print(f"[dim]- {note}[/]")


def _plans(found: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("ms/token", "tokens/s", "stall ms", "hit rate", "MiB/token", "slower by ms"):
        table.add_column(heading, justify="right")
    for name, label in _ROWS.items():
        row = found[name]
        slower = row.get("slower_by_ms")
        behind = "" if slower is None else f"{slower['value']:.1f} ({slower['low']:.1f} to {slower['high']:.1f})"
        table.add_row(
            label,
            f"{row['ms_per_token']:.1f}",
            f"{row['tokens_per_second']:.2f}",
            f"{row['stall_ms_per_token']:.1f}",
            f"{100 * row['hit_rate']:.1f} %",
            f"{row['mib_per_token']:.1f}",
            behind,
        )
    return table


def _size(row: dict[str, Any]) -> str:
    marks = {"below the cliff": row["below_cliff"], "slower than a smaller cache": row["slower_than_smaller"]}
    said = ", ".join(mark for mark, applies in marks.items() if applies)
    return f"{size_text(row)} {row['tokens_per_second']:.2f} tokens/s" + (f" ({said})" if said else "")
