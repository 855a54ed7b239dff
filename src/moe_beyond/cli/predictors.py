"""Commands on predictors: score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_beyond.cli.common import RESAMPLES, AsJson, TracePath, app, one_line_errors, read_trace, show

PredictorPath = Annotated[Path, typer.Option(help="Folder that the export stage wrote.")]


@app.command()
def score(
    trace: TracePath,
    predictor: PredictorPath = Path("models/predictor"),
    seed: Annotated[int, typer.Option(help="Of the paper's random fillings and of the intervals.")] = 7,
    as_json: AsJson = False,
) -> None:
    """Score a predictor on a trace: recall by phase and layer, and hit rates under the paper's own protocol."""
    import numpy as np  # noqa: PLC0415

    from moe_beyond.evaluation import published_rows  # noqa: PLC0415
    from moe_beyond.metrics import groups, quality_rows  # noqa: PLC0415
    from moe_beyond.metrics import score as hits_of  # noqa: PLC0415
    from moe_beyond.predictor.runtime import OnnxPredictor  # noqa: PLC0415
    from moe_beyond.simulator.published_protocol import most_probable  # noqa: PLC0415

    with one_line_errors():
        routing, model = read_trace(trace), OnnxPredictor(predictor)
        quality = quality_rows(routing, hits_of(model, routing), RESAMPLES, seed)
        top_k = routing.metadata.top_k
        named_TLK = np.concatenate([most_probable(model.probabilities_TLE(part), top_k) for part in groups(routing)])
        replayed = published_rows(routing, named_TLK, RESAMPLES, seed)
        result = {
            "quality": {f"{row.pop('phase')}/{row.pop('layer')}": row for row in quality.to_dicts()},
            "published_protocol": {f"{row.pop('capacity_experts')} experts": row for row in replayed.to_dicts()},
        }
        show(result, as_json)
