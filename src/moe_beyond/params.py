"""All of params.yaml as one frozen, checked object, for commands and documentation; a stage reads its own sections."""

from __future__ import annotations

from pathlib import Path

from moe_beyond.assess.settings import AssessSettings
from moe_beyond.capture.reference.settings import ReferenceSettings
from moe_beyond.capture.settings import ExtractSettings, TracesSettings
from moe_beyond.data.settings import SplitSettings
from moe_beyond.live.settings import VerifySettings
from moe_beyond.network.settings import ExportSettings
from moe_beyond.numerics import Numerics
from moe_beyond.registry.settings import PublishSettings
from moe_beyond.reporting.settings import ReportSettings
from moe_beyond.settings import DEFAULT_SEED, Seed, Settings, read_params
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.training.settings import TrainSettings
from moe_beyond.tuning.settings import TuneSettings


class Params(Settings):
    """All of params.yaml. A stage passes its own section down, never all of it."""

    seed: Seed = DEFAULT_SEED
    numerics: Numerics = "portable"
    traces: TracesSettings = TracesSettings()
    reference: ReferenceSettings = ReferenceSettings()
    extract: ExtractSettings = ExtractSettings()
    assess: AssessSettings = AssessSettings()
    split: SplitSettings = SplitSettings()
    tune: TuneSettings = TuneSettings()
    train: TrainSettings = TrainSettings()
    export: ExportSettings = ExportSettings()
    simulate: SimulateSettings = SimulateSettings()
    verify: VerifySettings = VerifySettings()
    report: ReportSettings = ReportSettings()
    publish: PublishSettings = PublishSettings()


def load_params(path: Path) -> Params:
    """Read and check the whole parameter file. Raises InputError as `settings.read_params` does."""
    return read_params(path, Params)
