"""Writes a pipeline's tables, small but true to each other: counts come from replaying a random trace.

Shape suffixes: T tokens, L layers, E experts, K experts a token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.assess.pair_tables import pair_tables
from tests.reporting.example_more import (
    ablation_table,
    bandwidth_tables,
    certainty_tables,
    costliest_table,
    left_out_table,
    timeline_table,
)
from tests.traces.random_traces import trace_of

Ids = npt.NDArray[np.int64]

EXPERT_BYTES = 36_864
SPLITS = ("test_in_domain", "test_out_of_domain")
CAPACITIES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75)
QUALITY = {  # recall of each predictor, and what another domain costs it
    "predictor": (0.66, 0.09),
    "popularity": (0.17, 0.02),
    "token_unigram": (0.56, 0.05),
    "previous_token": (0.26, 0.01),
}


@dataclass(frozen=True)
class Example:
    """Size of the pretended model."""

    layers: int = 5
    experts: int = 64
    top_k: int = 6
    tokens: int = 240
    seed: int = 3

    @property
    def total(self) -> int:
        return self.layers * self.experts


def random_trace(example: Example, split: int) -> Ids:
    """Skewed, somewhat repetitive routing, int64 [T, L, K]."""
    random = np.random.default_rng([example.seed, split])
    trace_TLK = np.empty((example.tokens, example.layers, example.top_k), np.int64)
    for layer in range(example.layers):
        weights = random.permutation(1 / np.arange(3, example.experts + 3))
        for token in range(example.tokens):
            noise = random.gumbel(size=example.experts) + np.log(weights)
            if token:
                noise[trace_TLK[token - 1, layer]] += 0.9
            trace_TLK[token, layer] = np.argsort(-noise)[: example.top_k]
    return trace_TLK


def replay(events: list[list[int]], capacity: int, prefetched: list[list[int]] | None = None) -> dict[str, int]:
    """LRU in plain Python; with `prefetched`, those enter before each event."""
    resident: dict[int, None] = {}
    counts = {"hits": 0, "misses": 0, "prefetches": 0, "prefetches_useful": 0}

    def admit(expert: int, kept: set[int]) -> None:
        resident.pop(expert, None)
        while len(resident) >= capacity:
            victim = next((e for e in resident if e not in kept), None)
            if victim is None:
                return
            del resident[victim]
        resident[expert] = None

    for place, event in enumerate(events):
        fetched = [e for e in prefetched[place] if e not in resident][: max(0, capacity)] if prefetched else []
        for expert in fetched:
            admit(expert, set(event))
        counts["prefetches"] += len(fetched)
        counts["prefetches_useful"] += len(set(fetched) & set(event))
        known = set(resident) | set(fetched)
        hits = sum(expert in known for expert in event)
        counts["hits"] += hits
        counts["misses"] += len(event) - hits
        for expert in event:
            admit(expert, set(event))
    return counts


def replay_table(example: Example) -> pl.DataFrame:
    rows = []
    for number, split in enumerate(SPLITS):
        trace_TLK = random_trace(example, number)
        shifted = trace_TLK + example.experts * np.arange(example.layers)[None, :, None]
        events = [event.tolist() for token in shifted for event in token]
        random = np.random.default_rng([example.seed, 9, number])
        guesses = {
            f"{name}_prefetch_lru": [_guess(event, recall - loss * number, example, random) for event in events]
            for name, (recall, loss) in QUALITY.items()
            if name in ("predictor", "token_unigram")
        }
        for share in CAPACITIES:
            capacity = max(1, round(share * example.total))
            lru = replay(events, capacity)
            results = {"lru": lru} | {name: replay(events, capacity, guess) for name, guess in guesses.items()}
            results["static_popularity"] = _pinned(events, capacity)
            best = max(value["hits"] for value in results.values())
            accesses = lru["hits"] + lru["misses"]
            bound = min(accesses, round(best + 0.4 * (accesses - best) * share**0.3))
            results["belady"] = {"hits": bound, "misses": accesses - bound, "prefetches": 0, "prefetches_useful": 0}
            rows += [_row(example, split, name, capacity, counts) for name, counts in results.items()]
    return pl.DataFrame(rows)


def _guess(event: list[int], recall: float, example: Example, random: np.random.Generator) -> list[int]:
    base = event[0] // example.experts * example.experts
    return [e if random.random() < recall else base + int(random.integers(example.experts)) for e in event]


def _pinned(events: list[list[int]], capacity: int) -> dict[str, int]:
    ids, counts = np.unique(np.concatenate([np.array(event) for event in events]), return_counts=True)
    kept = set(ids[np.argsort(-counts, kind="stable")][:capacity].tolist())
    hits = sum(expert in kept for event in events for expert in event)
    return {"hits": hits, "misses": sum(map(len, events)) - hits, "prefetches": 0, "prefetches_useful": 0}


def _row(example: Example, split: str, policy: str, capacity: int, counts: dict[str, int]) -> dict[str, Any]:
    moved = (counts["misses"] + counts["prefetches"]) * EXPERT_BYTES
    accesses = counts["hits"] + counts["misses"]
    return {
        "split": split,
        "policy": policy,
        "capacity_experts": capacity,
        "capacity_fraction": capacity / example.total,
        "accesses": accesses,
        **counts,
        "prefetches_useless": counts["prefetches"] - counts["prefetches_useful"],
        "hit_rate": counts["hits"] / accesses,
        "hit_rate_low": max(0.0, counts["hits"] / accesses - 0.012),
        "hit_rate_high": min(1.0, counts["hits"] / accesses + 0.012),
        "decode_hit_rate": counts["hits"] / accesses,
        "loads_avoided": accesses - counts["misses"] - counts["prefetches"],
        "bytes_moved": moved,
        "mib_per_token": moved / example.tokens / 2**20,
        "tokens": example.tokens,
    }


def quality_table(example: Example) -> pl.DataFrame:
    random = np.random.default_rng([example.seed, 5])
    rows = []
    for number, split in enumerate(SPLITS):
        for predictor, (recall, loss) in QUALITY.items():
            base = recall - loss * number
            layers = base + random.normal(0, 0.05, example.layers) + np.linspace(-0.03, 0.03, example.layers)
            named = [("all", "all", float(layers.mean()))]
            named += [("prefill", "all", float(layers.mean()) - 0.01), ("decode", "all", float(layers.mean()) + 0.01)]
            named += [("all", str(layer + 1), float(value)) for layer, value in enumerate(layers)]
            asked = [("token", *row) for row in named]
            if predictor == "predictor":  # the closer to its layer, the more it knows
                asked += [(str(h), *row[:2], row[2] + 0.12 / h) for h in (1, 2) for row in named]
            for horizon, phase, layer, value in asked:
                rows.append(
                    {
                        "split": split,
                        "predictor": predictor.replace("_", " "),
                        "horizon": horizon,
                        "phase": phase,
                        "layer": layer,
                        "tokens": example.tokens,
                        "recall_at_k": value,
                        "f1_active": value,
                        "accuracy": 1 - 2 * (1 - value) * example.top_k / example.experts,
                        "f1_macro": (1 + value) / 2,
                        "recall_low": value - 0.011,
                        "recall_high": value + 0.011,
                    }
                )
    return pl.DataFrame(rows)


def assess_tables(example: Example) -> dict[str, pl.DataFrame]:
    trace_TLK = random_trace(example, 0)
    shares = np.stack(
        [np.bincount(trace_TLK[:, layer].ravel(), minlength=example.experts) for layer in range(example.layers)]
    ) / (example.tokens * example.top_k)
    safe = np.where(shares > 0, shares, 1)
    overlap = [
        np.mean([len(set(a) & set(b)) / example.top_k for a, b in pairwise(t)])
        for t in (trace_TLK[:, layer].tolist() for layer in range(example.layers))
    ]
    layers = pl.DataFrame(
        {
            "layer": np.arange(1, example.layers + 1),
            "entropy_bits": -(safe * np.log2(safe)).sum(axis=1),
            "max_entropy_bits": np.full(example.layers, np.log2(example.experts)),
            "previous_token_overlap": overlap,
            "working_set_16": [
                float(
                    np.mean([len(np.unique(trace_TLK[t : t + 16, layer])) for t in range(0, example.tokens - 16, 16)])
                )
                for layer in range(example.layers)
            ],
        }
    )
    popularity = pl.DataFrame(
        {
            "layer": np.repeat(np.arange(1, example.layers + 1), example.experts),
            "expert": np.tile(np.arange(example.experts), example.layers),
            "share": shares.ravel(),
        }
    )
    events = [
        event.tolist()
        for token in trace_TLK[:120] + example.experts * np.arange(example.layers)[None, :, None]
        for event in token
    ]
    curves = []
    for capacity in range(8, example.total + 1, 8):
        counts = replay(events, capacity)
        rate = counts["hits"] / (counts["hits"] + counts["misses"])
        for policy, value in (("lru", rate), ("belady", min(1.0, rate + 0.3 * (1 - rate)))):
            curves.append(
                {
                    "policy": policy,
                    "capacity_experts": capacity,
                    "capacity_fraction": capacity / example.total,
                    "hit_rate": value,
                }
            )
    distances = np.arange(1, example.total + 1)
    reuse = pl.DataFrame({"distance": distances, "cumulative_share": 0.95 * (1 - np.exp(-distances / 90))})
    pairs = pair_tables(trace_of(trace_TLK, [example.tokens], example.experts), 20)
    return {
        "layers": layers.join(pairs.by_layer, on="layer", maintain_order="left"),
        "popularity": popularity,
        "hit_curves": pl.DataFrame(curves),
        "reuse_distances": reuse,
        "coactivation": pairs.coactivation,
        "transitions": pairs.transitions,
    }


def trials_table() -> pl.DataFrame:
    sizes = [(64, 1, 2), (64, 2, 4), (96, 2, 2), (128, 1, 4), (128, 2, 8), (192, 2, 4), (192, 3, 8), (96, 3, 8)]
    latency = [0.21, 0.33, 0.39, 0.35, 0.52, 0.81, 1.19, 0.58]
    recall = [0.601, 0.634, 0.648, 0.629, 0.660, 0.664, 0.665, 0.651]
    front = [
        not any(o < a and r > b for o, r in zip(latency, recall, strict=True))
        for a, b in zip(latency, recall, strict=True)
    ]
    parameters = [12 * d * w * w + 5000 * w for w, d, _ in sizes]
    return pl.DataFrame(
        {
            "trial": range(len(sizes)),
            "width": [size[0] for size in sizes],
            "depth": [size[1] for size in sizes],
            "heads": [size[2] for size in sizes],
            "recall_at_k": recall,
            "latency_ms": latency,
            "parameters": parameters,
            "size_bytes": [4 * count for count in parameters],
            "ms_per_token": [20 - 5 * rate for rate in recall],
            "on_front": front,
            "chosen": [place == 4 for place in range(len(sizes))],
            "reason": ["least time per token" if place == 4 else "slower" for place in range(len(sizes))],
        }
    )


def timing_table(replayed: pl.DataFrame) -> pl.DataFrame:
    """Two devices and two predictor latencies; a token costs compute, prediction and what the link takes."""
    devices = pl.DataFrame({"device": ["phone_ufs", "laptop_nvme"], "mib_per_ms": [0.12, 0.5], "compute": [6.0, 3.0]})
    latencies = pl.DataFrame({"predictor_ms": [0.1, 5.0]})
    stall = pl.col("mib_per_token") / pl.col("mib_per_ms")
    prediction = pl.when(pl.col("prefetches") > 0).then(pl.col("predictor_ms")).otherwise(0.0)
    total = pl.col("compute") + stall + prediction
    return (
        replayed.join(devices, how="cross")
        .join(latencies, how="cross")
        .select(
            "split",
            "device",
            "policy",
            "capacity_experts",
            "predictor_ms",
            ms_per_token=total,
            ms_per_token_low=0.97 * total,
            ms_per_token_high=1.03 * total,
            tokens_per_second=1000 / total,
            stall_ms_per_token=stall,
            prefetches="prefetches",
            prefetches_late=pl.col("prefetches") // 4,
            fraction_of_bound=pl.col("compute") / total,
        )
    )


def comparisons_table() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "split": [SPLITS[0], SPLITS[1], SPLITS[1], SPLITS[1]],
            "capacity_experts": [32, 32, 32, 160],
            "a": [
                "predictor_prefetch_lru",
                "token_unigram_prefetch_lru",
                "predictor_prefetch_lru",
                "predictor_prefetch_lru",
            ],
            "b": ["lru", "predictor_prefetch_lru", "static_popularity", "lru"],
            "difference": [0.31, -0.021, 0.004, 0.004],
            "low": [0.29, -0.030, -0.003, -0.003],
            "high": [0.33, -0.012, 0.011, 0.011],
            "ms_device": [None, "phone_ufs", "phone_ufs", None],
            "ms_difference": [None, 1.9, -0.2, None],
            "ms_low": [None, 1.2, -0.6, None],
            "ms_high": [None, 2.5, 0.3, None],
        }
    )


def cards_table(example: Example) -> pl.DataFrame:
    """Three models; the second suits offloading less, the third does not know its experts' size."""
    return pl.DataFrame(
        {
            "model": ["reference-moe", "other/wide", "other/deep"],
            "verdict": ["go", "do not", "go"],
            "num_layers": [example.layers, 24, 48],
            "num_experts": [example.experts, 32, 128],
            "top_k": [example.top_k, 4, 8],
            "model_mib": [11.25, 12_150.0, 0.0],
            "prompts": [23, 220, 50],
            "tokens": [3112, 69_175, 790],
            "previous_token_overlap": [0.34, 0.21, 0.48],
            "entropy_ratio": [0.93, 0.97, 0.88],
            "gini": [0.41, 0.22, 0.47],
            "working_set_64_fraction": [0.71, 0.96, 0.55],
            "static_skew": [0.08, 0.03, 0.11],
            "temporal_locality": [0.17, 0.05, 0.28],
            "budget_fraction": [0.25, 0.25, 0.25],
            "lru_hit_rate": [0.44, 0.29, 0.62],
            "static_popularity_hit_rate": [0.41, 0.31, 0.5],
            "belady_hit_rate": [0.71, 0.6, 0.81],
        }
    )


