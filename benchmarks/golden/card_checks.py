"""What `moe-beyond card` says of a phone beside what it recorded there, the model's own hit curve left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from benchmarks.golden.check import Check
from benchmarks.golden.device_errors import GPT_OSS, MIB, QWEN, QWEN36
from moe_beyond.assess.before_download import card
from moe_beyond.assess.known import held_out, known_curves, known_tables
from moe_beyond.devices.device import load_device
from moe_beyond.formats.headers import ModelSizes

_PHONE = "phone_oneplus_15r"
_MODELS = {"Qwen3-30B-A3B-Q4_K_M": QWEN, "gpt-oss-120b-Q4_K_M": GPT_OSS, "Qwen3.6-35B-A3B-Q4_K_M": QWEN36}


def runs_beside_cards(recordings: Path) -> pl.DataFrame:
    """A row a run with LRU at the phone's four lanes: model, tokens a second, and whether card and band hold it."""
    index = pl.read_csv(recordings / "bigmoe-on-edge" / "index.csv", infer_schema_length=None)
    chosen = index.filter(
        pl.col("contaminated").is_null()
        & pl.col("cache_mb").cast(pl.String).str.contains(r"^\d+$")
        & (pl.col("lanes").cast(pl.String) == "4")
        & (pl.col("drop_cold") == 0)
        & ~pl.col("note").fill_null("").str.contains("same bytes as")
    )
    rows = []
    for run in chosen.iter_rows(named=True):
        shape, num_layers, num_experts = _MODELS[run["model"]], run["moe_layers"], run["experts"]
        sizes = ModelSizes(
            name=run["model"],
            source=run["file"],
            num_layers=num_layers,
            num_experts=num_experts,
            top_k=run["top_k"],
            layer_numbers=tuple(range(num_layers)),
            expert_bytes=(round(shape.expert_bytes),) * num_layers,
            dense_bytes=round(shape.dense_bytes),
            other_bytes=0,
        )
        others = [curve for curve in known_curves([known_tables(None)[0]]) if curve.model != run["model"]]
        found = card(sizes, [load_device(_PHONE)], others, budget_bytes=int(run["cache_mb"]) * MIB)["devices"][0]
        measured = 1e3 / run["wall_ms_mean"]
        held = {name: found[name][0] <= measured <= found[name][1] for name in ("tokens_per_s", _WIDEST)}
        rows.append({"model": run["model"], "measured": measured, **held})
    return pl.DataFrame(rows)


_WIDEST = "tokens_per_s_worst_and_best"


def card_checks(traces: Path) -> Iterator[Check]:
    """How many recorded runs lie where the card says, and how the band of other models holds a model left out."""
    runs = runs_beside_cards(traces.parent / "recordings")
    yield Check("card_runs_of_the_phone", runs.height, 27)
    yield Check("card_runs_between_worst_and_best", float(runs[_WIDEST].sum()), 25)
    yield Check("card_runs_within_the_band_alone", float(runs["tokens_per_s"].sum()), 5)
    inside, farthest = held_out(known_curves([known_tables(None)[0]]))
    yield Check("card_held_out_percent_inside", 100 * inside, 66.7, 0.05)
    yield Check("card_held_out_points_outside", 100 * farthest, 12.8, 0.05)
