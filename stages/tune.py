"""Searches the predictor that saves most time per token on a device; sees no test split."""

from pathlib import Path

import yaml

from moe_beyond.files import folder_digest, replacing, scratch_folder
from moe_beyond.params import load_params
from moe_beyond.tracking import stage_run
from moe_beyond.tuning import Inputs, place_of, search

SPLITS = Path("data/splits")


def main() -> None:
    with stage_run("tune", load_params) as run:
        params = run.params
        inputs = Inputs(params.seed, params.tune, params.train, params.replay, params.export.opset)
        # data and code: a study of other code is another study
        key = inputs.key(folder_digest(run.root / path) for path in run.declared.deps)
        with scratch_folder(run.root, "tune", key) as scratch:
            place = place_of(params.tune.storage, f"moe-beyond-{key}", scratch)
            result, trial_runs = search(inputs.job(run.root / SPLITS, place, run.children))
            for run_id in trial_runs:
                run.children.adopt(run_id)
            with replacing(run.reports / "best.yaml") as temporary:
                temporary.write_text(yaml.safe_dump(result.best, sort_keys=False))
            with replacing(run.reports / "trials.csv") as temporary:
                result.trials.write_csv(temporary)
            run.write_metrics(result.metrics())


if __name__ == "__main__":
    main()
