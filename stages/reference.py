"""Trains the small Mixture-of-Experts that makes the default self-contained."""

from pathlib import Path

import polars as pl

from moe_beyond.capture.reference.settings import ReferenceSettings
from moe_beyond.capture.settings import TracesSettings
from moe_beyond.files import replacing, write_json
from moe_beyond.settings import Seed, Settings

REPORTS = Path("reports/reference")


class Params(Settings):
    seed: Seed
    traces: TracesSettings
    reference: ReferenceSettings = ReferenceSettings()


def main(root: Path, params: Params) -> None:
    output = root / "models" / "reference"
    if params.traces.source != "reference":
        with replacing(output) as temporary:
            temporary.mkdir()
            (temporary / "README.md").write_text(f"No reference model: traces.source is `{params.traces.source}`.\n")
        metrics, steps, train, validation = {"trained_tokens": 0}, [], [], []
    else:
        from moe_beyond.capture.reference import recipe  # noqa: PLC0415 - slow to import, not needed above

        metrics, history = recipe.make(params.reference, params.seed, root, output)
        steps, train, validation = history.steps, history.train_loss, history.validation_loss
    table = pl.DataFrame(
        {"step": steps, "train_loss": train, "validation_loss": validation},
        schema={"step": pl.Int64, "train_loss": pl.Float64, "validation_loss": pl.Float64},
    )
    with replacing(root / REPORTS / "history.csv") as temporary:
        table.write_csv(temporary)
    write_json(root / REPORTS / "metrics.json", metrics)