def trust_tables() -> dict[str, pl.DataFrame]:
    """Calibration and coverage of each split; the predictor is too sure of itself."""
    edges = np.array([0.0, 0.01, 0.05, 0.2, 0.5, 0.8, 1.0])
    middle = (edges[1:] + edges[:-1]) / 2
    counts = np.array([60_000, 6_000, 4_000, 2_000, 1_500, 3_300])
    bins, widths = [], []
    for place, split in enumerate(SPLITS):
        bins.append(
            pl.DataFrame(
                {
                    "split": split,
                    "bin_low": edges[:-1],
                    "bin_high": edges[1:],
                    "mean_probability": middle,
                    "observed_share": middle * (0.96 - 0.04 * place),
                    "count": counts,
                }
            )
        )
        width = np.arange(1, 25)
        recall = 1 - np.exp(-width / (5.5 + place))
        widths.append(pl.DataFrame({"split": split, "width": width, "recall": recall}))
    return {"calibration": pl.concat(bins), "width": pl.concat(widths)}


def published_table() -> pl.DataFrame:
    """The paper's protocol on another domain: ours ahead at the smallest capacity, even at the next, then behind."""
    rates = {
        "predictor": [0.76, 0.82, 0.90],
        "published predictions": [0.728, 0.816, 0.91],
        "one-cluster MoE-Infinity": [0.168, 0.392, 0.711],
    }
    rows = [
        (SPLITS[1], name, capacity, rate, recall, rate - 0.004, rate + 0.004)
        for (name, values), recall in zip(rates.items(), (0.75, 0.725, 0.2), strict=True)
        for capacity, rate in zip((32, 64, 160), values, strict=True)
    ]
    columns = ["split", "predictor", "capacity_experts", "hit_rate", "recall_at_k", "low", "high"]
    return pl.DataFrame(rows, columns, orient="row")


