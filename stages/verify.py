"""Decodes test prompts live, with experts on disk, under policies that were replayed, and compares the two."""

from pathlib import Path

import polars as pl

from moe_beyond.capture.models import ModelSource, load
from moe_beyond.capture.settings import TracesSettings
from moe_beyond.capture.sources import model_of
from moe_beyond.files import scratch_folder, write_json, write_tables
from moe_beyond.live.packing import pack_model
from moe_beyond.live.settings import VerifySettings
from moe_beyond.live.store import ExpertStore
from moe_beyond.live.verify import verify
from moe_beyond.settings import Seed, Settings
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.threads import torch_threads

REPORTS = Path("reports/verify")
NO_WEIGHTS = "published traces come without the model's weights, so nothing can be decoded"


class Params(Settings):
    seed: Seed
    traces: TracesSettings
    simulate: SimulateSettings = SimulateSettings()
    verify: VerifySettings = VerifySettings()


def main(root: Path, params: Params) -> None:
    tables = {"not_verified": pl.DataFrame({"reason": [NO_WEIGHTS]})}
    found: dict[str, dict[str, float]] = {}
    if params.traces.source != "import":
        source = ModelSource("models/reference")
        if params.traces.source == "transformers":
            source = model_of(params.traces.transformers)
        loaded = load(source)
        settings = params.simulate.of_source(params.traces.source)
        with torch_threads(params.verify.threads), scratch_folder(root, "verify", loaded.revision) as scratch:
            pack_model(loaded.model, scratch / "experts", model_id=source.location, revision=loaded.revision)
            with ExpertStore.open(scratch / "experts") as experts:
                tables, found = verify(root, loaded, experts, settings, params.verify, seed=params.seed)
    write_tables(root / REPORTS / "tables", tables)
    write_json(root / REPORTS / "metrics.json", found)
