"""Helps the search that a `tune` stage runs on another machine, until all candidates are tried.

    OPTUNA_STORAGE=postgresql://... python scripts/join_study.py

Run it in a checkout of the same commit, with the same params.yaml and the same data (`dvc pull data/splits`), once the
stage has started: the study's name follows from all of these, so other inputs would be another study. It writes no
outs.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from moe_beyond.errors import InputError, line_of
from moe_beyond.files import scratch_folder
from moe_beyond.masking import mask_output
from moe_beyond.params import load_params
from moe_beyond.tuning.inputs import Inputs
from moe_beyond.tuning.optuna_study import StudyPlace
from moe_beyond.tuning.search import join


def main() -> None:
    """Join the study of this checkout."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    root = Path.cwd()
    try:
        params = load_params(root / "params.yaml")
        simulate = params.simulate.of_source(params.traces.source)
        inputs = Inputs(root / "data/splits", params.seed, params.tune, params.train, simulate)
        key = inputs.key()
        with scratch_folder(root, "tune", key) as scratch:
            join(inputs, StudyPlace.of(params.tune.storage, f"moe-beyond-{key}", scratch), scratch)
    except InputError as error:
        print(f"error: {line_of(error)}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    mask_output()
    main()
