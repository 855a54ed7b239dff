"""The run of a pipeline state: what two states are compared by, and the way to the run behind every artifact.

Stage runs hold their own parameters, metrics and outs. The pipeline's run holds all parameters, what the search chose,
the dozen numbers that decide, and curves over the cache's capacity, so that MLflow's compare view shows what matters.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import polars as pl
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from moe_beyond.files import fingerprint, folder_digest
from moe_beyond.settings import Settings, flatten
from moe_beyond.tracking.client import MlflowMissingError, connected, data_name, log_run
from moe_beyond.tracking.dvc import receipts
from moe_beyond.tracking.run_record import Point, Record, as_text, chosen_params, context_tags, digests, now_ms, points

log = logging.getLogger(__name__)

HEADLINE = Path("reports/simulate/metrics.json")
"""The numbers that decide, name -> value and, where there is an interval, low and high."""
CHOICE = Path("reports/tune/best.yaml")
_ON_DEVICE = Path("reports/simulate/tables/on_device.parquet")
_CURVES = ("ms_per_token", "hit_rate")
_SHOWN = ("reports/index.html", "reports/figures", "models/predictor")


def log_pipeline(root: Path, params: Settings, device: str | None, splits: Sequence[str]) -> str:
    """Log the run of this state of the pipeline where this MLflow has none yet, after the stages' runs that wait.

    Args:
        root: The project's root.
        params: Every section.
        device: Whose curves are logged, the headline's; None where nothing was timed.
        splits: Folders of the prompts trained on and tested on; the headline is of the last one.

    Returns:
        Id of the run.

    Raises:
        MlflowMissingError: MLflow is away or did not take it; the run's record waits then.
    """
    flat = as_text(flatten(params.model_dump(by_alias=True, mode="json")) | chosen_params(root / CHOICE))
    keys, tags, now = receipts(root), context_tags(root, "pipeline"), now_ms()
    label = tags.get("dvc_exp_name") or tags.get("git.commit", "")[:7]
    record = Record(
        key=fingerprint("pipeline", flat, keys),
        name=f"pipeline {label}".rstrip(),
        start_ms=now,
        end_ms=now,
        tags=tags,
        params=flat,
        metrics=(*headline(root), *capacity_curves(root / _ON_DEVICE, device)),
        inputs=digests(root, splits),
        artifacts=digests(root, _SHOWN),
        links=keys,
    )
    # where MLflow has this run already, the record is deleted again
    sent = log_run(root, record)
    with connected(root) as to:
        run_id = to.has(record.key)
        if run_id is None:
            raise MlflowMissingError("; ".join(sent.sentences()))
        log.info("MLflow lists this state's run at %s", to.runs_page)
    return run_id


def headline(root: Path) -> list[Point]:
    """The numbers that decide: `name`, `name/low` and `name/high`."""
    return points(json.loads((root / HEADLINE).read_text(encoding="utf-8")))


def capacity_curves(table: Path, device: str | None) -> list[Point]:
    """Time and hit rate over the cache's capacity, the step, on the last test split.

    Of LRU, of ours as it was chosen at each capacity, and of the best policy without the predictor.

    Args:
        table: The simulate stage's `on_device`.
        device: One of its devices.
    """
    rows = pl.read_parquet(table, glob=False).filter(pl.col("device") == device)
    rows = rows.filter(pl.col("split") == rows["split"].last()) if rows.height else rows
    of = {"lru": pl.col("policy") == "lru"} | {name: pl.col(name) for name in ("ours", "best_without_predictor")}
    return [
        (f"{measure}_by_capacity/{name}", row[measure], row["capacity_experts"])
        for name, chosen in of.items()
        for row in rows.filter(chosen).iter_rows(named=True)
        for measure in _CURVES
    ]


def credit(client: MlflowClient, run_id: str, model_id: str, root: Path, split: str) -> None:
    """Tie the numbers that decide to the model, and to the prompts that they were measured on.

    Args:
        client: MLflow's own.
        run_id: Of the pipeline.
        model_id: Of the logged model.
        root: The project's root.
        split: Folder of the prompts, the last one of the pipeline's inputs.
    """
    # as it was logged without a model: the same points
    at = client.get_run(run_id).info.start_time
    name, digest = data_name(split), folder_digest(root / split)
    client.log_batch(run_id, [Metric(*point[:2], at, point[2], model_id, name, digest) for point in headline(root)])
