"""Pinning against LRU on published traces: a placement from some prompts, judged on others, at four budgets.

DeepSeek-V2-Lite's profile is from one data set and judged on another, and on a quarter of the first; gpt-oss-20b's is
judged on a quarter of its prompts; Qwen3-30B-A3B's profile is what mbolt counted, judged on what a phone decoded.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.golden.check import Check
from moe_beyond.advisor.held_out import divide
from moe_beyond.advisor.pinning import PINNED, judge
from moe_beyond.advisor.pinning_table import COLUMNS, published_pinning
from moe_beyond.devices.device import load_device
from moe_beyond.formats import importers
from moe_beyond.formats.counts import ExpertCounts, count_experts
from moe_beyond.formats.placements import Placement
from moe_beyond.settings import DEFAULT_SEED
from moe_beyond.simulator.policies.on_demand import LayerLru, Lru
from moe_beyond.traces.schema import Trace

SHARES = (0.05, 0.1, 0.2, 0.5)
"""Of the bytes of all experts."""
DEVICE = "gpu_pcie4_wsl"
_NAMED = ("model", "profile", "judged_on", "budget_percent")
_JUDGED = ("pinned_percent", "lru_percent", "layer_lru_percent", "pinned_ms", "lru_ms", "layer_lru_ms")


Case = tuple[str, str, ExpertCounts, Trace]
"""Where the profile is from, what judges it, the profile, and the prompts that judge."""


def pinning(traces: Path, models: Sequence[str] | None = None) -> pl.DataFrame:
    """The table in the columns of `COLUMNS`, of some models or of all."""
    rows = [
        _row((model, *named, round(100 * share)), counts, judged, share)
        for model in models or MODELS
        for *named, counts, judged in MODELS[model](traces)
        for share in SHARES
    ]
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def pinning_checks(traces: Path, models: Sequence[str] | None = None) -> Iterator[Check]:
    """Every figure of the published table, to the last digit that it shows."""
    published = published_pinning().filter(pl.col("model").is_in(list(models or MODELS)))
    found = pinning(traces, models)
    yield Check("pinning_rows", found.height, published.height)
    same = found.join(published, on=_NAMED, how="inner")
    yield Check("pinning_rows_of_the_same_name", same.height, published.height)
    for row in same.iter_rows(named=True):
        name = "_".join(str(row[key]) for key in _NAMED).replace(",", "").replace(" ", "_")
        yield from (Check(f"pinning_{name}_{figure}", row[figure], row[f"{figure}_right"], 0.1) for figure in _JUDGED)


def _deepseek(traces: Path) -> Iterator[Case]:
    puffin, webglm = (importers.read("moe-beyond-csv", traces / f"{name}.tar.xz") for name in ("puffin", "webglm"))
    other, same = divide(puffin, webglm), divide(puffin)
    yield "puffin", "webglm", count_experts(other.fit), other.judge
    yield "puffin", "puffin, other prompts", count_experts(same.fit), same.judge


def _gpt_oss(traces: Path) -> Iterator[Case]:
    parts = divide(importers.read("gpt-oss-fingerprint", traces / "gpt-oss-20b.tar.xz"))
    yield "its prompts", "other prompts", count_experts(parts.fit), parts.judge


def _qwen(traces: Path) -> Iterator[Case]:
    phone = importers.read("bigmoe-route", traces / "bigmoe-on-edge" / "qwen.route.csv.gz")
    text = lzma.decompress((traces / "engines" / "mbolt" / "coactivation_qwen3-30b-a3b.json.xz").read_bytes())
    heat_LE = np.array([layer["heat"] for layer in json.loads(text)["layers"]], np.int64)
    # another project's counts, of a model whose experts are as large as the phone's
    yield "mbolt", "a phone's prompt", replace(count_experts(phone), counts_LE=heat_LE, top_k=8), phone


MODELS: Mapping[str, Callable[[Path], Iterator[Case]]] = {
    "DeepSeek-V2-Lite": _deepseek,
    "gpt-oss-20b": _gpt_oss,
    "Qwen3-30B-A3B": _qwen,
}


def _row(named: tuple[Any, ...], counts: ExpertCounts, judged: Trace, share: float) -> tuple[Any, ...]:
    budget = round(share * sum(judged.metadata.expert_bytes) * judged.metadata.num_experts)
    placement = Placement.of(counts, "model", budget_bytes=budget)
    verdict = judge(placement, judged, load_device(DEVICE), seed=DEFAULT_SEED)
    replays = [verdict.found[name] for name in (PINNED, Lru.name, LayerLru.name)]
    return (
        *named,
        placement.num_kept,
        int(replays[0].tokens_P.sum()),
        *(round(100 * replay.hits.value, 1) for replay in replays),
        *(round(replay.ms_per_token, 1) for replay in replays),
        "pin" if verdict.pays else "do not pin",
    )
