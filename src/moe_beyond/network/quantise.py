"""All steps in int8: weights by channel, activations as they come (onnxruntime's dynamic quantisation).

Shape suffixes: T tokens, L MoE layers, E experts, K top-k, H horizon.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from moe_beyond.predictor.graph_file import HIDDEN_STEP, STEPS, Step, graph_file
from moe_beyond.predictor.recall import groups, hits_at_k
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.traces.schema import Trace

_WITH_WEIGHTS = ("MatMul", "Gemm", "Gather")


def quantise_steps(directory: Path, validation: Trace, allowed_points: float) -> dict[Step, float]:
    """Write the int8 files of a directory beside its fp32 files, unless they lose too much recall.

    Args:
        directory: Holds the steps in fp32.
        validation: What recall is measured on: of the token step, and one layer ahead of the layer step, with and
            without hidden states.
        allowed_points: Greatest loss of recall@k of any step, in percentage points.

    Returns:
        Lost points of each step, the int8 steps used together; files that lose more are not there.
    """
    steps = [step for step in (*STEPS, HIDDEN_STEP) if (directory / graph_file(step)).exists()]
    for step in steps:
        quantise(directory / graph_file(step), directory / graph_file(step, "int8"))
    plain, int8 = (recalls(OnnxPredictor(directory, precision=p, finished=False), validation) for p in ("fp32", "int8"))
    lost = {step: 100 * (plain[step] - int8[step]) for step in plain}
    if max(lost.values()) > allowed_points:
        for step in steps:
            (directory / graph_file(step, "int8")).unlink()
    return lost


def quantise(source: Path, target: Path) -> None:
    """Write a file with its weights in int8; metadata is kept."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # its advice to run shape inference first, which the exporter has done
    try:
        quantize_dynamic(
            source, target, op_types_to_quantize=list(_WITH_WEIGHTS), per_channel=True, weight_type=QuantType.QInt8
        )
    finally:
        root.setLevel(level)
    model = onnx.load(target)
    onnx.helper.set_model_props(model, {x.key: x.value for x in onnx.load(source).metadata_props})
    onnx.save(model, target)


def recalls(predictor: OnnxPredictor, trace: Trace) -> dict[Step, float]:
    """Recall@k of each step over a trace, of the layer step one layer ahead."""
    with_hidden = predictor.reading(trace)
    hits: Counter[Step] = Counter()
    for part in groups(trace, copies=with_hidden.horizon + 1):
        token_TLE, layers_HTLE = predictor.both_logits(part)
        hits["token_step"] += int(hits_at_k(token_TLE, part.experts_TLK).sum())
        hits["layer_step"] += int(hits_at_k(layers_HTLE[0], part.experts_TLK).sum())
        if with_hidden.uses_hidden:
            hits[HIDDEN_STEP] += int(hits_at_k(with_hidden.both_logits(part)[1][0], part.experts_TLK).sum())
    return {step: count / trace.experts_TLK.size for step, count in hits.items()}
