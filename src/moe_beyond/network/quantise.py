"""Both steps in int8: weights by channel, activations as they come (onnxruntime's dynamic quantisation).

Shape suffixes: T tokens, L MoE layers, E experts, K top-k, H horizon.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from moe_beyond.predictor.graph_file import STEPS, Step, graph_file
from moe_beyond.predictor.recall import groups, hits_at_k
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.traces.schema import Trace

_WITH_WEIGHTS = ("MatMul", "Gemm", "Gather")


def quantise_steps(directory: Path, validation: Trace, allowed_points: float) -> dict[str, float]:
    """Write the int8 files of a directory beside its fp32 files, unless they lose too much recall.

    Args:
        directory: Holds both steps in fp32.
        validation: What recall is measured on: of the token step, and one layer ahead of the layer step.
        allowed_points: Greatest loss of recall@k of either step, in percentage points.

    Returns:
        Lost points of each step, the int8 steps used together; files that lose more are not there.
    """
    for step in STEPS:
        quantise(directory / graph_file(step), directory / graph_file(step, "int8"))
    plain, int8 = OnnxPredictor(directory), OnnxPredictor(directory, precision="int8")
    lost = {step: 100 * (recall(plain, step, validation) - recall(int8, step, validation)) for step in STEPS}
    if max(lost.values()) > allowed_points:
        for step in STEPS:
            (directory / graph_file(step, "int8")).unlink()
    return {str(step): points for step, points in lost.items()}


def quantise(source: Path, target: Path) -> None:
    """Write a file with its weights in int8; metadata is kept."""
    with _quiet_quantiser():
        quantize_dynamic(
            source, target, op_types_to_quantize=list(_WITH_WEIGHTS), per_channel=True, weight_type=QuantType.QInt8
        )
    model = onnx.load(target)
    onnx.helper.set_model_props(model, {x.key: x.value for x in onnx.load(source).metadata_props})
    onnx.save(model, target)


def recall(predictor: OnnxPredictor, step: Step, trace: Trace) -> float:
    """Recall@k of one step over a trace, the layer step's one layer ahead."""
    hits = 0
    layered = step == "layer_step"
    for part in groups(trace, copies=predictor.horizon + 1 if layered else 1):
        logits_TLE = predictor.layer_logits_HTLE(part)[0] if layered else predictor.logits_TLE(part)
        hits += int(hits_at_k(logits_TLE, part.experts_TLK).sum())
    return hits / trace.experts_TLK.size


@contextmanager
def _quiet_quantiser() -> Iterator[None]:
    """Keep away its advice to run shape inference first, which the exporter has done."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
