"""Reads the tables of earlier stages; says plainly which are absent and why a part of the page must be left out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl

from moe_beyond.errors import InputError
from moe_beyond.reporting.names import asks_by_layer, is_bound, is_learned, needs_another_router, ordered
from moe_beyond.settings import flatten

Kind = Literal["number", "text"]
N: Kind = "number"
S: Kind = "text"

LAYOUT: dict[str, tuple[str, dict[str, Kind]]] = {
    "layers": ("reports/assess/layers.csv", {"layer": N, "entropy_bits": N, "max_entropy_bits": N}),
    "popularity": ("reports/assess/popularity.csv", {"layer": N, "expert": N, "share": N}),
    "hit_curves": (
        "reports/assess/hit_curves.csv",
        {"policy": S, "capacity_experts": N, "capacity_fraction": N, "hit_rate": N},
    ),
    "reuse_distances": ("reports/assess/reuse_distances.csv", {"distance": N, "cumulative_share": N}),
    "coactivation": (
        "reports/assess/coactivation.csv",
        {"layer": N, "expert": N, "other": N, "tokens": N, "lift": N},
    ),
    "transitions": (
        "reports/assess/transitions.csv",
        {"layer": N, "next_layer": N, "expert": N, "next_expert": N, "tokens": N, "probability": N, "lift": N},
    ),
    "cards": (
        "reports/assess/cards.csv",
        {
            "model": S,
            "verdict": S,
            "num_layers": N,
            "num_experts": N,
            "top_k": N,
            "model_mib": N,
            "prompts": N,
            "tokens": N,
            "previous_token_overlap": N,
            "entropy_ratio": N,
            "gini": N,
            "working_set_64_fraction": N,
            "static_skew": N,
            "temporal_locality": N,
            "budget_fraction": N,
            "lru_hit_rate": N,
            "static_popularity_hit_rate": N,
            "belady_hit_rate": N,
        },
    ),
    "prompts": ("data/splits/prompts.csv", {"prompt_id": S, "domain": S, "split": S, "fingerprint": S}),
    "trials": (
        "reports/tune/trials.csv",
        {"trial": N, "recall_at_k": N, "latency_ms": N, "parameters": N, "on_front": S, "chosen": S},
    ),
    "history": ("reports/train/history.csv", {"epoch": N, "train_loss": N, "validation_loss": N}),
    "quality": (
        "reports/export/quality.csv",
        {"split": S, "predictor": S, "phase": S, "layer": S, "tokens": N, "recall_at_k": N},
    ),
    "calibration": (
        "reports/export/calibration.csv",
        {"split": S, "bin_low": N, "bin_high": N, "mean_probability": N, "observed_share": N, "count": N},
    ),
    "width": ("reports/export/width.csv", {"split": S, "width": N, "recall": N}),
    "calibration_by_layer": (
        "reports/export/calibration_by_layer.csv",
        {"split": S, "horizon": S, "layer": S, "error_before": N, "error": N, "statements": N},
    ),
    "prefetch_sets": (
        "reports/export/prefetch_sets.csv",
        {
            "split": S,
            "horizon": S,
            "layer": S,
            "stated_coverage": N,
            "coverage": N,
            "low": N,
            "high": N,
            "experts_per_layer": N,
        },
    ),
    "quantisation": (
        "reports/export/quantisation.csv",
        {
            "step": S,
            "int8_operators": S,
            "size_bytes": N,
            "latency_ms": N,
            "recall_at_k": N,
            "lost_points": N,
            "chosen": S,
        },
    ),
    "published_protocol": (
        "reports/export/published_protocol.csv",
        {
            "split": S,
            "predictor": S,
            "capacity_experts": N,
            "hit_rate": N,
            "recall_at_k": N,
            "low": N,
            "high": N,
        },
    ),
    "replay": (
        "reports/simulate/replay.csv",
        {
            "split": S,
            "policy": S,
            "capacity_experts": N,
            "capacity_fraction": N,
            "hits": N,
            "misses": N,
            "hit_rate": N,
            "bytes_moved": N,
            "mib_per_token": N,
            "tokens": N,
            "prefetches": N,
            "prefetches_useful": N,
            "prefetches_useless": N,
        },
    ),
    "timing": (
        "reports/simulate/timing.csv",
        {"split": S, "device": S, "policy": S, "capacity_experts": N, "ms_per_token": N, "tokens_per_second": N},
    ),
    "timeline": (
        "reports/simulate/timeline.csv",
        {
            "prompt_id": S,
            "position": N,
            "token_text": S,
            "layer": N,
            "policy": S,
            "device": S,
            "start_ms": N,
            "compute_ms": N,
            "stall_ms": N,
            "demand_loads": N,
            "prefetches_in_time": N,
            "prefetches_late": N,
            "prefetches_useless": N,
            "evictions": N,
            "predicted": N,
        },
    ),
    "costliest_misses": (
        "reports/simulate/costliest_misses.csv",
        {
            "split": S,
            "prompt_id": S,
            "position": N,
            "token_text": S,
            "layer": N,
            "experts_missed": S,
            "stall_ms": N,
            "predicted": N,
        },
    ),
    "time_by_bandwidth": (
        "reports/simulate/time_by_bandwidth.csv",
        {"split": S, "capacity_experts": N, "policy": S, "bandwidth_gb_per_s": N, "ms_per_token": N},
    ),
    "break_even": (
        "reports/simulate/break_even.csv",
        {
            "split": S,
            "device": S,
            "capacity_experts": N,
            "policy": S,
            "against": S,
            "bandwidth_gb_per_s": N,
            "pays": S,
            "predictor_ms_limit": N,
        },
    ),
    "published_cache": (
        "reports/simulate/published_cache.csv",
        {
            "split": S,
            "predictor": S,
            "cache": S,
            "capacity_experts": N,
            "hit_rate": N,
            "low": N,
            "high": N,
            "mib_per_token": N,
            "gain": N,
            "gain_low": N,
            "gain_high": N,
            "mib_change": N,
            "mib_change_low": N,
            "mib_change_high": N,
        },
    ),
    "left_out": ("reports/simulate/left_out.csv", {"split": S, "policy": S, "reason": S}),
    "ablation": ("reports/simulate/ablation.csv", {"split": S, "capacity_experts": N, "hit_rate": N}),
    "comparisons": (
        "reports/simulate/comparisons.csv",
        {"split": S, "capacity_experts": N, "a": S, "b": S, "difference": N, "low": N, "high": N},
    ),
}
"""Path from the project's root, and the columns without which the table says nothing. More columns are welcome."""

