"""All results of the assess stage: tables, hit curves and the suitability card of a trace.

Shape suffixes: L MoE layers, E experts in a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.assess.card import Curve, Curves, static_popularity_curve, suitability_card
from moe_beyond.assess.pairs import pair_tables
from moe_beyond.assess.settings import AssessSettings
from moe_beyond.assess.statistics import layer_statistics, reuse_histogram
from moe_beyond.errors import InputError
from moe_beyond.formats import importers
from moe_beyond.simulator.bounds.hit_curves import belady_curve, lru_curve
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.traces import store
from moe_beyond.traces.schema import Trace, expert_counts_LE

_COMPARED = ("previous_token_overlap", "entropy_ratio", "gini", "working_set_64_fraction")
_BOUNDS = ("lru_hit_rate", "static_popularity_hit_rate", "belady_hit_rate")


@dataclass(frozen=True)
class Assessment:
    """Results of the assessment of a trace.

    Attributes:
        card: Verdict, reasons, shares and headline numbers, ready for JSON.
        tables: By name. `layers`: a row a layer, columns of `layer_statistics` and, by layer, of `pair_tables`.
            `popularity`: layer, expert, share; shares of a layer add up to 1. `hit_curves`: policy, capacity_experts,
            capacity_fraction, hit_rate. `reuse_distances`: distance (tokens), cumulative_share of all accesses; first
            uses are never reached. `coactivation` and `transitions`: pairs of experts within a layer and in
            neighbouring layers, see `pair_tables`.
    """

    card: dict[str, Any]
    tables: dict[str, pl.DataFrame]

    def metrics(self) -> dict[str, Any]:
        """The numbers of the card."""
        verdict = {"do not": 0, "go with a bigger cache": 1, "go": 2}[self.card["verdict"]]
        sections = ("shares", "headline", "budget", "bigger_budget")
        sizes = ("num_layers", "num_experts", "top_k", "token_cycle_experts", "prompts", "tokens")
        return {
            "verdict_level": verdict,
            **{name: self.card[name] for name in sizes},
            **{section: {k: v for k, v in self.card[section].items() if v is not None} for section in sections},
        }


def assess(trace: Trace, settings: AssessSettings) -> Assessment:
    """Assess the routing of a trace.

    Raises:
        InputError: `tokens: decode` on a trace without decoded tokens.
    """
    if settings.tokens == "decode":
        trace = trace.decode_only()
        if trace.num_prompts == 0:
            raise InputError("assess.tokens is 'decode', but the trace holds prefill only; set it to 'all'")
    meta = trace.metadata
    counts_LE = expert_counts_LE(trace.experts_TLK, meta.num_experts)
    layers = layer_statistics(trace, settings.windows)
    curves = hit_curves(trace, settings)
    coactivation, transitions, pairs = pair_tables(trace, settings.pairs_per_layer)
    tables = {
        "layers": layers.join(pairs, on="layer", maintain_order="left"),
        "popularity": pl.DataFrame(
            {
                "layer": np.repeat(meta.layer_numbers, meta.num_experts),
                "expert": np.tile(np.arange(meta.num_experts), meta.num_layers),
                "share": (counts_LE / counts_LE.sum(axis=1, keepdims=True)).reshape(-1),
            }
        ),
        "hit_curves": pl.concat(
            _curve_table(name, curve, meta.token_cycle, settings.curve_points) for name, curve in curves.items()
        ),
        "reuse_distances": _reuse_table(reuse_histogram(trace)),
        "coactivation": coactivation,
        "transitions": transitions,
    }
    return Assessment(suitability_card(trace, layers, curves, settings), tables)


def other_cards(settings: AssessSettings) -> list[dict[str, Any]]:
    """Cards of the models in `settings.others`, under the same settings.

    Raises:
        InputError: A trace cannot be read.
    """
    cards = []
    for other in settings.others:
        source = Path(other.path)
        parquet = other.format == "parquet"
        trace = store.read_parquet(source, hidden=False) if parquet else importers.read(other.format, source)
        cards.append(assess(in_domain(trace), settings).card)
    return cards


def in_domain(trace: Trace) -> Trace:
    """The prompts that are not kept for testing, if there are any: a verdict must not look at the others."""
    prompts = np.nonzero(~trace.held_out_P)[0]
    return trace.select(prompts) if 0 < len(prompts) < trace.num_prompts else trace


def cards_table(cards: list[dict[str, Any]]) -> pl.DataFrame:
    """A row a model, the first card of each: its shape, the numbers that its verdict rests on, and the verdict."""
    rows = [
        {
            "model": card["model_id"],
            "verdict": card["verdict"],
            **{name: card[name] for name in ("num_layers", "num_experts", "top_k", "model_mib", "prompts", "tokens")},
            # the window of 64 tokens is there only if `assess.windows` names it
            **{name: card["headline"].get(name) for name in _COMPARED},
            "static_skew": card["shares"]["static_skew"],
            "temporal_locality": card["shares"]["temporal_locality"],
            "budget_fraction": card["budget"]["capacity_fraction"],
            **{name: card["budget"][name] for name in _BOUNDS},
        }
        for card in cards
    ]
    return pl.DataFrame(rows, infer_schema_length=None).unique("model", keep="first", maintain_order=True)


def hit_curves(trace: Trace, settings: AssessSettings) -> Curves:
    """Hit rates at every capacity, every token replayed as a decoded one, the cache kept from prompt to prompt.

    Of every n-th prompt, so that about `max_curve_tokens` tokens are enough for any trace; of all curves the same ones,
    so that Belady's is a bound of the others.
    """
    trace = every_nth_prompt(trace, settings.max_curve_tokens)
    events = events_of(trace, "token_by_token")
    return {
        "lru": lru_curve(events).hit_rate_D,
        "static_popularity": static_popularity_curve(trace),
        "belady": belady_curve(events).hit_rate_D,
    }


def every_nth_prompt(trace: Trace, max_tokens: int) -> Trace:
    """Every n-th prompt, n as small as keeps about `max_tokens` tokens; the whole trace if it is no longer."""
    step = -(-trace.num_tokens // max_tokens)
    return trace if step == 1 else trace.select(np.arange(0, trace.num_prompts, step))


def _curve_table(name: str, curve_C: Curve, token_cycle: int, points: int) -> pl.DataFrame:
    """Evenly spaced points of a curve, the one-token cycle and the capacity below it among them."""
    total = len(curve_C) - 1
    shown = np.unique(
        [*np.round(np.linspace(1, total, min(points, total))).astype(int), token_cycle, max(token_cycle - 1, 1)]
    )
    return pl.DataFrame(
        {
            "policy": [name] * len(shown),
            "capacity_experts": shown,
            "capacity_fraction": shown / total,
            "hit_rate": curve_C[shown],
        }
    )


def _reuse_table(histogram: npt.NDArray[np.int64]) -> pl.DataFrame:
    """Cumulative shares at every distance up to 32, then at ever wider steps up to the longest."""
    longest = len(histogram) - 1
    distances = np.unique(np.round(np.concatenate([np.arange(1, 33), np.geomspace(32, max(longest, 32), 40)])))
    distances = distances[distances <= max(longest, 1)].astype(np.int64)
    within = np.cumsum(histogram) - histogram[0]
    shares = [float(within[min(distance, longest)] / histogram.sum()) for distance in distances.tolist()]
    return pl.DataFrame({"distance": distances, "cumulative_share": shares})
