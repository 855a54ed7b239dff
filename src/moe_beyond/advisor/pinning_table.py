"""What pinning was worth on published traces: the table that `make golden` checks, and that page and docs show."""

from __future__ import annotations

from importlib.resources import files

import polars as pl

COLUMNS = {
    "model": pl.String,
    "profile": pl.String,
    "judged_on": pl.String,
    "budget_percent": pl.Int64,
    "experts": pl.Int64,
    "tokens": pl.Int64,
    "pinned_percent": pl.Float64,
    "lru_percent": pl.Float64,
    "layer_lru_percent": pl.Float64,
    "pinned_ms": pl.Float64,
    "lru_ms": pl.Float64,
    "layer_lru_ms": pl.Float64,
    "verdict": pl.String,
}
"""Where the profile is from and what judged it; the budget as a share of all experts' bytes and in pinned experts;
decoded tokens; hit rates; milliseconds a token on `gpu_pcie4_wsl`, modelled; what to do."""


def published_pinning() -> pl.DataFrame:
    """The table that comes with the package, in these columns."""
    text = (files("moe_beyond.advisor") / "pinning.csv").read_bytes()
    return pl.read_csv(text, schema=COLUMNS)