def published_cache_table() -> pl.DataFrame:
    """The same prompts through other caches: ours ahead of the paper's system at the smallest, with fewer bytes."""
    rates = {
        ("predictor", "published"): 0.76,
        ("predictor", "published_touched"): 0.785,
        ("predictor", "lru"): 0.80,
        ("predictor", "anticipate"): 0.79,
        ("published_predictions", "published"): 0.728,
        ("published_predictions", "published_touched"): 0.73,
        ("published_predictions", "lru"): 0.81,
    }
    rows = [
        {
            "split": SPLITS[1],
            "predictor": predictor,
            "cache": cache,
            "capacity_experts": capacity,
            "hit_rate": rate + (capacity - 32) / 1280,
            "low": rate - 0.004 + (capacity - 32) / 1280,
            "high": rate + 0.004 + (capacity - 32) / 1280,
            "mib_per_token": 2000 * (1 - rate),
            "gain": rate - 0.728,
            "gain_low": rate - 0.738,
            "gain_high": rate - 0.718,
            "mib_change": 2000 * (0.728 - rate),
            "mib_change_low": 2000 * (0.728 - rate) - 10,
            "mib_change_high": 2000 * (0.728 - rate) + 10,
        }
        for (predictor, cache), rate in rates.items()
        for capacity in (32, 64, 160)
    ]
    return pl.DataFrame(rows)


