"""The suitability card: is this model worth offloading, judged by its routing alone?

The verdict tests two things of a cache of a given size. Could any policy hit often enough (Belady's bound)? And is
there structure to hit on: does LRU, or pinning the popular experts, beat the share of experts that the cache holds?
Routing at random fails the second test, however high the bound.

Shape suffixes: C capacities in experts of the whole model, 0 to L * E.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.assess.settings import AssessSettings
from moe_beyond.traces.schema import Trace, TraceMetadata, expert_counts_LE

_SHORT_TRACE = 0.02
"""Share of compulsory misses above which the card warns that hit rates are understated."""

Verdict = Literal["go", "go with a bigger cache", "do not"]


Curve = npt.NDArray[np.float64]
"""Hit rates of one policy [C]."""
Curves = Mapping[str, Curve]
"""`lru`, `belady` and `static_popularity`."""


def hit_rate_at(curve_C: Curve, capacity_experts: float) -> float:
    """The hit rate at a capacity, linear between whole experts."""
    return float(np.interp(capacity_experts, np.arange(len(curve_C)), curve_C))


def static_popularity_curve(trace: Trace) -> Curve:
    """Hit rate of pinning the most popular (layer, expert) pairs, at every capacity, counted as Belady's bound is.

    The cache starts empty: in each half the first use of a pinned expert loads it and is a miss, so that no capacity
    hits more than the bound of the same tokens does.

    Popularity is counted on one half of the trace and tested on the other, both ways: every second prompt, or the
    halves of a single one. Tested on what it was counted on, it would look good on any short trace.
    """
    prompt_T = np.repeat(np.arange(trace.num_prompts), np.diff(trace.prompt_offsets))
    half_T = prompt_T % 2 == 0 if trace.num_prompts > 1 else np.arange(trace.num_tokens) < trace.num_tokens // 2
    halves = [
        expert_counts_LE(trace.experts_TLK[half], trace.metadata.num_experts).reshape(-1) for half in (half_T, ~half_T)
    ]
    hits_C = np.zeros(halves[0].size + 1, np.int64)
    for counted, tested in (halves, halves[::-1]):
        hits_C[1:] += np.cumsum(np.maximum(tested - 1, 0)[np.argsort(-counted, kind="stable")])
    return np.asarray(hits_C / (halves[0] + halves[1]).sum())


def suitability_card(trace: Trace, layers: pl.DataFrame, curves: Curves, settings: AssessSettings) -> dict[str, Any]:
    """The card as plain numbers and sentences, ready for JSON.

    Args:
        trace: The tokens that were assessed.
        layers: As `layer_statistics` makes them.
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
    entropy_ratio = (pl.col("entropy_bits") / pl.col("max_entropy_bits")).alias("entropy_ratio")
    names = ("gini", "top_share", "reuse_distance_median", "first_use_share")
    working_sets = layers.select(pl.col(r"^working_set_\d+$") / metadata.num_experts).rename("{}_fraction".format)
    headline = {
        **_means(layers.select("previous_token_overlap", entropy_ratio, *names)),
        "compulsory_miss_share": 1 - float(curves["belady"][-1]),
        **_means(working_sets),
    }
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


def overlap_shares(layers: pl.DataFrame) -> dict[str, float | None]:
    """Where the overlap of successive tokens comes from, as means over layers that add up to that overlap.

    `chance`: k of E experts coincide by accident. `static_skew`: what popular experts add to that for unrelated tokens.
    `temporal_locality`: the rest, what only the nearness of two tokens explains; below 0 where neighbours
    avoid each other.
    """
    names = ("overlap_by_chance", "overlap_by_skew", "previous_token_overlap")
    chance, by_skew, overlap = _means(layers.select(names)).values()
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
    share, bound = budget["capacity_fraction"], budget["belady_hit_rate"]
    enough = bound >= settings.min_bound_hit_rate
    gain = max(budget["lru_hit_rate"], budget["static_popularity_hit_rate"]) - share
    structured = gain >= settings.min_gain
    size = f"With {share:.0%} of the experts in fast memory ({_mib(budget['mib'])})"
    return enough and structured, [
        f"{size} no lossless policy that loads on demand hits more than {bound:.0%} (Belady's bound), "
        f"{'at least' if enough else 'below'} the {settings.min_bound_hit_rate:.0%} that are required; at that bound "
        f"{_mib(budget['belady_mib_per_token'])} a token are loaded.",
        f"{size} LRU hits {budget['lru_hit_rate']:.0%} and pinned popular experts "
        f"{budget['static_popularity_hit_rate']:.0%}, first loads counted as misses: the better one is "
        f"{100 * gain:+.0f} points from that share, "
        f"{'at least' if structured else 'short of'} the {100 * settings.min_gain:+.0f} that show structure.",
    ]


def _context(metadata: TraceMetadata, shares: dict[str, float | None], curves: Curves) -> list[str]:
    others = (metadata.num_layers - 1) * metadata.top_k
    sentences = [
        f"One token uses {metadata.token_cycle} of {metadata.num_model_experts} experts, {others} of them between "
        f"two uses of a layer: a global LRU of at most {others} never hits."
    ]
    skew, temporal = shares["static_skew"], shares["temporal_locality"]
    if skew is not None and temporal is not None:
        stronger = "temporal locality: follow the text" if temporal > skew else "static skew: pin what is popular"
        sentences.append(
            f"Beyond chance, popularity explains {100 * skew:.1f} points of the overlap of successive tokens and their "
            f"nearness {100 * temporal:.1f}; what helps most is {stronger}."
        )
    compulsory = 1 - curves["belady"][-1]
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
        numbers[f"{name}_hit_rate"] = hit_rate_at(curves[name], capacity)
        numbers[f"{name}_mib_per_token"] = (1 - numbers[f"{name}_hit_rate"]) * token_mib
    return numbers


def _mib(size: float) -> str:
    return f"{size:.0f} MiB" if size >= 10 else f"{size:.2f} MiB"


def _means(layers: pl.DataFrame) -> dict[str, float | None]:
    """The mean of each column over the layers that have a value."""
    columns = {column.name: column.drop_nulls().to_numpy() for column in layers}
    return {name: float(np.mean(values)) if len(values) else None for name, values in columns.items()}
