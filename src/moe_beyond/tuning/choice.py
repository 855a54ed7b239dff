"""Which candidate is trained in full: the one of least milliseconds per token, with the reason for each other one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optuna
import polars as pl
from optuna.trial import FrozenTrial, TrialState

from moe_beyond.errors import InputError
from moe_beyond.tuning.ledger import is_tried
from moe_beyond.tuning.settings import TuneSettings
from moe_beyond.tuning.space import Candidate, choices

MEASURED: dict[str, type[pl.DataType]] = {
    "recall_at_k": pl.Float64,
    "recall_at_k_ahead_1": pl.Float64,
    "latency_ms": pl.Float64,
    "layer_latency_ms": pl.Float64,
    "parameters": pl.Int64,
    "size_bytes": pl.Int64,
    "ms_per_token": pl.Float64,
    "hit_rate": pl.Float64,
    "use": pl.String,
}


@dataclass(frozen=True)
class Search:
    """Outcome of a study.

    Attributes:
        trials: A row a trial: trial, state, the candidate's names, what was measured (empty where a trial ended early),
            on_front, chosen, reason.
        best: The candidate that the rule chose.
        on_demand_ms: Milliseconds per token without a predictor, on the same device and cache.
    """

    trials: pl.DataFrame
    best: Candidate
    on_demand_ms: float

    def metrics(self) -> dict[str, Any]:
        """Headline numbers of the study."""
        row = self.trials.filter(pl.col("chosen")).row(0, named=True)
        chosen = {key: row[key] for key in (*self.best, *MEASURED, "reason")}
        states = self.trials["state"].to_list()
        return {
            "trials": len(states),
            "pruned": states.count("pruned"),
            "failed": states.count("fail"),
            "on_front": int(self.trials["on_front"].sum()),
            "on_demand_ms_per_token": self.on_demand_ms,
            "chosen": chosen,
        }


def trials_table(study: optuna.Study, settings: TuneSettings) -> pl.DataFrame:
    """Tried candidates, with those on the Pareto front of recall, latency and bytes marked."""
    front = {trial.number for trial in study.best_trials}
    rows = [_row(trial, settings, trial.number in front) for trial in study.get_trials(deepcopy=False)]
    tried = [row for row in rows if row is not None]
    if not tried:
        raise InputError("tune: no candidate was tried; see the messages above")
    return pl.DataFrame(tried, schema_overrides=MEASURED | {"ended": pl.String})


def _row(trial: FrozenTrial, settings: TuneSettings, on_front: bool) -> dict[str, Any] | None:
    if not is_tried(trial):
        return None
    measured = trial.user_attrs["measured"] if trial.state == TrialState.COMPLETE else {}
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        **{name: trial.params[name] for name in choices(settings.space)},
        **{name: measured.get(name) for name in MEASURED},
        "on_front": on_front,
        "ended": trial.user_attrs.get("reason"),
    }


def choose(trials: pl.DataFrame, settings: TuneSettings, on_demand_ms: float) -> Search:
    """The rule: of the candidates that answer fast enough, the one of least milliseconds per token on the device.

    Args:
        trials: As `trials_table` makes them.
        settings: Device, capacity, and what is fast enough.
        on_demand_ms: Without a predictor; for the reason that is given.

    Raises:
        InputError: No candidate was measured, or all are slower than `tune.max_latency_ms`.
    """
    measured = trials.filter(pl.col("state") == "complete")
    if measured.is_empty():
        raise InputError(f"tune: no candidate could be measured; the first one: {trials['ended'][0]}")
    fast = measured.filter(pl.col("latency_ms") <= settings.max_latency_ms)
    if fast.is_empty():
        fastest = float(measured["latency_ms"].to_numpy().min())
        raise InputError(
            f"params.yaml: tune.max_latency_ms: {settings.max_latency_ms} ms, but the fastest candidate takes "
            f"{fastest:.3f} ms; raise it or widen tune.space"
        )
    best = fast.sort("ms_per_token", "size_bytes", "trial").row(0, named=True)
    reasons = [_reason(row, best, settings, on_demand_ms) for row in trials.iter_rows(named=True)]
    trials = trials.with_columns(chosen=pl.col("trial") == best["trial"], reason=pl.Series(reasons)).drop("ended")
    return Search(trials, {name: best[name] for name in choices(settings.space)}, on_demand_ms)


def _reason(row: dict[str, Any], best: dict[str, Any], settings: TuneSettings, on_demand_ms: float) -> str:
    if row["trial"] == best["trial"]:
        return (
            f"least time per token on {settings.device} at capacity {settings.capacity:g}: "
            f"{row['ms_per_token']:.3f} ms (LRU without a predictor {on_demand_ms:.3f} ms)"
        )
    if row["ended"] is not None:
        return str(row["ended"])
    if row["latency_ms"] > settings.max_latency_ms:
        return f"its token step takes {row['latency_ms']:.3f} ms, more than tune.max_latency_ms"
    return f"{row['ms_per_token'] - best['ms_per_token']:.3f} ms per token more than trial {best['trial']}"
