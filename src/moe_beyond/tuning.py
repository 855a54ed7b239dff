"""The search for the predictor's size: validation recall against measured latency, then a rule.

Every trial trains with the same settings and epochs, is exported and timed in onnxruntime, as the device will run it.
No trial sees a test split.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import polars as pl
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from moe_beyond.errors import InputError
from moe_beyond.predictor.network import num_parameters
from moe_beyond.predictor.onnx import export_token_step
from moe_beyond.predictor.runtime import GRAPH_FILE, OnnxPredictor
from moe_beyond.predictor.settings import SearchSpace, TrainSettings, TuneSettings
from moe_beyond.traces.schema import Trace
from moe_beyond.training import LogStep, Size, fit

TrialLog = Callable[[str, dict[str, Any]], AbstractContextManager[LogStep]]
"""Opens a record of a trial, given its name and parameters, and yields where its metrics go."""

_MEASURED = ("latency_ms", "parameters", "size_bytes")


@dataclass(frozen=True)
class Search:
    """Outcome of a study.

    Attributes:
        trials: A row a trial: trial, width, depth, heads, recall_at_k, latency_ms, parameters, size_bytes, on_front,
            chosen.
        best: The size that the rule chose.
    """

    trials: pl.DataFrame
    best: Size

    def metrics(self) -> dict[str, Any]:
        """Headline numbers of the study."""
        row = self.trials.filter(pl.col("chosen")).row(0, named=True)
        chosen = {key: row[key] for key in ("width", "depth", "heads", "recall_at_k", *_MEASURED)}
        return {"trials": self.trials.height, "on_front": int(self.trials["on_front"].sum()), "chosen": chosen}


def search(
    train: Trace,
    validation: Trace,
    settings: TuneSettings,
    train_settings: TrainSettings,
    *,
    opset: int,
    seed: int,
    scratch: Path,
    trial_log: TrialLog,
) -> Search:
    """Run the study, or the rest of one that was interrupted; each trial is of another size.

    Args:
        train: Prompts to learn from; at most `settings.max_prompts` of them, drawn by the seed.
        validation: Prompts that recall is measured on.
        settings: Space, number of trials, rule.
        train_settings: Of every fit.
        opset: Of the exported graphs that are timed.
        seed: Of the sampler, the prompts drawn and every fit.
        scratch: Directory of this study alone; holds its journal and the trials' files.
        trial_log: Records each trial.

    Raises:
        InputError: No size on the front is fast enough.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(train.num_prompts)[: settings.max_prompts])
    subset = train.select(chosen)
    scratch.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="size",
        directions=["maximize", "minimize"],
        # half of the few trials are random, the rest follow what those showed
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2, settings.trials // 2)),
        storage=JournalStorage(JournalFileBackend(str(scratch / "study.journal"))),
        load_if_exists=True,
    )

    def objective(trial: Trial) -> tuple[float, float]:
        size = suggest(trial, settings.space)
        if size in tried_sizes(study):
            # the sampler may repeat itself; another size says more than the same fit again
            untried = sorted(set(all_sizes(settings.space)) - tried_sizes(study), key=astuple)
            study.enqueue_trial(asdict(untried[rng.integers(len(untried))]))
            raise optuna.TrialPruned
        with trial_log(f"trial-{trial.number}", asdict(size)) as log_step:
            directory = scratch / f"trial-{trial.number}"
            result = fit(
                subset,
                validation,
                size,
                train_settings,
                epochs=settings.epochs,
                seed=seed,
                scratch=directory,
                log_step=log_step,
            )
            export_token_step(result.checkpoint, directory / GRAPH_FILE, opset)
            measured = {
                "latency_ms": OnnxPredictor(directory).latency_ms(settings.latency_repeats),
                "parameters": num_parameters(result.checkpoint.network),
                "size_bytes": (directory / GRAPH_FILE).stat().st_size,
            }
            for key, value in measured.items():
                trial.set_user_attr(key, value)
            log_step({"recall_at_k": result.best_recall, **measured}, 0)
            shutil.rmtree(directory)
        return result.best_recall, measured["latency_ms"]

    wanted = min(settings.trials, len(all_sizes(settings.space)))
    while len(tried_sizes(study)) < wanted:
        study.optimize(objective, n_trials=1)
    return choose(trials_table(study), settings)


def suggest(trial: Trial, space: SearchSpace) -> Size:
    """Draw a size."""
    return Size(
        width=int(trial.suggest_categorical("width", space.width)),
        depth=int(trial.suggest_categorical("depth", space.depth)),
        heads=int(trial.suggest_categorical("heads", space.heads)),
    )


def all_sizes(space: SearchSpace) -> list[Size]:
    """Every size in the space."""
    return [Size(*size) for size in itertools.product(space.width, space.depth, space.heads)]


def tried_sizes(study: optuna.Study) -> set[Size]:
    """Sizes of the study's finished trials."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return {Size(**trial.params) for trial in complete}


def trials_table(study: optuna.Study) -> pl.DataFrame:
    """Finished trials, with those on the Pareto front marked."""
    front = {trial.number for trial in study.best_trials}
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    rows = [
        {
            "trial": trial.number,
            **trial.params,
            "recall_at_k": trial.values[0],
            **{key: trial.user_attrs[key] for key in _MEASURED},
            "on_front": trial.number in front,
        }
        for trial in complete
    ]
    return pl.DataFrame(rows)


def choose(trials: pl.DataFrame, settings: TuneSettings) -> Search:
    """The rule: the fastest size on the front whose recall is within the tolerance of the best that is fast enough.

    Raises:
        InputError: Every size on the front is slower than `tune.max_latency_ms`.
    """
    fast = trials.filter(pl.col("on_front") & (pl.col("latency_ms") <= settings.max_latency_ms))
    if fast.is_empty():
        fastest = float(trials["latency_ms"].to_numpy().min())
        raise InputError(
            f"params.yaml: tune.max_latency_ms: {settings.max_latency_ms} ms, but the fastest size takes "
            f"{fastest:.3f} ms; raise it or widen tune.space"
        )
    best_recall = float(fast["recall_at_k"].to_numpy().max())
    good = fast.filter(pl.col("recall_at_k") >= best_recall - settings.recall_tolerance)
    row = good.sort("latency_ms", "trial").row(0, named=True)
    trials = trials.with_columns(chosen=pl.col("trial") == row["trial"])
    return Search(trials, Size(row["width"], row["depth"], row["heads"]))