TOKEN = "token"  # noqa: S105 - the token step's horizon, no secret

STAGES_WITH_METRICS = ("reference", "extract", "assess", "split", "tune", "train", "export", "simulate")


@dataclass(frozen=True)
class Table:
    """A table as it lies on disk, or the reason why there is none.

    Attributes:
        path: Path from the project's root.
        frame: The rows; None where `absent` says why.
        absent: Reason, a clause that completes "left out because"; empty where there is a frame.
        empty: The file is there and whole, and has no rows.
    """

    path: str
    frame: pl.DataFrame | None
    absent: str = ""
    empty: bool = False

    @property
    def rows(self) -> pl.DataFrame:
        """The frame of a table known to be present."""
        if self.frame is None:
            raise AssertionError(self.absent)
        return self.frame

    def has(self, *columns: str) -> bool:
        """True where the table is present with all of `columns`."""
        return self.frame is not None and set(columns) <= set(self.frame.columns)


@dataclass(frozen=True)
class Tables:
    """Everything that the page is made of.

    Attributes:
        csv: By the names of LAYOUT.
        card: reports/assess/card.json, or empty.
        metrics: By stage, `metrics.json` flattened with dots; a stage without one is missing.
        receipts: By stage, `run.json`: which MLflow run made the outs.
    """

    csv: dict[str, Table]
    card: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Table:
        """The table of that name in LAYOUT."""
        return self.csv[name]

    @cached_property
    def splits(self) -> list[str]:
        """Test splits that were replayed or scored, same domain first."""
        found: list[str] = []
        for name in ("replay", "quality"):
            frame = self.csv[name].frame
            if frame is not None:
                found += frame["split"].unique().sort().to_list()
        tests = [split for split in dict.fromkeys(found) if split.startswith("test")]
        return tests or list(dict.fromkeys(found))

    @cached_property
    def policies(self) -> list[str]:
        """Replayed policies: ours first, bounds last."""
        frame = self.csv["replay"].frame
        return [] if frame is None else ordered(frame["policy"].to_list())

    @cached_property
    def lossy(self) -> set[str]:
        """Policies whose answers are not the model's: did with less than the router wanted, or need another router."""
        replay = self.csv["replay"]
        retrained = {name for name in self.policies if needs_another_router(name)}
        if not replay.has("mass_given_up"):
            return retrained
        return retrained | set(replay.rows.filter(pl.col("mass_given_up") > 0)["policy"].to_list())

    def can_win(self, policy: str) -> bool:
        """True for a policy that can be built and answers as the model does."""
        return not is_bound(policy) and policy not in self.lossy

    @cached_property
    def predictors(self) -> list[str]:
        """Scored predictors, ours first."""
        frame = self.csv["quality"].frame
        return [] if frame is None else ordered(frame["predictor"].to_list())

    @cached_property
    def horizons(self) -> list[str]:
        """At which steps predictors were asked: `token`, then how many layers ahead, rising."""
        quality = self.csv["quality"]
        if not quality.has("horizon"):
            return [TOKEN]
        return sorted(quality.rows["horizon"].unique().to_list(), key=lambda name: (name != TOKEN, len(name), name))

    @cached_property
    def devices(self) -> list[str]:
        """Devices whose time was modelled."""
        frame = self.times
        return [] if frame is None else [str(name) for name in frame["device"].unique(maintain_order=True).to_list()]

    @cached_property
    def latency_ms(self) -> float | None:
        """Median latency of the exported predictor's token step, where export measured it."""
        value = find(self.metrics.get("export", {}), "latency_ms")
        return None if value is None else float(value)

    @cached_property
    def modelled_latency_ms(self) -> float | None:
        """Of several predictor latencies in timing.csv the one nearest to the measured one; None without a choice."""
        frame = self.csv["timing"].frame
        if frame is None or "predictor_ms" not in frame.columns:
            return None
        values = [float(value) for value in frame["predictor_ms"].drop_nulls().unique().sort().to_list()]
        if not values:
            return None
        return min(values, key=lambda value: abs(value - (self.latency_ms or 0.0)))

    @cached_property
    def times(self) -> pl.DataFrame | None:
        """timing.csv at the predictor's own latency, of splits in which something was decoded; else None."""
        frame, latency = self.csv["timing"].frame, self.modelled_latency_ms
        if frame is None:
            return None
        frame = frame.filter(pl.col("ms_per_token") > 0)
        if latency is not None:
            # what predicts nothing is timed once, whatever a predictor takes
            once = pl.len().over("split", "device", "policy", "capacity_experts") == 1
            frame = frame.filter((pl.col("predictor_ms") == latency) | pl.col("predictor_ms").is_null() | once)
        return None if frame.is_empty() else frame

    @property
    def learned_policy(self) -> str | None:
        """The replayed policy that the trained predictor drives with all that it can say, whoever wins.

        The first that gives up nothing; one that asks ahead of each layer goes before one that asks for tokens alone.
        """
        ours = [name for name in self.policies if is_learned(name) and self.can_win(name)]
        return min(ours, key=lambda name: not asks_by_layer(name), default=None)

    @property
    def learned_predictor(self) -> str | None:
        """The scored predictor that was trained."""
        return next((name for name in self.predictors if is_learned(name)), None)

    @cached_property
    def token_cycle(self) -> int | None:
        """Experts that one decode token touches in all layers, where the assessment says so."""
        value = find(flatten(self.card) | self.metrics.get("assess", {}), "token_cycle", "token_cycle_experts")
        return None if value is None else int(value)

    @cached_property
    def model_experts(self) -> int | None:
        """Routed experts of the whole model, as the popularity table lists them."""
        frame = self.csv["popularity"].frame
        return None if frame is None else frame.height

    @cached_property
    def expert_mib(self) -> float | None:
        """Mean MiB that a miss moved, from a policy that moves nothing else."""
        frame = self.csv["replay"].frame
        if frame is None:
            return None
        demand = frame.filter((pl.col("prefetches") == 0) & (pl.col("misses") > 0) & (pl.col("bytes_moved") > 0))
        if demand.is_empty():
            return None
        return float(demand["bytes_moved"].sum()) / float(demand["misses"].sum()) / 2**20


