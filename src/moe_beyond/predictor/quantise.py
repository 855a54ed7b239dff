"""Both steps in int8: weights by channel, activations as they come (onnxruntime's dynamic quantisation).

Which kinds of operator bear it is measured, not assumed: every choice of them is tried on the validation split, and the
smallest file that loses no more recall than allowed is kept. What hurts stays in fp32, and the table says so.

Shape suffixes: T tokens, L MoE layers, E experts, K top-k, H horizon.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import polars as pl
from onnxruntime.quantization import QuantType, quantize_dynamic

from moe_beyond.metrics import groups, hits_at_k
from moe_beyond.predictor.graph_file import STEPS, Step, graph_file
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.traces.schema import Trace

OPERATORS = {"linear": ("MatMul", "Gemm"), "embedding": ("Gather",)}
"""Kinds of operator with weights, by what people call them."""
_SCHEMA = {
    "step": pl.String,
    "int8_operators": pl.String,
    "size_bytes": pl.Int64,
    "latency_ms": pl.Float64,
    "recall_at_k": pl.Float64,
    "lost_points": pl.Float64,
    "chosen": pl.Boolean,
}


@dataclass(frozen=True)
class _Measured:
    step: Step
    operators: tuple[str, ...]
    size_bytes: int
    latency_ms: float
    recall: float


def quantise_steps(directory: Path, validation: Trace, *, allowed_points: float, latency_repeats: int) -> pl.DataFrame:
    """Write the int8 files of a directory beside its fp32 files, where a choice of operators loses little enough.

    The layer step is tried on the answers of the int8 token step, so that its loss is that of both together.

    Args:
        directory: Holds both steps in fp32.
        validation: What recall is measured on: of the token step, and one layer ahead of the layer step.
        allowed_points: Greatest loss of recall@k, in percentage points.
        latency_repeats: Of each timing.

    Returns:
        Columns step, int8_operators (`none` is fp32), size_bytes, latency_ms, recall_at_k, lost_points (against fp32),
        chosen. A step without a chosen int8 row got no int8 file, nor did the step after it.
    """
    rows: list[tuple[object, ...]] = []
    usable = True
    for step in STEPS:
        plain = _measure(OnnxPredictor(directory), step, (), validation, latency_repeats)
        tried = _try_all(directory, step, validation, latency_repeats) if usable else []
        good = [
            m for m in tried if 100 * (plain.recall - m.recall) <= allowed_points and m.size_bytes < plain.size_bytes
        ]
        best = min(good, key=lambda m: m.size_bytes, default=None)
        if best is None:
            usable = False
        else:
            quantise(directory / graph_file(step), directory / graph_file(step, "int8"), best.operators)
        for m in (plain, *tried):
            lost = 100 * (plain.recall - m.recall)
            rows.append((step, "+".join(m.operators) or "none", m.size_bytes, m.latency_ms, m.recall, lost, m is best))
    return pl.DataFrame(rows, _SCHEMA, orient="row")


def quantise(source: Path, target: Path, operators: tuple[str, ...]) -> None:
    """Write `source` with the weights of these kinds of operator in int8; metadata is kept.

    Args:
        source: An fp32 file.
        target: The file to write.
        operators: Names of `OPERATORS`.
    """
    types = [name for operator in operators for name in OPERATORS[operator]]
    with _quiet_quantiser():
        quantize_dynamic(source, target, op_types_to_quantize=types, per_channel=True, weight_type=QuantType.QInt8)
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


def _try_all(directory: Path, step: Step, validation: Trace, latency_repeats: int) -> list[_Measured]:
    """Every choice of operators for one step, the steps before it being int8 already."""
    names = list(OPERATORS)
    choices = [choice for size in range(len(names), 0, -1) for choice in itertools.combinations(names, size)]
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for choice in choices:
            for earlier in STEPS[: STEPS.index(step)]:
                shutil.copy(directory / graph_file(earlier, "int8"), folder)
            quantise(directory / graph_file(step), Path(folder) / graph_file(step, "int8"), choice)
            predictor = OnnxPredictor(Path(folder), precision="int8")
            measured.append(_measure(predictor, step, choice, validation, latency_repeats))
    return measured


def _measure(
    predictor: OnnxPredictor, step: Step, operators: tuple[str, ...], validation: Trace, latency_repeats: int
) -> _Measured:
    timed = predictor.latency_ms if step == "token_step" else predictor.layer_latency_ms
    size = (predictor.path.parent / graph_file(step, predictor.precision)).stat().st_size
    return _Measured(step, operators, size, timed(latency_repeats), recall(predictor, step, validation))


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
