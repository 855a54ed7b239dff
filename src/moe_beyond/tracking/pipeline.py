"""The run of a pipeline state: from it one reaches the run behind every artifact.

Stage runs hold their own parameters, metrics and outs. The pipeline's run holds what two states are compared by, all
parameters and the headline metrics, and names the run of every stage, also of one that DVC restored from its cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from moe_beyond.files import fingerprint
from moe_beyond.settings import STAGES, flatten
from moe_beyond.tracking.client import LOCAL, PatientClient, is_away
from moe_beyond.tracking.dvc import read_stage
from moe_beyond.tracking.entries import log_metrics, log_params
from moe_beyond.tracking.stage import StageRun, context_tags, log_artifact, log_outs, stage_params


@contextmanager
def pipeline_run(run: StageRun[Any], artifacts: Sequence[str]) -> Iterator[str]:
    """Open the pipeline's run inside its last stage and yield its id; on success fill it.

    Args:
        run: The open run of the last stage.
        artifacts: Files and folders, relative to the root, that belong on the pipeline's run itself.
    """
    client = run.client
    tags = {**context_tags("pipeline", run.root), "moe_beyond.stage": "pipeline"}
    label = tags.get("dvc_exp_name") or tags.get("git.commit", "")[:7]
    name = f"pipeline {label}".rstrip()
    run_id = client.create_run(run_name=name, tags=tags).info.run_id
    status = RunStatus.FAILED
    try:
        yield run_id
        runs = stage_runs(run) | {run.stage: run.run_id}
        _link(client, run_id, runs)
        log_params(client, run_id, flatten(run.params.model_dump(by_alias=True, mode="json")))
        log_metrics(client, run_id, headline_metrics(run.root))
        for path in artifacts:
            log_artifact(client, run_id, run.root, path)
        status = RunStatus.FINISHED
    finally:
        client.set_terminated(run_id, RunStatus.to_string(status))


def stage_runs(run: StageRun[Any]) -> dict[str, str]:
    """Run id of every earlier stage, from the receipts beside their outs.

    A receipt can name a run that this MLflow does not have, where DVC fetched the outs from a remote. Then the stage's
    parameters, metrics and outs are logged once more, as a run tagged `restored`.
    """
    found = {}
    for stage in STAGES:
        receipt = run.root / "reports" / stage / "run.json"
        if stage == run.stage or not receipt.exists():
            continue
        run_id = json.loads(receipt.read_text(encoding="utf-8"))["run_id"]
        known = _exists(run.client, run_id)
        found[stage] = run.client.resolve(run_id) if known else _mirror(run, stage, run_id)
    return found


def headline_metrics(root: Path) -> dict[str, float]:
    """What two pipeline states are compared by: quality on the test splits, cost, and what the replay says."""
    metrics: dict[str, float] = {}
    for stage in STAGES:
        path = root / "reports" / stage / "metrics.json"
        if not path.exists():
            continue
        for key, value in flatten(json.loads(path.read_text(encoding="utf-8")), "/").items():
            if _is_headline(stage, key):
                metrics[f"{stage}/{key}"] = value
    return metrics


def _is_headline(stage: str, key: str) -> bool:
    if stage == "export":
        return key.count("/") == 0 or key.startswith("recall_at_k/test_")
    if stage == "publish":
        return True
    if stage in ("tune", "train"):
        return key.endswith(("recall_at_k", "latency_ms", "parameters"))
    return stage == "simulate" and key.endswith(("/hit_rate", "/mib_per_token", "/ms_per_token"))


def _exists(client: PatientClient, run_id: str) -> bool:
    try:
        client.get_run(run_id)
    except (MlflowException, RequestException) as error:
        if is_away(error):
            return True  # nobody can say
        if not isinstance(error, MlflowException) or error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return run_id.startswith(LOCAL)  # it waits to be created
    return True


def _mirror(run: StageRun[Any], stage: str, original: str) -> str:
    tags = {"moe_beyond.stage": stage, "restored": "true", "original_run_id": original}
    run_id: str = run.client.create_run(run_name=stage, tags=tags).info.run_id
    declared = read_stage(run.root / "dvc.yaml", stage)
    log_params(run.client, run_id, stage_params(run.params, declared))
    metrics = run.root / "reports" / stage / "metrics.json"
    if metrics.exists():
        log_metrics(run.client, run_id, flatten(json.loads(metrics.read_text(encoding="utf-8")), "/"))
    log_outs(run.client, run_id, run.root, declared)
    run.client.set_terminated(run_id)
    return run_id


def _link(client: PatientClient, run_id: str, runs: dict[str, str]) -> None:
    client.set_tag(run_id, "moe_beyond.state", fingerprint(runs))
    lines = ["Runs of the stages, each with its parameters, metrics and outs:", ""]
    for stage, stage_run_id in runs.items():
        client.set_tag(run_id, f"run.{stage}", stage_run_id)
        experiment = client.known_experiment
        link = f"[{stage}](#/experiments/{experiment}/runs/{stage_run_id})" if experiment else f"{stage} {stage_run_id}"
        lines.append(f"- {link}")
        # the tree in MLflow's list: a stage stands below the first pipeline run that used it
        client.set_tag_once(stage_run_id, "mlflow.parentRunId", run_id)
    client.set_tag(run_id, "mlflow.note.content", "\n".join(lines))
    client.log_dict(run_id, runs, "stage_runs.json")
