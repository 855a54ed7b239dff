"""params.yaml as one frozen, checked object. The only reader of that file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from moe_beyond.data.settings import SplitSettings
from moe_beyond.errors import InputError
from moe_beyond.predictor.settings import ExportSettings, TrainSettings, TuneSettings
from moe_beyond.reference.settings import ReferenceSettings
from moe_beyond.registry.settings import PublishSettings
from moe_beyond.reporting.settings import ReportSettings
from moe_beyond.settings import Settings
from moe_beyond.simulator.settings import SimulateSettings
from moe_beyond.traces.settings import AssessSettings, ExtractSettings, TracesSettings

STAGES = ("reference", "extract", "assess", "split", "tune", "train", "export", "simulate", "report", "publish")
"""One word each for a stage of dvc.yaml, its script, its section of params.yaml and its folder under reports/."""


class Params(Settings):
    """All of params.yaml. A stage passes its own section down, never all of it."""

    seed: int = Field(default=7, ge=0, lt=2**32)
    traces: TracesSettings = TracesSettings()
    reference: ReferenceSettings = ReferenceSettings()
    extract: ExtractSettings = ExtractSettings()
    assess: AssessSettings = AssessSettings()
    split: SplitSettings = SplitSettings()
    tune: TuneSettings = TuneSettings()
    train: TrainSettings = TrainSettings()
    export: ExportSettings = ExportSettings()
    simulate: SimulateSettings = SimulateSettings()
    report: ReportSettings = ReportSettings()
    publish: PublishSettings = PublishSettings()


def load_params(path: Path) -> Params:
    """Read and check the parameter file.

    Raises:
        InputError: The file is missing or not YAML, or a key is unknown or its value out of range; the message names
            the key, the value and what was expected.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: not found; run from the project's root") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected sections, found {type(raw).__name__}")
    return parse_params(raw, path.name)


def parse_params(raw: dict[str, Any], where: str) -> Params:
    """Check parameters that were read from `where`. Raises InputError as `load_params` does."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise InputError("; ".join(_describe(detail, where) for detail in error.errors())) from error


def _describe(detail: Any, where: str) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{where}: {key}: unknown parameter; correct its name or remove it"
    message = detail["msg"].removeprefix("Value error, ")
    given = detail["input"]
    return f"{where}: {key}: {message}" + ("" if isinstance(given, dict) else f" (found {given!r})")


def flatten(value: dict[str, Any], separator: str = ".") -> dict[str, Any]:
    """Nested dicts as one, keys joined; lists stay values."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= {f"{key}{separator}{inner}": leaf for inner, leaf in flatten(item, separator).items()}
        else:
            flat[str(key)] = item
    return flat
