"""Searches the predictor that saves most time per token on a device; sees no test split."""

from pathlib import Path

import yaml

from moe_beyond.capture.settings import TracesSettings
from moe_beyond.files import replacing, scratch_folder, write_json
from moe_beyond.settings import Seed, Settings
from moe_beyond.simulator.study.settings import ReplaySettings, SimulateSettings
from moe_beyond.training.settings import TrainSettings
from moe_beyond.tuning.inputs import Inputs
from moe_beyond.tuning.optuna_study import StudyPlace
from moe_beyond.tuning.search import search
from moe_beyond.tuning.settings import TuneSettings

REPORTS = Path("reports/tune")


class Params(Settings):
    seed: Seed
    traces: TracesSettings
    tune: TuneSettings = TuneSettings()
    train: TrainSettings = TrainSettings()
    simulate: SimulateSettings = SimulateSettings()


def main(root: Path, params: Params) -> None:
    rules = ReplaySettings(**params.simulate.model_dump(include=set(ReplaySettings.model_fields)))
    rules = rules.of_source(params.traces.source)
    inputs = Inputs(root / "data/splits", params.seed, params.tune, params.train, rules)
    key = inputs.key()
    with scratch_folder(root, "tune", key) as scratch:
        place = StudyPlace.of(params.tune.storage, f"moe-beyond-{key}", scratch)
        result = search(inputs, place, scratch)
        with replacing(root / REPORTS / "best.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(result.best, sort_keys=False))
        for name, table in (("trials", result.trials), ("epochs", result.epochs)):
            with replacing(root / REPORTS / f"{name}.csv") as temporary:
                table.write_csv(temporary)
        write_json(root / REPORTS / "metrics.json", result.metrics())
