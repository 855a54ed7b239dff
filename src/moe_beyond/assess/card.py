"""The suitability card: is this model worth offloading, by what its routing alone says?

The verdict asks two things of a cache of a given size. Could any policy hit often enough (Belady's bound)? And is there
structure to hit on: does LRU, or pinning the popular experts, beat the share of experts that the cache holds? Routing
at random fails the second whatever the bound promises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moe_beyond.assess.settings import AssessSettings
from moe_beyond.assess.statistics import LayerStatistics
from moe_beyond.traces.schema import Trace, TraceMetadata, expert_counts_LE

_SHORT_TRACE = 0.02
"""Share of compulsory misses above which the card warns that hit rates are understated."""

Verdict = Literal["go", "go with a bigger cache", "do not"]


@dataclass(frozen=True)
class HitCurve:
    """Hit rates of one policy by capacity; both arrays rise together, capacities in experts of the whole model."""

    capacity_experts: npt.NDArray[np.int64]
    hit_rate: npt.NDArray[np.float64]

    def at(self, capacity_experts: float) -> float:
        """The hit rate at a capacity, linear between the points; an empty cache hits nothing."""
        capacities = np.concatenate([[0], self.capacity_experts])
        return float(np.interp(capacity_experts, capacities, np.concatenate([[0.0], self.hit_rate])))


Curves = Mapping[str, HitCurve]
"""`lru`, `belady` and `static_popularity`."""


def static_popularity_curve(trace: Trace) -> HitCurve:
    """Hit rate of pinning the most popular (layer, expert) pairs, at every capacity from 1 to L * E.

    Popularity is learned on one half of the trace and judged on the other, both ways: every second prompt, or the
    halves of a single one. Judged on what it was learned from, it would look good on any short trace.
    """
    prompt_T = np.repeat(np.arange(trace.num_prompts), np.diff(trace.prompt_offsets))
    half_T = prompt_T % 2 == 0 if trace.num_prompts > 1 else np.arange(trace.num_tokens) < trace.num_tokens // 2
    halves = [
        expert_counts_LE(trace.experts_TLK[half], trace.metadata.num_experts).reshape(-1) for half in (half_T, ~half_T)
    ]
    hits = np.zeros(halves[0].size, np.int64)
    for learned, judged in (halves, halves[::-1]):
        hits += np.cumsum(judged[np.argsort(-learned, kind="stable")])
    return HitCurve(np.arange(1, hits.size + 1, dtype=np.int64), hits / hits[-1])


def suitability_card(
    trace: Trace, layers: list[LayerStatistics], curves: Curves, settings: AssessSettings
) -> dict[str, Any]:
    """The card as plain numbers and sentences, ready for JSON.

    Args:
        trace: The tokens that were assessed.
        layers: Statistics of each MoE layer.
        curves: Hit curves named `lru`, `belady` and `static_popularity`.
        settings: Budgets and thresholds.
    """
    metadata = trace.metadata
    budgets = {
        "budget": _budget(metadata, curves, settings.budget_fraction),
        "bigger_budget": _budget(metadata, curves, settings.bigger_budget_fraction),
    }
    shares = overlap_shares(layers)
    verdict, reasons = judge(budgets["budget"], budgets["bigger_budget"], settings)
    headline = {
        "previous_token_overlap": _mean([layer.previous_token_overlap for layer in layers]),
        "entropy_ratio": _mean([layer.entropy_bits / layer.max_entropy_bits for layer in layers]),
        "gini": _mean([layer.gini for layer in layers]),
        "top_share": _mean([layer.top_share for layer in layers]),
        "reuse_distance_median": _mean([layer.reuse_distance_median for layer in layers]),
        "first_use_share": _mean([layer.first_use_share for layer in layers]),
        "compulsory_miss_share": 1 - curves["belady"].at(metadata.num_model_experts),
    }
    for window in settings.windows:
        sizes = [layer.working_set[window] for layer in layers]
        headline[f"working_set_{window}_fraction"] = _mean(
            [None if size is None else size / metadata.num_experts for size in sizes]
        )
    return {
        "verdict": verdict,
        "reasons": [*reasons, *_context(metadata, shares, curves)],
        "model_id": metadata.model_id,
        "num_layers": metadata.num_layers,
        "num_experts": metadata.num_experts,
        "top_k": metadata.top_k,
        "model_experts": metadata.num_model_experts,
        "model_mib": sum(metadata.expert_bytes) * metadata.num_experts / 2**20,
        "token_cycle_experts": metadata.token_cycle,
        "token_cycle_fraction": metadata.token_cycle / metadata.num_model_experts,
        "token_cycle_mib": sum(metadata.expert_bytes) * metadata.top_k / 2**20,
        "prompts": trace.num_prompts,
        "tokens": trace.num_tokens,
        "decoding": metadata.decoding,
        "source": metadata.source,
        "licence": metadata.licence,
        "shares": shares,
        "headline": headline,
        **budgets,
    }


def overlap_shares(layers: list[LayerStatistics]) -> dict[str, float | None]:
    """Where the overlap of successive tokens comes from, as means over layers that add up to that overlap.

    `chance`: k of E experts meet by accident. `static_skew`: what popular experts add to that for unrelated tokens.
    `temporal_locality`: the rest, what only the nearness of two tokens explains; below 0 where neighbours
    avoid each other.
    """
    chance = _mean([layer.overlap_by_chance for layer in layers])
    by_skew = _mean([layer.overlap_by_skew for layer in layers])
    overlap = _mean([layer.previous_token_overlap for layer in layers])
    if chance is None or by_skew is None or overlap is None:
        return {"chance": chance, "static_skew": None, "temporal_locality": None}
    return {"chance": chance, "static_skew": by_skew - chance, "temporal_locality": overlap - by_skew}


def judge(
    budget: dict[str, float], bigger_budget: dict[str, float], settings: AssessSettings
) -> tuple[Verdict, list[str]]:
    """The verdict and one sentence for each test that decided it."""
    passed, reasons = _tests(budget, settings)
    if passed:
        return "go", reasons
    bigger_passed, more = _tests(bigger_budget, settings)
    return ("go with a bigger cache" if bigger_passed else "do not"), reasons + more


def _tests(budget: dict[str, float], settings: AssessSettings) -> tuple[bool, list[str]]:
    held, bound = budget["capacity_fraction"], budget["belady_hit_rate"]
    enough = bound >= settings.min_bound_hit_rate
    gain = max(budget["lru_hit_rate"], budget["static_popularity_hit_rate"]) - held
    structured = gain >= settings.min_gain
    size = f"With {held:.0%} of the experts in fast memory ({_mib(budget['mib'])})"
    return enough and structured, [
        f"{size} no policy hits more than {bound:.0%} (Belady's bound), {'at least' if enough else 'below'} the "
        f"{settings.min_bound_hit_rate:.0%} that are asked for; a perfect one would move "
        f"{_mib(budget['belady_mib_per_token'])} a token.",
        f"{size} LRU hits {budget['lru_hit_rate']:.0%} and pinned popular experts "
        f"{budget['static_popularity_hit_rate']:.0%}: the better one is {100 * gain:+.0f} points from the share held, "
        f"{'at least' if structured else 'short of'} the {100 * settings.min_gain:+.0f} that show structure.",
    ]


def _context(metadata: TraceMetadata, shares: dict[str, float | None], curves: Curves) -> list[str]:
    others = (metadata.num_layers - 1) * metadata.top_k
    sentences = [
        f"One token touches {metadata.token_cycle} of {metadata.num_model_experts} experts, {others} of them between "
        f"two visits to a layer: a global LRU of at most {others} never hits."
    ]
    skew, temporal = shares["static_skew"], shares["temporal_locality"]
    if skew is not None and temporal is not None:
        stronger = "temporal locality: follow the text" if temporal > skew else "static skew: pin what is popular"
        sentences.append(
            f"Beyond chance, popularity explains {100 * skew:.1f} points of the overlap of successive tokens and their "
            f"nearness {100 * temporal:.1f}; the lever is {stronger}."
        )
    compulsory = 1 - curves["belady"].at(metadata.num_model_experts)
    if compulsory > _SHORT_TRACE:
        sentences.append(
            f"The trace is short: {compulsory:.0%} of its accesses are the first to their expert, which no cache that "
            "starts empty can hit; longer use hits more."
        )
    return sentences


def _budget(metadata: TraceMetadata, curves: Curves, fraction: float) -> dict[str, float]:
    capacity = fraction * metadata.num_model_experts
    token_mib = sum(metadata.expert_bytes) * metadata.top_k / 2**20
    numbers = {
        "capacity_fraction": fraction,
        "capacity_experts": round(capacity),
        "mib": fraction * sum(metadata.expert_bytes) * metadata.num_experts / 2**20,
    }
    for name in ("lru", "static_popularity", "belady"):
        numbers[f"{name}_hit_rate"] = curves[name].at(capacity)
        numbers[f"{name}_mib_per_token"] = (1 - numbers[f"{name}_hit_rate"]) * token_mib
    return numbers


def _mib(size: float) -> str:
    return f"{size:.0f} MiB" if size >= 10 else f"{size:.2f} MiB"


def _mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None
