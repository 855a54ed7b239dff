"""The package's known models: hit curves and cards of published traces, and of the reference model made here.

Left out are the paper's 50 test prompts, of a model that is there with 1,851 prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.golden.check import Check
from moe_beyond.assess.assessment import assess, in_domain
from moe_beyond.assess.known import CARD, CURVES, hub_tables, known_tables
from moe_beyond.assess.settings import AssessSettings
from moe_beyond.formats import importers
from moe_beyond.traces import store
from moe_beyond.traces.schema import Trace

REFERENCE = Path(__file__).parents[2] / "data" / "traces"
REFERENCE_MODEL = "moe-beyond/reference"
_SETTINGS = AssessSettings(curve_points=40)
_POLICIES = ("lru", "belady")
_SOURCES = {
    "puffin.tar.xz": "moe-beyond-csv",
    "esft.tar.xz": "esft",
    "gpt-oss-20b.tar.xz": "gpt-oss-fingerprint",
    "bigmoe-on-edge/qwen.route.csv.gz": "bigmoe-route",
    "bigmoe-on-edge/gptoss.route.csv.gz": "bigmoe-route",
}


def known_model_tables(traces: Path) -> dict[str, pl.DataFrame]:
    """Both tables, rounded as they are published; of the reference model where `make repro` has made its traces."""
    read = [hub_tables(assess(in_domain(trace), _SETTINGS)) for trace in _recorded(traces)]
    curves = pl.concat(tables[CURVES] for tables in read).filter(pl.col("policy").is_in(_POLICIES))
    cards = pl.concat((tables[CARD] for tables in read), how="vertical_relaxed")
    return {
        CURVES: curves.with_columns(pl.col("capacity_fraction").round(6), pl.col("hit_rate").round(4)),
        CARD: cards.with_columns(pl.selectors.float().round(4)),
    }


def _recorded(traces: Path) -> Iterator[Trace]:
    for name, format_name in _SOURCES.items():
        yield importers.read(format_name, traces / name)
    if REFERENCE.is_dir():
        trace = store.read_parquet(REFERENCE)
        if trace.metadata.model_id == REFERENCE_MODEL:
            yield trace


def known_model_checks(traces: Path) -> Iterator[Check]:
    """Every published hit rate of a recorded model; the reference model's, which processors change, only if made."""
    found, (published, _) = known_model_tables(traces)[CURVES], known_tables(None)
    made = found["model"].unique().to_list()
    keys = ["model", "policy", "capacity_fraction"]
    same = published.filter(pl.col("model").is_in(made)).join(found, on=keys, how="left")
    for (model, policy), rows in same.group_by("model", "policy", maintain_order=True):
        off = np.abs(rows["hit_rate"].to_numpy() - rows["hit_rate_right"].fill_null(np.inf).to_numpy()).max()
        # another make of processor trains another reference model
        allowed = 0.03 if model == REFERENCE_MODEL else 1e-4
        name = f"known_{str(model).replace('/', '_')}_{policy}_farthest_off"
        yield Check(name, float(off), allowed, relation="at most")
