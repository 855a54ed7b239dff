"""Tables of the example that simulator and export stage write beside the main ones: made up, true to each other.

Shape suffixes: T tokens, L layers.
"""

from __future__ import annotations

import numpy as np
import polars as pl

OURS, RIVAL = "predictor_prefetch_lru", "lru"
SPLIT = "test_out_of_domain"


def timeline_table(layers: int, tokens: int = 14) -> pl.DataFrame:
    """One prompt under two policies: ours waits for late prefetches and misses, LRU for every load."""
    random = np.random.default_rng(5)
    rows = []
    for policy in (OURS, RIVAL):
        start = 0.0
        for position in range(tokens):
            for layer in range(1, layers + 1):
                wanted = int(random.integers(3, 7))
                in_time = wanted - int(random.integers(0, 3)) if policy == OURS else 0
                late = int(in_time < wanted) if policy == OURS else 0
                loads = wanted - in_time - late
                stall = 1.5 * loads + 0.4 * late
                rows.append(
                    {
                        "split": SPLIT,
                        "policy": policy,
                        "device": "phone_ufs",
                        "prompt_id": "code-3",
                        "position": position,
                        "token_text": f"\u0120word{position}" if position else None,
                        "layer": layer,
                        "start_ms": start,
                        "compute_ms": 0.8,
                        "stall_ms": stall,
                        "demand_loads": loads,
                        "prefetches_in_time": in_time,
                        "prefetches_late": late,
                        "prefetches_useless": int(random.integers(0, 2)) if policy == OURS else 0,
                        "evictions": loads + late,
                        "predicted": 0.1 + 0.05 * loads if loads + late and policy == OURS else None,
                    }
                )
                start += 0.8 + stall
    return pl.DataFrame(rows, infer_schema_length=None)


def costliest_table(count: int = 15) -> pl.DataFrame:
    """Long waits of both splits; the predictor saw every third coming."""
    return pl.DataFrame(
        [
            {
                "split": split,
                "policy": OURS,
                "device": "phone_ufs",
                "prompt_id": f"{split}-{place % 4}",
                "position": 7 + place,
                "token_text": "\u0120return" if place % 2 else "<b>\n",
                "layer": 1 + place % 3,
                "experts_missed": " ".join(str(3 * place + offset) for offset in range(1 + place % 3)),
                "stall_ms": 90.0 - 4 * place,
                "predicted": 0.7 if place % 3 == 0 else 0.05,
            }
            for split in ("test_in_domain", SPLIT)
            for place in range(count)
        ]
    )


def bandwidth_tables() -> dict[str, pl.DataFrame]:
    """Ours loses below 2 GB/s and wins above; a predictor may take a few milliseconds."""
    speeds = [0.5, 1.0, 2.0, 4.0, 8.0]
    rows = [
        (SPLIT, device, 32, policy, speed, scale * (fixed + moved / speed))
        for device, scale in (("phone_ufs", 1.0), ("laptop_nvme", 0.5))
        for policy, fixed, moved in ((OURS, 5.0, 60.0), (RIVAL, 15.0, 42.0), ("belady", 4.0, 30.0))
        for speed in speeds
    ]
    columns = ["split", "device", "capacity_experts", "policy", "bandwidth_gb_per_s", "ms_per_token"]
    limits = pl.DataFrame(
        {
            "split": [SPLIT] * 3,
            "device": ["phone_ufs", "laptop_nvme", "phone_ufs"],
            "capacity_experts": [32, 32, 64],
            "policy": [OURS] * 3,
            "against": [RIVAL] * 3,
            "bandwidth_gb_per_s": [1.8, 1.8, None],
            "pays": ["above", "above", "never"],
            "predictor_ms_limit": [6.24, 2.6, -0.4],
        }
    )
    return {"time_by_bandwidth": pl.DataFrame(rows, columns, orient="row"), "break_even": limits}


def left_out_table() -> pl.DataFrame:
    rows = [(SPLIT, "hobbit", "the training split has no router weights")]
    return pl.DataFrame(rows, ["split", "policy", "reason"], orient="row")


def ablation_table() -> pl.DataFrame:
    pieces = [("lru", 0.31, 0.7, 22.0), ("token step", 0.52, 0.9, 19.5), ("layer step", 0.61, 0.85, 16.0)]
    return pl.DataFrame(
        [
            {
                "split": SPLIT,
                "capacity_experts": 32,
                "step": place,
                "added": name,
                "policy": OURS,
                "hit_rate": rate,
                "hit_rate_low": rate - 0.01,
                "hit_rate_high": rate + 0.01,
                "mib_per_token": mib,
                "device": device,
                "ms_per_token": ms * scale,
                "ms_per_token_low": ms * scale - 0.5,
                "ms_per_token_high": ms * scale + 0.5,
            }
            for place, (name, rate, mib, ms) in enumerate(pieces)
            for device, scale in (("phone_ufs", 1.0), ("laptop_nvme", 0.4))
        ]
    )


def certainty_tables(layers: int) -> dict[str, pl.DataFrame]:
    """Calibration by layer and horizon, and sets of a stated coverage that fall short in the last layer."""
    splits, horizons = ("test_in_domain", SPLIT), ("token", "1", "2")
    errors = [
        (split, horizon, layer, 0.02 + 0.001 * place, 0.004, 1000 * (layers if layer == "all" else 1))
        for split in splits
        for horizon in horizons
        for place, layer in enumerate(["all", *map(str, range(1, layers + 1))])
    ]
    sets = [
        (split, horizon, layer, stated, stated - 0.01 * place / layers, stated - 0.02, stated + 0.01, size / (1 + step))
        for split in splits
        for step, horizon in enumerate(horizons)
        for stated, size in ((0.8, 9.0), (0.95, 21.0))
        for place, layer in enumerate(["all", *map(str, range(1, layers + 1))])
    ]
    names = ["split", "horizon", "layer"]
    return {
        "calibration_by_layer": pl.DataFrame(errors, [*names, "error_before", "error", "statements"], orient="row"),
        "prefetch_sets": pl.DataFrame(
            sets, [*names, "stated_coverage", "coverage", "low", "high", "experts_per_layer"], orient="row"
        ),
        "quantisation": pl.DataFrame(
            [
                ("token_step", "none", 3_412_000, 0.52, 0.66, 0.0, False),
                ("token_step", "MatMul", 910_000, 0.41, 0.658, 0.2, True),
                ("layer_step", "none", 1_200_000, 0.1, 0.72, 0.0, False),
            ],
            ["step", "int8_operators", "size_bytes", "latency_ms", "recall_at_k", "lost_points", "chosen"],
            orient="row",
        ),
    }
