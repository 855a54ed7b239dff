"""Makes a predictor directory of a checkpoint: all steps exported, checked for parity with PyTorch, quantised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_beyond.data.duplicates import training_marks
from moe_beyond.files import replacing
from moe_beyond.network.checkpoint import Checkpoint
from moe_beyond.network.onnx import export_steps, require_parity
from moe_beyond.network.quantise import quantise_steps
from moe_beyond.network.settings import ExportSettings
from moe_beyond.predictor.baselines import TokenUnigram
from moe_beyond.predictor.contents import write_manifest
from moe_beyond.predictor.graph_file import HIDDEN_STEP, LEAST_ONNXRUNTIME, STEPS, Precision, graph_file
from moe_beyond.predictor.latency import Latency, charged, quietest, write_charge
from moe_beyond.predictor.runtime import TRAINING_PROMPTS, OnnxPredictor
from moe_beyond.traces.schema import Trace


@dataclass(frozen=True)
class Exported:
    """Measurements of a predictor directory.

    Attributes:
        metrics: Largest difference of a logit between ONNX and PyTorch and bytes of each step; under `int8` points of
            recall@k that each int8 step loses, and bytes, absent where they lose too much.
        measured: Milliseconds of the steps here, and of the table of tokens.
        charged: What is charged for them.
    """

    metrics: dict[str, Any]
    measured: Latency
    charged: Latency


def export_predictor(
    checkpoint: Checkpoint, directory: Path, fitted_on: Mapping[str, Trace], settings: ExportSettings
) -> Exported:
    """Write a predictor directory whose graphs are in parity with PyTorch; the old one stays if they are not.

    Args:
        checkpoint: The trained steps.
        directory: Replaced.
        fitted_on: The splits `train` and `validation`. Digests of their prompts go with the predictor; validation is
            streamed through both, and on it the int8 files may lose little recall.
        settings: Opset, tolerances.

    Raises:
        InputError: A logit differs by more than the tolerance.
    """
    with replacing(directory) as temporary:
        temporary.mkdir()
        export_steps(checkpoint, temporary, settings.opset)
        errors = require_parity(checkpoint, temporary, fitted_on["validation"], settings)
        lost = quantise_steps(temporary, fitted_on["validation"], settings.int8_lost_points)
        int8: dict[str, Any] = {f"{step}_lost_points": points for step, points in lost.items()}
        marks = training_marks(fitted_on.values())
        (temporary / TRAINING_PROMPTS).write_text("\n".join(marks) + "\n", encoding="utf-8")
        predictor, n = OnnxPredictor(temporary, finished=False), settings.latency_repeats
        table = TokenUnigram.fit(fitted_on["train"])
        hidden = predictor.hidden_size > 0

        def measure() -> Latency:
            hidden_ms = predictor.layer_step_ms(n, hidden=True) if hidden else 0.0
            return Latency(
                predictor.token_step_ms(n), predictor.layer_step_ms(n, hidden=False), table.lookup_ms(n), hidden_ms
            )

        measured = quietest(measure)
        charge = charged(checkpoint.network.shape, measured)
        write_charge(temporary, charge)
        write_manifest(temporary, LEAST_ONNXRUNTIME)
        metrics = {**errors, **_sizes(temporary, "fp32"), "int8": int8 | _sizes(temporary, "int8")}
        return Exported(metrics, measured, charge)


def _sizes(directory: Path, precision: Precision) -> dict[str, int]:
    files = {step: directory / graph_file(step, precision) for step in (*STEPS, HIDDEN_STEP)}
    return {f"{step}_bytes": file.stat().st_size for step, file in files.items() if file.exists()}
