"""Which candidate is trained in full: the one of least milliseconds per token, with the reason for each other one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from moe_beyond.errors import InputError
from moe_beyond.tuning.candidates import Candidate, Drawn
from moe_beyond.tuning.optuna_study import Outcome
from moe_beyond.tuning.settings import TuneSettings

_PREDICTOR = ("recall_at_k", "recall_at_k_ahead_1", "token_step_ms", "layer_step_ms", "parameters")
_NUMBERS = (*_PREDICTOR, "ms_per_token", "hit_rate", "use")


@dataclass(frozen=True)
class Search:
    """Outcome of a search.

    Attributes:
        trials: A row a candidate: trial (its index), state (complete or failed), the candidate's names, what was
            measured and charged, chosen, reason.
        epochs: A row an epoch of each: trial, and the columns of `Fit.history`.
        best: The candidate that the rule chose.
        on_demand_ms: Milliseconds per token without a predictor, on the same device and cache.
        infeasible: Candidates of the space that are slower than `tune.max_latency_ms`.
    """

    trials: pl.DataFrame
    epochs: pl.DataFrame
    best: Candidate
    on_demand_ms: float
    infeasible: int

    def metrics(self) -> dict[str, Any]:
        """Headline numbers of the search."""
        chosen = self.trials.filter("chosen").drop("state", "chosen").row(0, named=True)
        return {
            "trials": len(self.trials),
            "failed": int((self.trials["state"] == "failed").sum()),
            "infeasible": self.infeasible,
            "on_demand_ms_per_token": self.on_demand_ms,
            "chosen": chosen,
        }


def choose(drawn: Drawn, outcomes: Mapping[int, Outcome], settings: TuneSettings, on_demand_ms: float) -> Search:
    """The rule: least milliseconds per token on the device; of equal ones fewest parameters, then the first.

    Args:
        drawn: All candidates.
        outcomes: Of each, by its index.
        settings: Device and capacity, for the reason that is given.
        on_demand_ms: Without a predictor.

    Raises:
        InputError: No candidate could be measured.
    """
    measured = {index: outcome.numbers for index, outcome in sorted(outcomes.items()) if outcome.reason is None}
    if not measured:
        raise InputError(f"tune: no candidate could be measured; the first one: {outcomes[0].reason}")
    best = min(measured, key=lambda index: (measured[index]["ms_per_token"], measured[index]["parameters"], index))
    least_ms = measured[best]["ms_per_token"]
    rows = []
    for index, (candidate, latency) in enumerate(zip(drawn.candidates, drawn.latencies, strict=True)):
        outcome = outcomes[index]
        row = {"token_step_ms": latency.token_step_ms, "layer_step_ms": latency.layer_step_ms, **outcome.numbers}
        reason = outcome.reason
        if index == best:
            reason = (
                f"least time per token on {settings.device} at capacity {settings.capacity:g}: "
                f"{least_ms:.3f} ms (LRU without a predictor {on_demand_ms:.3f} ms)"
            )
        elif reason is None:
            reason = f"{row['ms_per_token'] - least_ms:.3f} ms per token more than trial {best}"
        state = "failed" if index not in measured else "complete"
        own = {"trial": index, "state": state, **candidate, **{name: row.get(name) for name in _NUMBERS}}
        rows.append(own | {"chosen": index == best, "reason": reason})
    epochs = [{"trial": index} | epoch for index in measured for epoch in outcomes[index].epochs]
    trials = pl.DataFrame(rows, infer_schema_length=None)
    return Search(trials, pl.DataFrame(epochs), drawn.candidates[best], on_demand_ms, drawn.infeasible)
