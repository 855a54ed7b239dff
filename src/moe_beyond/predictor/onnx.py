"""The predictor as one ONNX file with explicit state and everything a runtime needs inside.

Shape suffixes: B batch, T tokens, S tokens in the state, L MoE layers, E experts, K top-k, N blocks, D width.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.export import Dim

from moe_beyond.data.features import token_features
from moe_beyond.data.tokens import MAX_NGRAMS
from moe_beyond.errors import InputError
from moe_beyond.files import replacing
from moe_beyond.predictor.checkpoint import Checkpoint
from moe_beyond.predictor.network import NetworkShape
from moe_beyond.predictor.runtime import FORMAT_VERSION, GRAPH_FILE, METADATA_KEY, OUTPUTS, Floats, OnnxPredictor
from moe_beyond.predictor.settings import ExportSettings
from moe_beyond.traces.schema import Trace

_EXAMPLE_B, _EXAMPLE_T, _EXAMPLE_S = 2, 3, 5  # all different and above 1, or torch.export fixes an axis


def export_token_step(checkpoint: Checkpoint, path: Path, opset: int) -> None:
    """Write the token step; batch, tokens and state length stay free.

    Args:
        checkpoint: Network, encoder and the traced model's shape; the last two go into the file's metadata.
        path: The file to write.
        opset: ONNX operator set.
    """
    network = checkpoint.network.eval()
    batch, tokens, state = Dim("batch"), Dim("tokens"), Dim("state", min=0, max=network.shape.window - 1)
    with replacing(path) as temporary, warnings.catch_warnings():
        # noise of the exporter about its own dependencies; it raises on real trouble
        warnings.simplefilter("ignore")
        for name in ("torch.onnx", "onnxscript", "onnx_ir"):
            logging.getLogger(name).setLevel(logging.ERROR)
        torch.onnx.export(
            network,
            example_inputs(network.shape, _EXAMPLE_B, _EXAMPLE_T, _EXAMPLE_S),
            temporary,
            dynamo=True,
            opset_version=opset,
            input_names=["tokens", "letters", "previous_experts", "keys", "values"],
            output_names=list(OUTPUTS),
            dynamic_shapes={
                "tokens_BT": {0: batch, 1: tokens},
                "letters_BTG": {0: batch, 1: tokens},
                "previous_BTLK": {0: batch, 1: tokens},
                "keys_BNSD": {0: batch, 2: state},
                "values_BNSD": {0: batch, 2: state},
            },
            external_data=False,
            verbose=False,
        )
        _add_metadata(temporary, checkpoint)


def export_predictor(
    checkpoint: Checkpoint, directory: Path, validation: Trace, settings: ExportSettings
) -> dict[str, float]:
    """Write a predictor directory whose graph is shown to equal torch; the old one stays if it does not.

    Args:
        checkpoint: The trained network.
        directory: Replaced.
        validation: Prompts that are streamed through both.
        settings: Opset, tolerance, repeats.

    Returns:
        latency_ms (median single-token step on one thread), size_bytes, parity_max_abs_error.

    Raises:
        InputError: A logit differs by more than the tolerance.
    """
    with replacing(directory) as temporary:
        temporary.mkdir()
        export_token_step(checkpoint, temporary / GRAPH_FILE, settings.opset)
        error = parity(checkpoint, temporary, validation, settings.parity_tokens)
        if not error <= settings.parity_tolerance:
            raise InputError(
                f"params.yaml: export.parity_tolerance: a logit of the ONNX graph differs from torch by {error:.2e}, "
                f"more than {settings.parity_tolerance:.0e}; do not ship this graph"
            )
        return {
            "latency_ms": OnnxPredictor(temporary).latency_ms(settings.latency_repeats),
            "size_bytes": (temporary / GRAPH_FILE).stat().st_size,
            "parity_max_abs_error": error,
        }


def example_inputs(shape: NetworkShape, batch: int, tokens: int, state: int) -> tuple[Tensor, ...]:
    """Inputs of these sizes, drawn from a fixed generator."""
    draw = torch.Generator().manual_seed(0)
    state_size = (batch, shape.depth, state, shape.width)
    routing_size = (batch, tokens, shape.num_layers, shape.top_k)
    return (
        torch.randint(0, shape.num_tokens, (batch, tokens), generator=draw),
        torch.randint(0, shape.letter_buckets, (batch, tokens, MAX_NGRAMS), generator=draw),
        torch.randint(0, shape.num_experts, routing_size, generator=draw),
        torch.randn(state_size, generator=draw),
        torch.randn(state_size, generator=draw),
    )


def _add_metadata(path: Path, checkpoint: Checkpoint) -> None:
    model = onnx.load(path)
    shape = checkpoint.network.shape
    description = {
        "format_version": FORMAT_VERSION,
        "model_id": checkpoint.trained_on.model_id,
        "layer_numbers": checkpoint.trained_on.layer_numbers,
        "num_experts": shape.num_experts,
        "top_k": shape.top_k,
        "window": shape.window,
        "depth": shape.depth,
        "width": shape.width,
        "letter_buckets": checkpoint.encoder.letter_buckets,
        "known_tokens": checkpoint.encoder.known,
    }
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(description, ensure_ascii=False)})
    onnx.save(model, path)


def parity(checkpoint: Checkpoint, directory: Path, trace: Trace, max_tokens: int) -> float:
    """Largest difference of a logit between torch over whole prompts and onnxruntime token by token.

    Streaming through the state is what a device does, and where a wrong graph shows.

    Args:
        checkpoint: The torch side.
        directory: Holds the ONNX file.
        trace: Prompts to stream.
        max_tokens: Stop after the prompt in which this many tokens were compared.
    """
    predictor = OnnxPredictor(directory)
    worst, compared, prompt = 0.0, 0, 0
    while compared < max_tokens and prompt < trace.num_prompts:
        part = trace.select(np.array([prompt]))
        expected_TLE = torch_logits_TLE(checkpoint, part)
        stream = predictor.stream()
        features = token_features(part, predictor.encoder)
        for t in range(part.num_tokens):
            logits_LE = stream.step_logits(features.tokens_T[t], features.letters_TG[t], features.previous_TLK[t])
            worst = max(worst, float(np.abs(logits_LE - expected_TLE[t]).max()))
        compared += part.num_tokens
        prompt += 1
    return worst


def torch_logits_TLE(checkpoint: Checkpoint, prompt: Trace) -> Floats:
    """Logits of one prompt in one call, float32 [T, L, E]."""
    features = token_features(prompt, checkpoint.encoder)
    inputs = (features.tokens_T, features.letters_TG, features.previous_TLK)
    with torch.no_grad():
        logits_BTLE, *_ = checkpoint.network(
            *(torch.from_numpy(x)[None] for x in inputs), *checkpoint.network.empty_state(1)
        )
    return np.asarray(logits_BTLE[0].numpy())
