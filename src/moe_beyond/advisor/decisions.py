"""What follows from an advice beside the plan: memory, pins, the worst domain, verify blocks.

Shape suffixes: A accesses, P prompts.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from moe_beyond.advisor.choice import PINS, WARM, Advice, Measured
from moe_beyond.simulator.engine.results import MIB
from moe_beyond.simulator.policies.on_demand import Lru

_NO_CHANCE = 1.01


def decisions(advice: Advice) -> dict[str, Any]:
    """For JSON: `memory_sweep`, `pins`, `warm_start`, `domains`, `speculation`; and `advice`, the same in sentences."""
    found = {
        "memory_sweep": _sweep(advice),
        "pins": _beside_lru(advice, PINS),
        "warm_start": _beside_lru(advice, WARM),
        "domains": _domains(advice.best),
        "speculation": _speculation(advice),
    }
    return {**found, "advice": [*_sentences(advice, found)]}


def demand(measured: Measured) -> tuple[float, float]:
    """Experts that a decode step uses on average, and their bytes."""
    events = measured.timed.events
    members_A = events.members_A[events.is_decode_A]
    steps = max(1, int(events.is_decode_S.sum()))
    return len(members_A) / steps, float(events.expert_bytes_M[members_A].sum()) / steps


def _sweep(advice: Advice) -> list[dict[str, Any]]:
    experts, num_bytes = demand(advice.best)
    rows = []
    for size, measured in sorted(
        {**advice.other_memory, advice.settings.size: advice.best}.items(), key=lambda item: item[0].total
    ):
        rows.append(
            {
                **size.row(),
                "over_one_steps_demand": size.total / (num_bytes if size.in_bytes else experts),
                "ms_per_token": measured.ms_per_token,
                "tokens_per_second": measured.timed.tokens_per_second,
                "hit_rate": measured.timed.hits.value,
                "below_cliff": size.total < (num_bytes if size.in_bytes else experts),
                **_memory_left(advice, measured),
            }
        )
    for smaller, row in pairwise(rows):
        # a cache that keeps more is never slower by itself, but for the chance of single evictions
        row["slower_than_smaller"] = row["ms_per_token"] > _NO_CHANCE * smaller["ms_per_token"]
    return rows


def _memory_left(advice: Advice, measured: Measured) -> dict[str, Any]:
    """What the device's memory leaves beside a cache and the dense weights: MiB of page cache, and whether both fit."""
    device = advice.settings.device
    if device.memory_gib is None:
        return {"page_cache_mib": None, "dense_fits": None, "slower_than_smaller": False}
    left = device.memory_left(advice.workload.held_bytes(measured.budget.capacity_experts))
    pages = None if device.page_gb_per_s is None else max(0.0, left) / MIB
    return {"page_cache_mib": pages, "dense_fits": left >= 0, "slower_than_smaller": False}


def _beside_lru(advice: Advice, prefix: str) -> dict[str, Any] | None:
    """The best of the policies of a prefix, with its number, and LRU alone, where plans were chosen."""
    best = [one for one in advice.tried if one.plan.policy.startswith(prefix) and one.plan.fetch is None]
    lru = [one for one in advice.tried if one.plan.policy == Lru.name and one.plan.fetch is None]
    if not (best and lru):
        return None
    return {
        "experts": int(best[0].plan.policy.removeprefix(prefix)),
        "ms_per_token": best[0].ms_per_token,
        "lru_ms_per_token": lru[0].ms_per_token,
    }


def _domains(measured: Measured) -> list[dict[str, Any]]:
    """Time of a token by domain, slowest first."""
    trace, time = measured.timed.events.trace, measured.timed.time
    domains_P = np.asarray(() if trace is None else trace.domains)
    rows = []
    for domain in dict.fromkeys(domains_P.tolist()):
        of_domain_P = domains_P == domain
        tokens = float(time.denominator_P[of_domain_P].sum())
        if tokens:
            ms = float(time.numerator_P[of_domain_P].sum()) / tokens
            rows.append({"domain": domain, "prompts": int(of_domain_P.sum()), "ms_per_token": ms})
    return sorted(rows, key=lambda row: -row["ms_per_token"])


