"""Helps the search that a `tune` stage runs on another machine, until all candidates are tried.

    OPTUNA_STORAGE=postgresql://... MLFLOW_TRACKING_URI=http://... python scripts/join_study.py

Run it in a checkout of the same commit, with the same params.yaml and the same data (`dvc pull data/splits`), once the
stage has started: the study's name follows from all of these, so other inputs would be another study. It writes no
outs.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import optuna

from moe_beyond.errors import InputError
from moe_beyond.files import folder_digest, scratch_path
from moe_beyond.params import load_params
from moe_beyond.tracking import ChildRuns
from moe_beyond.tracking.dvc import read_stage
from moe_beyond.tuning import Inputs, place_of, work


def main() -> None:
    """Join the study of this checkout."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("moe_beyond").setLevel(logging.INFO)
    root = Path.cwd()
    try:
        params, declared = load_params(root / "params.yaml"), read_stage(root / "dvc.yaml", "tune")
        inputs = Inputs(params.seed, params.tune, params.train, params.replay, params.export.opset)
        key = inputs.key(folder_digest(root / path) for path in declared.deps)
        scratch = scratch_path(root, "tune", key)
        scratch.mkdir(parents=True, exist_ok=True)
        place = place_of(params.tune.storage, f"moe-beyond-{key}", scratch)
        if place.url is None:
            raise InputError("tune.storage: a journal file is not shared; set OPTUNA_STORAGE to PostgreSQL's address")
        storage = place.open()
        try:
            parent = optuna.load_study(study_name=place.name, storage=storage).user_attrs["parent_run"]
        except KeyError as error:
            raise InputError(
                f"study {place.name}: not begun; start the tune stage first, on the same inputs"
            ) from error
        work(inputs.job(root / "data/splits", place, ChildRuns(root, "tune", parent)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