def find(values: dict[str, Any], *names: str) -> Any:
    """The first value whose dotted key ends in one of `names`; None where there is none."""
    for name in names:
        for key, value in values.items():
            if key == name or key.endswith((f".{name}", f"/{name}")):
                return value
    return None


def read_tables(root: Path) -> Tables:
    """Read what stands under `reports/` and `data/splits/` of the project at `root`.

    Raises:
        InputError: A file is there and cannot be read, or a column that must hold numbers holds something else.
    """
    reports = root / "reports"
    metrics = {stage: _read_json(reports / stage / "metrics.json", root) for stage in STAGES_WITH_METRICS}
    receipts = {path.parent.name: _read_json(path, root) for path in sorted(reports.glob("*/run.json"))}
    return Tables(
        csv={name: _read_csv(root, *entry) for name, entry in LAYOUT.items()},
        card=_read_json(reports / "assess" / "card.json", root),
        metrics={stage: flatten(value) for stage, value in metrics.items() if value},
        receipts=receipts,
    )


def _read_json(path: Path, root: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path.relative_to(root)}: not valid JSON ({error}); run its stage again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path.relative_to(root)}: expected an object, found {type(value).__name__}")
    return value


def _read_csv(root: Path, relative: str, columns: dict[str, Kind]) -> Table:
    path = root / relative
    if not path.exists():
        return Table(relative, None, f"{relative} was not written")
    texts: dict[str, type[pl.DataType]] = {name: pl.String for name, kind in columns.items() if kind == "text"}
    try:
        header = pl.read_csv(path, n_rows=0).columns
        known = {name: kind for name, kind in texts.items() if name in header}
        frame = pl.read_csv(path, schema_overrides=known, infer_schema_length=None)
    except pl.exceptions.NoDataError:
        return Table(relative, None, f"{relative} is empty")
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{relative}: not a readable CSV ({reason}); run its stage again") from error
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        return Table(relative, None, f"{relative} has no column {missing[0]}")
    if frame.is_empty():
        return Table(relative, None, f"{relative} has no rows", empty=True)
    for name, kind in columns.items():
        if kind == "number" and frame[name].null_count() == frame.height:
            # nothing was measurable, prompts too short for a window say; a CSV of empty cells reads as text
            frame = frame.with_columns(pl.lit(None, pl.Float64).alias(name))
        elif kind == "number" and not (frame[name].dtype.is_numeric() or frame[name].dtype == pl.Null):
            odd = frame[name].filter(frame[name].cast(pl.Float64, strict=False).is_null())
            found = odd[0] if len(odd) else frame[name].dtype
            raise InputError(f"{relative}: column {name}: found {found!r}, expected numbers; run its stage again")
    if "predictor" in columns:
        # one spelling with the policies that a predictor drives
        frame = frame.with_columns(pl.col("predictor").str.replace_all(",", "").str.replace_all(" ", "_"))
    return Table(relative, frame)
