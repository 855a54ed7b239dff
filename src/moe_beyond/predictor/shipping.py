"""Makes a predictor directory of a checkpoint: both steps exported, held to torch, calibrated, quantised and timed.

Shape suffixes: T tokens, L MoE layers, E experts, K top-k, H horizon.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from moe_beyond.files import replacing
from moe_beyond.metrics import groups
from moe_beyond.predictor.checkpoint import Checkpoint
from moe_beyond.predictor.graph_file import GraphFile, Step, graph_file
from moe_beyond.predictor.onnx import describe, export_steps, require_parity
from moe_beyond.predictor.quantise import quantise_steps
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.predictor.scaling import ScalingFit
from moe_beyond.predictor.settings import ExportSettings
from moe_beyond.traces.schema import Trace


@dataclass(frozen=True)
class Shipped:
    """What is known of a predictor directory.

    Attributes:
        metrics: latency_ms and layer_latency_ms (median of one token, and of one layer of one token, on one thread),
            size_bytes and layer_size_bytes, parity_max_abs_error and layer_parity_max_abs_error, and under `int8`
            the same of the int8 files, with lost_points of recall@k; `int8` is empty where none loses little enough.
        quantisation: What was tried, as `quantise_steps` tells it.
    """

    metrics: dict[str, Any]
    quantisation: pl.DataFrame


def export_predictor(checkpoint: Checkpoint, directory: Path, validation: Trace, settings: ExportSettings) -> Shipped:
    """Write a predictor directory whose graphs are shown to equal torch; the old one stays if they do not.

    Args:
        checkpoint: The trained steps.
        directory: Replaced.
        validation: Prompts that are streamed through both, that probabilities are calibrated on, and that the int8
            files must answer nearly as well.
        settings: Opset, tolerances, repeats, coverages.

    Raises:
        InputError: A logit differs by more than the tolerance.
    """
    with replacing(directory) as temporary:
        temporary.mkdir()
        export_steps(checkpoint, temporary, settings.opset)
        errors = require_parity(checkpoint, temporary, validation, settings)
        calibrate(temporary, validation, settings.coverages)
        tried = quantise_steps(
            temporary,
            validation,
            allowed_points=settings.int8_lost_points,
            latency_repeats=settings.latency_repeats,
        )
        fp32 = _figures(tried.filter(pl.col("int8_operators") == "none"))
        int8 = _figures(tried.filter("chosen"), lost=True)
        return Shipped({**fp32, **errors, "int8": int8}, tried)


def calibrate(directory: Path, validation: Trace, coverages: tuple[float, ...]) -> None:
    """Fit scale, shift and thresholds of every layer and horizon on the validation split, and write them inside.

    Args:
        directory: Holds both steps in fp32.
        validation: Prompts that neither training nor a test saw.
        coverages: Of prefetch sets, each in (0, 1).
    """
    predictor = OnnxPredictor(directory)
    token = ScalingFit(predictor.num_layers)
    layers = [ScalingFit(predictor.num_layers) for _ in range(predictor.horizon)]
    for part in groups(validation, copies=predictor.horizon + 1):
        token_TLE, layers_HTLE = predictor.both_logits(part)
        for fit, logits_TLE in zip((token, *layers), (token_TLE, *layers_HTLE), strict=True):
            fit.add(logits_TLE, part.experts_TLK)
    _write(directory, "token_step", token.fit(coverages).as_dict())
    _write(directory, "layer_step", [fit.fit(coverages).as_dict() for fit in layers])


def _write(directory: Path, step: Step, scaling: Any) -> None:
    path = directory / graph_file(step)
    describe(path, GraphFile(path, step, threads=1).description | {"scaling": scaling})


def _figures(rows: pl.DataFrame, *, lost: bool = False) -> dict[str, float]:
    """Size and latency of both steps, the token step's without a prefix."""
    found: dict[str, float] = {}
    for row in rows.iter_rows(named=True):
        prefix = "" if row["step"] == "token_step" else "layer_"
        found |= {f"{prefix}latency_ms": row["latency_ms"], f"{prefix}size_bytes": row["size_bytes"]}
        if lost:
            found[f"{prefix}lost_points"] = row["lost_points"]
    return found
