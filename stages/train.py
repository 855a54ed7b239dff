"""Fits the predictor at the size that the search chose."""

from pathlib import Path

import polars as pl

from moe_beyond.config import load_params
from moe_beyond.dvcfile import content_md5
from moe_beyond.files import replacing
from moe_beyond.predictor.checkpoint import save_checkpoint
from moe_beyond.published_training import fit_variants
from moe_beyond.ranks import is_further_process
from moe_beyond.scratch import fingerprint, scratch_folder, scratch_path
from moe_beyond.traces import store
from moe_beyond.tracking import stage_run
from moe_beyond.training import fit, read_choice

FOLDERS = Path("data/splits/train"), Path("data/splits/validation")
BEST = Path("reports/tune/best.yaml")
CHECKPOINT = Path("models/checkpoint")
PUBLISHED = Path("models/published")


def main() -> None:
    with stage_run("train") as run:
        params = run.params
        size, settings = read_choice(BEST, params.train)
        train, validation = (store.open_working(folder) for folder in FOLDERS)
        key = fingerprint(params.seed, settings, size, *map(content_md5, FOLDERS))
        with scratch_folder(run.root, "train", key) as scratch:
            result = fit(
                train,
                validation,
                size,
                settings,
                epochs=settings.epochs,
                seed=params.seed,
                scratch=scratch,
                log_step=run.log_step_metrics,
            )
            save_checkpoint(result.checkpoint, CHECKPOINT)
            fit_variants(train, validation, params.train, seed=params.seed, scratch=scratch, directory=PUBLISHED)
            with replacing(run.reports / "history.csv") as temporary:
                pl.DataFrame(result.history).write_csv(temporary)
            run.write_metrics(result.metrics())


def help_training() -> None:
    """Take part in the fit that the first process started, and leave the rest to it."""
    params = load_params(Path("params.yaml"))
    size, settings = read_choice(BEST, params.train)
    train, validation = (store.open_working(folder) for folder in FOLDERS)
    scratch = scratch_path(Path.cwd(), "train", fingerprint(params.seed, settings, size, *map(content_md5, FOLDERS)))
    fit(train, validation, size, settings, epochs=settings.epochs, seed=params.seed, scratch=scratch)


if __name__ == "__main__":
    help_training() if is_further_process() else main()
