"""How far modelled times were from recorded ones: the table that `make golden` checks and the page shows."""

from __future__ import annotations

from importlib.resources import files

import polars as pl

COLUMNS = {
    "device": pl.String,
    "regime": pl.String,
    "model": pl.String,
    "fitted_on": pl.String,
    "predicted_rows": pl.Int64,
    "ms_median_percent": pl.Float64,
    "ms_worst_percent": pl.Float64,
    "tokens_per_s_median_percent": pl.Float64,
    "tokens_per_s_worst_percent": pl.Float64,
    "line_median_percent": pl.Float64,
    "line_worst_percent": pl.Float64,
}
"""Errors of ms a token, of tokens a second, and of ms a token by a straight line in the missed bytes."""


PREFILL, START = "prefill, to the first token", "start of the engine"
"""Regimes of other times than that of a decoded token."""


def decode_errors(device: str) -> pl.DataFrame:
    """The rows of a device whose milliseconds are those of decoded tokens."""
    return published_errors().filter(~pl.col("regime").is_in([PREFILL, START]), device=device)


def published_errors() -> pl.DataFrame:
    """The table that comes with the package, in these columns."""
    text = (files("moe_beyond.devices") / "errors.csv").read_bytes()
    return pl.read_csv(text, schema=COLUMNS)