def _speculation(advice: Advice) -> dict[str, Any] | None:
    if advice.without_blocks is None:
        return None
    return {
        "block_tokens": advice.settings.block,
        "accepted_share": advice.settings.accepted_share,
        "experts_over_one_token": demand(advice.best)[0] / demand(advice.without_blocks)[0],
        "ms_per_accepted_token": advice.best.ms_per_token,
        "ms_per_token_without": advice.without_blocks.ms_per_token,
    }


def _sentences(advice: Advice, found: dict[str, Any]) -> list[str]:
    experts, num_bytes = demand(advice.best)
    size = advice.settings.size
    share = size.total / (num_bytes if size.in_bytes else experts)
    of_step = f"One decode step uses {experts:.0f} experts ({num_bytes / MIB:.0f} MiB)"
    said = [
        f"{of_step}: this cache holds {share:.2f} of that, below the cliff, where a cache that layers share hits "
        "hardly anything; give it more."
        if share < 1
        else f"{of_step}: below that is the cliff; this cache holds {share:.1f} times as much."
    ]
    said += _more_is_slower(advice, found["memory_sweep"])
    if (pins := found["pins"]) is not None:
        said.append(
            f"Pins are {_than_lru(pins)}: with {pins['experts']} experts pinned, "
            f"{pins['experts'] / advice.capacity_experts:.0%} of the cache and the best split tried, {_times(pins)}."
        )
    if (warm := found["warm_start"]) is not None:
        said.append(
            f"A warm start from the prompt's routing is {_than_lru(warm)}: with the {warm['experts']} experts of each "
            f"layer that it used most fetched ahead of the first token, {_times(warm)}."
        )
    if len(found["domains"]) > 1:
        worst = found["domains"][0]
        said.append(
            f"The slowest domain, {worst['domain']} ({worst['prompts']} prompts), takes {worst['ms_per_token']:.1f} ms "
            f"a token, the mean {advice.best.ms_per_token:.1f}."
        )
    if (blocks := found["speculation"]) is not None:
        ratio = blocks["ms_per_accepted_token"] / blocks["ms_per_token_without"] - 1
        verdict = f"slow decoding by {ratio:.0%}: do without" if ratio > 0 else f"take {-ratio:.0%} less time"
        said.append(
            f"Verify blocks of {blocks['block_tokens']} tokens use {blocks['experts_over_one_token']:.1f} times the "
            f"experts of one and {verdict} ({blocks['ms_per_accepted_token']:.1f} ms a kept token, "
            f"{blocks['ms_per_token_without']:.1f} without; drafting is not counted)."
        )
    return said


def _more_is_slower(advice: Advice, sweep: list[dict[str, Any]]) -> list[str]:
    """A sentence on the smallest cache that is slower than the next smaller one; none where memory is no matter."""
    device = advice.settings.device
    if not device.depends_on_memory:
        return []
    for smaller, row in pairwise(sweep):
        if row["slower_than_smaller"]:
            lost = (
                f"the page cache keeps {row['page_cache_mib']:.0f} MiB instead of {smaller['page_cache_mib']:.0f}"
                if row["dense_fits"]
                else "dense weights no longer fit and come by page faults"
                if device.fault_gb_per_s is not None
                else "cache and dense weights no longer fit"
            )
            return [
                f"More cache is slower from {size_text(row)} on, {row['ms_per_token']:.1f} ms a token instead of "
                f"{smaller['ms_per_token']:.1f} with {size_text(smaller)}: of the {device.memory_gib:g} GiB {lost}."
            ]
    return [f"Of the caches tried none is slower than a smaller one within the {device.memory_gib:g} GiB of memory."]


def size_text(row: dict[str, Any]) -> str:
    """The size of a cache, from a row of the sweep."""
    return f"{row['budget_mib']:.0f} MiB" if row["budget_mib"] is not None else f"{row['budget_experts']} experts"


def _than_lru(row: dict[str, Any]) -> str:
    return ("faster" if row["ms_per_token"] < row["lru_ms_per_token"] else "no faster") + " than LRU alone"


def _times(row: dict[str, Any]) -> str:
    return f"a token takes {row['ms_per_token']:.1f} ms, with LRU {row['lru_ms_per_token']:.1f}"
