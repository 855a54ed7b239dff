"""Fits what the steps of the predictor take by their size, on this machine and one thread: `predictor/latency.py`.

    python -m benchmarks.latency [--repeats 100] [--out docs/latency.csv]

Times graphs with random weights over a grid of sizes, the quietest of three rounds each, fits the lines of
`predictor.latency` by non-negative least squares of relative errors, and prints coefficients with the error of sizes
that took no part in their fit (each fifth size left out in turn).
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from rich.progress import track
from scipy.optimize import nnls

from moe_beyond.data.tokens import TokenEncoder
from moe_beyond.network.checkpoint import Checkpoint
from moe_beyond.network.hidden_step import HiddenStep
from moe_beyond.network.layer_step import LayerStep
from moe_beyond.network.network import TokenStep
from moe_beyond.network.onnx import export_steps
from moe_beyond.predictor.latency import (
    Latency,
    hidden_step_terms,
    layer_step_terms,
    quietest,
    token_step_terms,
)
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.predictor.shape import NetworkShape
from moe_beyond.traces.schema import TraceMetadata

FOLDS = 5
MODELS = ((5, 64, 6), (24, 32, 4), (26, 64, 6), (48, 128, 8))
"""MoE layers, experts, top-k: the reference model's, gpt-oss-20b's, DeepSeek-V2-Lite's, Qwen3-30B-A3B's."""
SIZES = ((64, 1), (64, 3), (96, 2), (128, 1), (192, 2), (192, 3), (256, 1), (384, 2), (512, 1), (512, 2), (768, 1))
"""Width and depth."""
LAYER_SIZES = ((128, 64, 6), (192, 384, 10), (256, 512, 6))
"""Width, hidden units and reach of the layer step."""
HIDDEN_SIZES = ((96, 64, 128, 4), (1024, 64, 128, 2), (2048, 128, 256, 4), (2880, 32, 64, 3))
"""Hidden size of the traced model; rank, units and horizon of the layer step that reads its hidden states."""


def main() -> None:
    """Measure, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("docs/latency.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, float]] = []
    shapes: list[NetworkShape] = []
    cases = list(itertools.product(MODELS, SIZES))
    for number, (model, size) in enumerate(track(cases, "timing sizes")):
        shape = shape_of(
            model, size, LAYER_SIZES[number % 3], HIDDEN_SIZES[number // 3 % 4], window=(32, 64)[number % 2]
        )
        shapes.append(shape)
        took = measure(shape, arguments.repeats)
        names = ("token_step_ms", "layer_step_ms", "hidden_step_ms")
        rows.append({**asdict(shape), **{name: getattr(took, name) for name in names}})
    table = pl.DataFrame(rows)
    lines = {"token_step": token_step_terms, "layer_step": layer_step_terms, "hidden_step": hidden_step_terms}
    for name, terms in lines.items():
        terms_XF = np.array([terms(shape) for shape in shapes])
        ms_X = table[f"{name}_ms"].to_numpy()
        coefficients = fit(terms_XF, ms_X)
        error = np.concatenate([left_out_error(terms_XF, ms_X, fold) for fold in range(FOLDS)])
        print(name, [float(f"{value:.3g}") for value in coefficients])
        print(
            f"  held out: median {np.median(np.abs(error)):.1%}, lowest {error.min():+.1%}, highest {error.max():+.1%} "
            f"of the measured time, {len(error)} sizes"
        )
        table = table.with_columns(pl.Series(f"{name}_fitted_ms", terms_XF @ coefficients))
    table.write_csv(arguments.out)


def left_out_error(
    terms_XF: npt.NDArray[np.float64], ms_X: npt.NDArray[np.float64], fold: int
) -> npt.NDArray[np.float64]:
    """Relative errors at every fifth size of a fit to the others."""
    out_X = np.arange(len(ms_X)) % FOLDS == fold
    fitted = fit(terms_XF[~out_X], ms_X[~out_X])
    return np.asarray(terms_XF[out_X] @ fitted / ms_X[out_X] - 1)


def shape_of(
    model: tuple[int, int, int],
    size: tuple[int, int],
    layer_size: tuple[int, int, int],
    hidden_size: tuple[int, int, int, int],
    window: int,
) -> NetworkShape:
    """A predictor's shape for a model and sizes."""
    (layers, experts, top_k), (width, depth), (layer_width, hidden, reach) = model, size, layer_size
    token_step = (8000, 8192, 128, width, depth, 4, window)
    return NetworkShape(layers, experts, top_k, *token_step, 2, reach, layer_width, hidden, *hidden_size)


def measure(shape: NetworkShape, repeats: int) -> Latency:
    """What a token step takes and one layer's step, without hidden states and with: the quietest round's median."""
    torch.manual_seed(0)
    meta = TraceMetadata(
        model_id="random",
        layer_numbers=tuple(range(shape.num_layers)),
        num_experts=shape.num_experts,
        top_k=shape.top_k,
        expert_bytes=(1,) * shape.num_layers,
        source="drawn at random",
        licence="none",
    )
    encoder = TokenEncoder(tuple(f"w{i}" for i in range(shape.num_tokens - 1)), shape.letter_buckets)
    with tempfile.TemporaryDirectory() as folder:
        steps = TokenStep(shape).eval(), LayerStep(shape).eval(), encoder, meta, HiddenStep(shape).eval()
        export_steps(Checkpoint(*steps), Path(folder), 20)
        predictor = OnnxPredictor(Path(folder), finished=False)
        return quietest(
            lambda: Latency(
                predictor.token_step_ms(repeats),
                predictor.layer_step_ms(2 * repeats),
                0.0,
                predictor.layer_step_ms(2 * repeats, hidden=True),
            )
        )


def fit(terms_XF: npt.NDArray[np.float64], ms_X: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Coefficients from 0 up that make relative errors least in squares."""
    return np.asarray(nnls(terms_XF / ms_X[:, None], np.ones_like(ms_X))[0], np.float64)


if __name__ == "__main__":
    main()
