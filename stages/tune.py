"""Searches the predictor's size: validation recall against measured latency, then the rule in params.yaml."""

from dataclasses import asdict
from pathlib import Path

import yaml

from moe_beyond.dvcfile import content_md5
from moe_beyond.files import replacing
from moe_beyond.scratch import fingerprint, scratch_folder
from moe_beyond.traces import store
from moe_beyond.tracking import stage_run
from moe_beyond.tuning import search

SPLITS = Path("data/splits")


def main() -> None:
    with stage_run("tune") as run:
        params = run.params
        folders = [SPLITS / "train", SPLITS / "validation"]
        train, validation = (store.open_working(folder) for folder in folders)
        key = fingerprint(params.seed, params.tune, params.train, params.export, *map(content_md5, folders))
        with scratch_folder(run.root, "tune", key) as scratch:
            result = search(
                train,
                validation,
                params.tune,
                params.train,
                opset=params.export.opset,
                seed=params.seed,
                scratch=scratch,
                trial_log=run.children,
            )
            with replacing(run.reports / "best.yaml") as temporary:
                temporary.write_text(yaml.safe_dump(asdict(result.best), sort_keys=False))
            with replacing(run.reports / "trials.csv") as temporary:
                result.trials.write_csv(temporary)
            run.write_metrics(result.metrics())


if __name__ == "__main__":
    main()
