"""Runs of outs that are nowhere any more: a stage was killed when it had logged, and before DVC took its outs.

DVC runs such a stage again. Where it measures times, the outs differ and so does the key: the former run, in MLflow or
among the records that wait, would stand beside that of the outs that are kept.
"""

from __future__ import annotations

import socket
from pathlib import Path

from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from moe_beyond.errors import InputError
from moe_beyond.files import fingerprint
from moe_beyond.tracking.dvc import is_committed
from moe_beyond.tracking.run_record import KEY_TAG, STAGE_TAG, WORK_TAG, Record, read, waiting

PLACE_TAG = "moe_beyond.checkout"


def place_tag(home: Path) -> dict[str, str]:
    """A tag that tells this checkout from others, by a digest."""
    return {PLACE_TAG: fingerprint(socket.gethostname(), str(home.resolve()))}


def forget_waiting(home: Path, root: Path, record: Record) -> None:
    """Remove earlier records of the same work that wait and whose outs DVC never took.

    Args:
        home: The checkout that keeps MLflow's things.
        root: The project's root.
        record: Of the stage that has just ended.
    """
    for path in waiting(home) if WORK_TAG in record.tags else []:
        try:
            other = read(path)
        except InputError:
            continue  # reported when it is sent
        if other.tags.get(WORK_TAG) == record.tags[WORK_TAG] and _is_former(root, record, other.key, other.start_ms):
            path.unlink(missing_ok=True)


def delete_logged(client: MlflowClient, experiment_id: str, root: Path, record: Record) -> None:
    """Delete this checkout's earlier runs of the same work, and their trials, where DVC never took their outs.

    Args:
        client: MLflow's own.
        experiment_id: That the project logs to.
        root: The project's root.
        record: Of the run that stays.
    """
    if WORK_TAG not in record.tags:
        return
    same = " and ".join(f"tags.`{name}` = '{record.tags[name]}'" for name in (WORK_TAG, PLACE_TAG))
    for run in client.search_runs([experiment_id], same):
        # one that belongs to a pipeline's run is vouched for by it
        if MLFLOW_PARENT_RUN_ID not in run.data.tags and _is_former(root, record, *_key_and_start(run)):
            for child in client.search_runs([experiment_id], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run.info.run_id}'"):
                client.delete_run(child.info.run_id)
            client.delete_run(run.info.run_id)


def _key_and_start(run: Run) -> tuple[str, int]:
    return str(run.data.tags[KEY_TAG]), int(run.info.start_time)


def _is_former(root: Path, record: Record, key: str, start_ms: int) -> bool:
    """Whether a run of the same work came before, and its outs are gone."""
    return key != record.key and start_ms < record.start_ms and not is_committed(root, record.tags[STAGE_TAG], key)