def write_example(root: Path, example: Example | None = None, *, times: bool = True) -> None:
    """Write every table, card, metrics file and receipt that the page reads, below `root`."""
    example = example or Example()
    reports = root / "reports"
    replayed = replay_table(example)
    tables = {f"assess/{name}": frame for name, frame in assess_tables(example).items()}
    tables |= {"tune/trials": trials_table(), "export/quality": quality_table(example), "simulate/replay": replayed}
    tables |= {"assess/cards": cards_table(example), "export/published_protocol": published_table()}
    tables |= {f"export/{name}": frame for name, frame in trust_tables().items()}
    epochs = np.arange(12)
    tables["train/history"] = pl.DataFrame(
        {
            "epoch": epochs,
            "step": epochs * 90,
            "train_loss": 0.19 * np.exp(-epochs / 5) + 0.14,
            "validation_loss": 0.17 * np.exp(-epochs / 5) + 0.165,
            "validation_recall_at_k": 0.66 - 0.4 * np.exp(-epochs / 3),
        }
    )
    tables |= {f"export/{name}": frame for name, frame in certainty_tables(example.layers).items()}
    if times:
        tables |= {"simulate/timeline": timeline_table(example.layers), "simulate/ablation": ablation_table()}
        tables |= {"simulate/costliest_misses": costliest_table(), "simulate/left_out": left_out_table()}
        tables |= {f"simulate/{name}": frame for name, frame in bandwidth_tables().items()}
        tables["simulate/published_cache"] = published_cache_table()
        tables |= {"simulate/timing": timing_table(replayed), "simulate/comparisons": comparisons_table()}
    for name, frame in tables.items():
        path = reports / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_csv(path)
    names = ["train"] * 16 + ["validation"] * 3 + ["test_in_domain"] * 4
    prompts = [(f"english-{i}", "english", split, f"f{i}") for i, split in enumerate(names)]
    prompts += [(f"code-{i}", "code", "test_out_of_domain", f"c{i}") for i in range(5)]
    (root / "data" / "splits").mkdir(parents=True, exist_ok=True)
    pl.DataFrame(prompts, schema=["prompt_id", "domain", "split", "fingerprint"], orient="row").write_csv(
        root / "data" / "splits" / "prompts.csv"
    )
    card = {
        "verdict": "go",
        "reasons": ["At 25 % of the experts Belady's bound is 71 %.", "LRU gains 19 points over the share it holds."],
        "model_id": "reference-moe",
        "num_layers": example.layers,
        "num_experts": example.experts,
        "top_k": example.top_k,
        "model_experts": example.total,
        "token_cycle_experts": example.layers * example.top_k,
        "source": "synthetic",
        "shares": {"chance": 0.09, "static_skew": 0.08, "temporal_locality": 0.17},
        "headline": {"previous_token_overlap": 0.34, "gini": 0.41},
    }
    (reports / "assess" / "card.json").write_text(json.dumps(card))
    _write_metrics(reports)


def _write_metrics(reports: Path) -> None:
    metrics = {
        "export": {"latency_ms": 0.52, "size_bytes": 3_412_000, "parity_max_abs_error": 3e-6},
        "split": {
            "prompts": 28,
            "tokens": 3112,
            "splits": {"test_in_domain": {"tokens": 240}},
            "contamination": {"distinct_prompts": 27, "exact_duplicates": 1},
        },
    }
    for stage, values in metrics.items():
        (reports / stage).mkdir(exist_ok=True)
        (reports / stage / "metrics.json").write_text(json.dumps(values))
    for stage in ("assess", "tune", "train", "export", "simulate"):
        receipt = {"stage": stage, "run_id": stage.encode().hex().ljust(32, "0"), "experiment_id": "1"}
        (reports / stage / "run.json").write_text(json.dumps(receipt))
