"""Commands on predictors: score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moe_beyond.cli.common import (
    RESAMPLES,
    AllowTrainingPrompts,
    AsJson,
    TracePath,
    app,
    read_trace,
    show,
)
from moe_beyond.cli.progress import tell

PredictorPath = Annotated[Path, typer.Option(help="Folder that the export stage wrote.")]


@app.command()
def score(
    trace: TracePath,
    predictor: PredictorPath = Path("models/predictor"),
    seed: Annotated[int, typer.Option(help="Of the paper's random fillings and of the intervals.")] = 7,
    allow_training_prompts: AllowTrainingPrompts = False,
    as_json: AsJson = False,
) -> None:
    """Score a predictor on a trace: recall by horizon, phase and layer; hit rates under the paper's own protocol."""
    import numpy as np  # noqa: PLC0415

    from moe_beyond.evaluation.scores import quality_rows  # noqa: PLC0415
    from moe_beyond.paper.scores import published_rows  # noqa: PLC0415
    from moe_beyond.predictor.recall import hits_at_k, logits_by_horizon, most_probable  # noqa: PLC0415
    from moe_beyond.predictor.runtime import OnnxPredictor  # noqa: PLC0415

    routing, model = read_trace(trace), OnnxPredictor(predictor)
    if not allow_training_prompts:
        model.refuse_training_prompts(routing)
    model = model.reading(routing)
    hits: dict[str, list[Any]] = {}
    named: dict[str, list[Any]] = {}
    done = 0
    for part, logits in logits_by_horizon(model, routing):
        for horizon, logits_TLE in logits.items():
            hits.setdefault(horizon, []).append(hits_at_k(logits_TLE, part.experts_TLK))
            named.setdefault(horizon, []).append(most_probable(logits_TLE, routing.metadata.top_k))
        done += part.num_prompts
        tell(f"scored {done} of {routing.num_prompts} prompts")
    result: dict[str, dict[str, dict[str, object]]] = {"quality": {}, "published_protocol": {}}
    for horizon, hits_TL in hits.items():
        name = horizon if horizon == "token" else f"{horizon}_ahead"
        quality = quality_rows(routing, np.concatenate(hits_TL), RESAMPLES, seed)
        replayed = published_rows(
            routing, np.concatenate(named[horizon]), RESAMPLES, seed, rival_TLM=routing.predicted_TLK
        )
        result["quality"][name] = {f"{row.pop('phase')}/{row.pop('layer')}": row for row in quality.to_dicts()}
        result["published_protocol"][name] = {
            f"{row.pop('capacity_experts')} experts": row for row in replayed.to_dicts()
        }
    show(result, as_json)
