"""One trial: fit a candidate, export it, time it in onnxruntime, replay a cache with it.

Everything that is measured is noted in the study before it is logged, with its time, so that a trial that was
interrupted says the same again, not something else beside it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optuna.trial import TrialState

from moe_beyond.errors import InputError
from moe_beyond.files import fingerprint
from moe_beyond.predictor.latency import modelled
from moe_beyond.predictor.network import num_parameters
from moe_beyond.predictor.onnx import export_steps
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.traces.schema import Trace
from moe_beyond.training.fit import Fit, fit
from moe_beyond.training.settings import TrainSettings
from moe_beyond.tuning.ledger import Claim, Ledger, Row
from moe_beyond.tuning.payoff import Bench
from moe_beyond.tuning.settings import TuneSettings
from moe_beyond.tuning.space import no_larger, parts
from moe_beyond.tuning.storage import StudyPlace

RECALL = "validation/recall_at_k"


class TrialRun(Protocol):
    """The record of a trial elsewhere."""

    @property
    def run_id(self) -> str:
        """By which it is found again."""
        ...

    def __call__(self, metrics: dict[str, float], step: int, at_ms: int | None = None) -> None:
        """Log metrics at a step and a time."""
        ...


class TrialLog(Protocol):
    """Opens the record of a trial: a new one, or again the one that its killed worker had opened."""

    @property
    def parent(self) -> str:
        """The record that those of the trials belong to."""
        ...

    def __call__(
        self, name: str, params: dict[str, Any], run_id: str | None = None
    ) -> AbstractContextManager[TrialRun]:
        """Open it."""
        ...


@dataclass(frozen=True)
class Job:
    """All that a worker needs; can be sent to another process.

    Attributes:
        place: Of the study.
        train: Prompts to learn from.
        validation: Prompts that recall is measured on.
        settings: Of the search.
        train_settings: Of every fit, where a candidate says nothing else.
        bench: Where time per token is found.
        opset: Of the graphs.
        seed: Of the sampler and of every fit.
        trial_log: Records each trial.
    """

    place: StudyPlace
    train: Trace
    validation: Trace
    settings: TuneSettings
    train_settings: TrainSettings
    bench: Bench
    opset: int
    seed: int
    trial_log: TrialLog


class DominatedError(Exception):
    """A smaller predictor was better after as many epochs."""


def run_trial(job: Job, ledger: Ledger, claim: Claim) -> None:
    """Run a trial to its end and tell the study."""
    number, directory = claim.trial.number, job.place.folder / fingerprint(claim.candidate)
    known_run = claim.trial.user_attrs.get("run_id")
    with ledger.alive(claim), job.trial_log(f"trial-{number}", claim.candidate, known_run) as log:
        claim.note("run_id", log.run_id)
        for row in claim.rows:
            log(row["metrics"], row["step"], row["at_ms"])
        try:
            measured = claim.trial.user_attrs.get("measured") or _measure(job, ledger, claim, directory, log)
        except DominatedError as error:
            ledger.give_up(claim, str(error), pruned=True)
        except InputError as error:
            ledger.give_up(claim, str(error), pruned=False)
        else:
            log({name: value for name, value in measured.items() if name not in ("at_ms", "use")}, 0, measured["at_ms"])
            ledger.finish(claim, (measured["recall_at_k"], measured["latency_ms"], measured["size_bytes"]))
    shutil.rmtree(directory, ignore_errors=True)


def _measure(job: Job, ledger: Ledger, claim: Claim, directory: Path, log: TrialRun) -> dict[str, Any]:
    size, settings = parts(claim.candidate, job.train_settings)
    # trials run side by side, so one has one device; what teachers add is alike for all sizes and dear
    settings = settings.model_copy(update={"devices": 1, "num_nodes": 1, "strategy": "auto", "teachers": 0})
    fitted = fit(
        job.train,
        job.validation,
        size,
        settings,
        epochs=job.settings.epochs,
        seed=job.seed,
        scratch=directory,
        log_step=_epoch_log(job, ledger, claim, log),
    )
    measured = _cost(job, fitted, directory)
    claim.note("measured", measured)
    return measured


def _epoch_log(job: Job, ledger: Ledger, claim: Claim, log: TrialRun) -> Callable[[dict[str, float], int], None]:
    rows = claim.rows

    def log_step(metrics: dict[str, float], step: int) -> None:
        if step not in {row["step"] for row in rows}:  # else it was noted, and not yet in the fit's checkpoint
            rows.append({"step": step, "at_ms": int(time.time() * 1000), "metrics": metrics})
            claim.note("rows", rows)
            log(metrics, step, rows[-1]["at_ms"])
        better = dominating(rows, claim, ledger, job.settings.pruning_margin)
        if better is not None and len(rows) < job.settings.epochs:
            raise DominatedError(
                f"ended after epoch {len(rows)}: trial {better} is no larger and had a recall higher by at least "
                f"{job.settings.pruning_margin}"
            )

    return log_step


def dominating(rows: list[Row], claim: Claim, ledger: Ledger, margin: float | None) -> int | None:
    """A finished trial that is no larger and was better after as many epochs, if there is one.

    Optuna's pruners know one objective. With three, a candidate that falls behind in recall may still be the smallest
    or fastest, so only one that is behind a candidate which is no larger either has no chance.
    """
    if margin is None:
        return None
    for trial in ledger.trials(TrialState.COMPLETE):
        theirs = trial.user_attrs.get("rows", [])
        if len(theirs) < len(rows) or not no_larger(trial.params, claim.candidate):
            continue
        if theirs[len(rows) - 1]["metrics"][RECALL] >= rows[-1]["metrics"][RECALL] + margin:
            return trial.number
    return None


def _cost(job: Job, fitted: Fit, directory: Path) -> dict[str, Any]:
    graphs = directory / "graphs"
    shutil.rmtree(graphs, ignore_errors=True)
    graphs.mkdir(parents=True)
    export_steps(fitted.checkpoint, graphs, job.opset)
    predictor = OnnxPredictor(graphs)
    latency = modelled(fitted.checkpoint.network.shape)
    latency_ms, layer_latency_ms = latency.token_step_ms, latency.layer_step_ms
    payoff = job.bench.payoff(predictor, latency_ms, layer_latency_ms)
    metrics = fitted.metrics()
    return {
        "recall_at_k": fitted.best_recall,
        "recall_at_k_ahead_1": metrics["validation_recall_at_k_ahead_1"],
        "latency_ms": latency_ms,
        "layer_latency_ms": layer_latency_ms,
        "parameters": num_parameters(fitted.checkpoint.network) + num_parameters(fitted.checkpoint.layer_step),
        "size_bytes": sum(file.stat().st_size for file in graphs.iterdir()),
        "ms_per_token": payoff.ms_per_token,
        "hit_rate": payoff.hit_rate,
        "use": payoff.use,
        "at_ms": int(time.time() * 1000),
    }
