"""Fits the predictor at the size that the search chose."""

from pathlib import Path

import polars as pl

from moe_beyond.files import fingerprint, folder_digest, replacing, scratch_folder, scratch_path, write_json
from moe_beyond.network.checkpoint import save_checkpoint
from moe_beyond.paper.training import fit_variants
from moe_beyond.settings import Seed, Settings
from moe_beyond.traces import store
from moe_beyond.training.distributed import is_further_process
from moe_beyond.training.fit import fit
from moe_beyond.training.settings import TrainSettings
from moe_beyond.training.size import read_choice

FOLDERS = Path("data/splits/train"), Path("data/splits/validation")
BEST = Path("reports/tune/best.yaml")
REPORTS = Path("reports/train")


class Params(Settings):
    seed: Seed
    train: TrainSettings = TrainSettings()


def main(root: Path, params: Params) -> None:
    size, settings = read_choice(root / BEST, params.train)
    train, validation = (store.open_working(root / folder) for folder in FOLDERS)
    key = fingerprint(params.seed, settings, size, *(folder_digest(root / folder) for folder in FOLDERS))
    scratch = scratch_path(root, "train", key)
    if is_further_process():  # it takes part in the fit that the first process started, which does the rest
        fit(train, validation, size, settings, epochs=settings.epochs, seed=params.seed, scratch=scratch)
        return
    with scratch_folder(root, "train", key) as scratch:
        result = fit(train, validation, size, settings, epochs=settings.epochs, seed=params.seed, scratch=scratch)
        save_checkpoint(result.checkpoint, root / "models/checkpoint")
        published = root / "models/published"
        fit_variants(train, validation, params.train, seed=params.seed, scratch=scratch, directory=published)
        with replacing(root / REPORTS / "history.csv") as temporary:
            pl.DataFrame(result.history).write_csv(temporary)
        write_json(root / REPORTS / "metrics.json", result.metrics())
