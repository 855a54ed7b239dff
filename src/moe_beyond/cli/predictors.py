"""Commands on predictors: score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    """Score a predictor on a trace: recall by horizon, phase and layer; hit rates under the paper's own protocol."""
    import numpy as np  # noqa: PLC0415

    from moe_beyond.evaluation.scores import quality_rows  # noqa: PLC0415
    from moe_beyond.paper.scores import published_rows  # noqa: PLC0415
    from moe_beyond.predictor.recall import (  # noqa: PLC0415
        groups,
        hits_at_k,
        most_probable,
    )
    from moe_beyond.predictor.runtime import OnnxPredictor  # noqa: PLC0415

    with one_line_errors():
        routing, model = read_trace(trace), OnnxPredictor(predictor)
        names = ["token", *(f"{h + 1}_ahead" for h in range(model.horizon))]
        hits: dict[str, list[Any]] = {name: [] for name in names}
        named: dict[str, list[Any]] = {name: [] for name in names}
        for part in groups(routing, copies=len(names)):
            token_TLE, layers_HTLE = model.both_logits(part)
            for name, logits_TLE in zip(names, (token_TLE, *layers_HTLE), strict=True):
                hits[name].append(hits_at_k(logits_TLE, part.experts_TLK))
                named[name].append(most_probable(logits_TLE, routing.metadata.top_k))
        result: dict[str, dict[str, dict[str, object]]] = {"quality": {}, "published_protocol": {}}
        for name in names:
            quality = quality_rows(routing, np.concatenate(hits[name]), RESAMPLES, seed)
            replayed = published_rows(
                routing, np.concatenate(named[name]), RESAMPLES, seed, rival_TLM=routing.predicted_TLK
            )
            result["quality"][name] = {f"{row.pop('phase')}/{row.pop('layer')}": row for row in quality.to_dicts()}
            result["published_protocol"][name] = {
                f"{row.pop('capacity_experts')} experts": row for row in replayed.to_dicts()
            }
        show(result, as_json)
