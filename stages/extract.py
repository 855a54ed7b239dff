"""Traces the routing of the chosen source: the reference model, any transformers MoE, or published traces."""

from pathlib import Path
from typing import Any

from moe_beyond.capture.reference.prompts import reference_job, reference_prompts
from moe_beyond.capture.settings import ExtractSettings, TracesSettings
from moe_beyond.capture.shards import capture, count
from moe_beyond.capture.sources import transformers_job, transformers_prompts
from moe_beyond.files import replacing, write_json
from moe_beyond.formats import importers
from moe_beyond.settings import Seed, Settings
from moe_beyond.traces import store


class Params(Settings):
    seed: Seed
    traces: TracesSettings
    extract: ExtractSettings = ExtractSettings()


def main(root: Path, params: Params) -> None:
    make = {"reference": from_reference, "transformers": from_transformers, "import": from_published}
    metrics = make[params.traces.source](params, root, root / "data" / "traces")
    write_json(root / "reports/extract/metrics.json", metrics)


def from_reference(params: Params, root: Path, output: Path) -> dict[str, Any]:
    folder = Path("models/reference")
    prompts = reference_prompts(folder, params.extract, params.seed)
    job = reference_job(folder, params.extract, params.seed)
    return capture(job, prompts, root, output)


def from_transformers(params: Params, root: Path, output: Path) -> dict[str, Any]:
    source = params.traces.transformers
    prompts = transformers_prompts(source, params.extract, root)
    job = transformers_job(source, params.extract, params.seed)
    return capture(job, prompts, root, output)


def from_published(params: Params, root: Path, output: Path) -> dict[str, Any]:
    source, privacy = params.traces.imported, params.extract.privacy
    shape = importers.ShapeOverride(source.moe_layers, source.expert_size)
    parts = [("train", source.train, False), ("held-out", source.held_out, True)]
    with replacing(output) as temporary:
        temporary.mkdir()
        for name, path, held_out in parts:
            if path is not None:
                trace = importers.read(source.format, root / path, held_out=held_out, privacy=privacy, shape=shape)
                store.write_parquet(trace, temporary / f"{name}.parquet")
        # read as one: both must be of one model, with distinct prompts
        whole = store.read_parquet(temporary, hidden=False)
    return count([whole])
