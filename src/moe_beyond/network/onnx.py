"""The steps as ONNX files with explicit state and everything a runtime needs inside, in parity with PyTorch.

Shape suffixes: B batch, T tokens, S tokens in the state, L MoE layers, E experts, K top-k, N blocks, D width,
H horizon, W width of the layer step, R its reach, Z hidden size of the traced model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from moe_beyond.data.features import token_features
from moe_beyond.data.tokens import MAX_NGRAMS
from moe_beyond.errors import InputError
from moe_beyond.network.checkpoint import Checkpoint
from moe_beyond.network.settings import ExportSettings
from moe_beyond.predictor.base import Floats
from moe_beyond.predictor.graph_file import FORMAT_VERSION, METADATA_KEY, STEPS, Step, graph_file
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.predictor.shape import NetworkShape
from moe_beyond.traces.hidden import HiddenStates
from moe_beyond.traces.schema import Trace

_DESCRIBED = ("num_experts", "top_k", "horizon", "window", "depth", "width", "layer_width", "reach")
_DESCRIBED_HIDDEN = ("hidden_size", "hidden_horizon")
_EXAMPLE_B, _EXAMPLE_T, _EXAMPLE_S = 2, 3, 5  # all different and above 1, or torch.export fixes an axis


def export_steps(checkpoint: Checkpoint, directory: Path, opset: int) -> None:
    """Write all steps; batch, tokens and state length stay free.

    Args:
        checkpoint: Networks, encoder and the traced model's shape; the last two go into the files' metadata.
        directory: An existing one.
        opset: ONNX operator set.
    """
    shape = checkpoint.network.shape
    batch, tokens, state = Dim("batch"), Dim("tokens"), Dim("state", min=0, max=shape.window - 1)
    token_step, layer_step = (directory / graph_file(step) for step in STEPS)
    write_graph(
        checkpoint.network,
        example_inputs(shape, _EXAMPLE_B, _EXAMPLE_T, _EXAMPLE_S),
        token_step,
        axes={
            "tokens_BT": {0: batch, 1: tokens},
            "letters_BTG": {0: batch, 1: tokens},
            "previous_BTLM": {0: batch, 1: tokens},
            "keys_BNSD": {0: batch, 2: state},
            "values_BNSD": {0: batch, 2: state},
        },
        input_names=["tokens", "letters", "previous_experts", "keys", "values"],
        output_names=["logits", "new_keys", "new_values", "context", "later"],
        opset=opset,
    )
    encoder = {"letter_buckets": checkpoint.encoder.letter_buckets, "known_tokens": checkpoint.encoder.known}
    describe(token_step, _description(checkpoint, "token_step") | encoder)
    write_graph(
        checkpoint.layer_step,
        layer_inputs(shape, _EXAMPLE_B),
        layer_step,
        axes={"layer": None}
        | {name: {0: batch} for name in ("experts_BK", "logits_BLE", "context_BW", "evidence_BRE")},
        input_names=["layer", "experts", "token_logits", "context", "evidence"],
        output_names=["logits", "new_context", "new_evidence"],
        opset=opset,
    )
    describe(layer_step, _description(checkpoint, "layer_step"))
    if checkpoint.hidden_step is None:
        return
    hidden_step = directory / graph_file("hidden_step")
    index, experts_BK, *further = layer_inputs(shape, _EXAMPLE_B)
    names = ("experts_BK", "gate_input_BD", "logits_BLE", "context_BW", "evidence_BRE")
    write_graph(
        checkpoint.hidden_step,
        (index, experts_BK, torch.ones(_EXAMPLE_B, shape.hidden_size), *further),
        hidden_step,
        axes={"layer": None} | {name: {0: batch} for name in names},
        input_names=["layer", "experts", "gate_input", "token_logits", "context", "evidence"],
        output_names=["logits", "new_context", "new_evidence"],
        opset=opset,
    )
    describe(hidden_step, _description(checkpoint, "hidden_step"))


def require_parity(
    checkpoint: Checkpoint, directory: Path, validation: Trace, settings: ExportSettings
) -> dict[str, float]:
    """Stream validation prompts through all steps in ONNX and torch.

    Args:
        checkpoint: The torch side.
        directory: Holds the ONNX files.
        validation: Prompts to stream.
        settings: Tolerance, and how many tokens.

    Returns:
        token_step_parity_error, layer_step_parity_error and with hidden states hidden_step_parity_error, of logits.

    Raises:
        InputError: A logit differs by more than the tolerance.
    """
    errors = parity(checkpoint, directory, validation, settings.parity_tokens)
    for step, error in errors.items():
        if not error <= settings.parity_tolerance:
            raise InputError(
                f"params.yaml: export.parity_tolerance: a logit of the ONNX {step} differs from torch by {error:.2e}, "
                f"more than {settings.parity_tolerance:.0e}; do not ship this graph"
            )
    return {f"{step}_parity_error": error for step, error in errors.items()}


def example_inputs(shape: NetworkShape, batch: int, tokens: int, state: int) -> tuple[Tensor, ...]:
    """Inputs of the token step of these sizes, drawn from a fixed generator."""
    draw = torch.Generator().manual_seed(0)
    state_size = (batch, shape.depth, state, shape.width)
    routing_size = (batch, tokens, shape.num_layers, 2 * shape.top_k)
    return (
        torch.randint(0, shape.num_tokens, (batch, tokens), generator=draw),
        torch.randint(0, shape.letter_buckets, (batch, tokens, MAX_NGRAMS), generator=draw),
        torch.randint(0, shape.num_experts, routing_size, generator=draw),
        torch.randn(state_size, generator=draw),
        torch.randn(state_size, generator=draw),
    )


def layer_inputs(shape: NetworkShape, batch: int) -> tuple[Tensor, ...]:
    """Inputs of the layer step, drawn from a fixed generator."""
    draw = torch.Generator().manual_seed(0)
    return (
        torch.zeros(1, dtype=torch.long),
        torch.randint(0, shape.num_experts, (batch, shape.top_k), generator=draw),
        torch.randn(batch, shape.num_layers, shape.num_experts, generator=draw),
        torch.randn(batch, shape.layer_width, generator=draw),
        torch.randn(batch, shape.reach, shape.num_experts, generator=draw),
    )


def write_graph(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    *,
    axes: dict[str, Any],
    input_names: list[str],
    output_names: list[str],
    opset: int,
) -> None:
    """Export any network to one file that holds nothing of the machine it was made on."""
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # remarks about the exporter's own dependencies; it raises on real trouble
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(),
            inputs,
            dynamo=True,
            opset_version=opset,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=axes,
            verbose=False,
        )
    if program is None:
        raise AssertionError("the exporter gives a program where no file is named")
    model = program.model_proto
    # names of Python functions, files and lines, on every node
    for owner in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del owner.metadata_props[:]
        owner.doc_string = ""
    onnx.save(model, path)


def describe(path: Path, description: dict[str, Any]) -> None:
    """Write a runtime's description into a file's metadata, in place of a former one."""
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(description, ensure_ascii=False)})
    onnx.save(model, path)


def parity(checkpoint: Checkpoint, directory: Path, trace: Trace, max_tokens: int) -> dict[Step, float]:
    """Largest difference of a logit between torch over whole prompts and onnxruntime token by token, layer by layer.

    A device streams through the state too, and there a wrong graph shows.

    Args:
        checkpoint: The torch side.
        directory: Holds the ONNX files.
        trace: Prompts to stream.
        max_tokens: Stop after the prompt in which this many tokens were compared.

    Returns:
        By step.
    """
    predictor = OnnxPredictor(directory, finished=False)
    worst: dict[Step, float] = dict.fromkeys(checkpoint.modules.keys(), 0.0)  # type: ignore[arg-type]
    compared, prompt = 0, 0
    while compared < max_tokens and prompt < trace.num_prompts:
        part = trace.select(np.array([prompt]))
        expected_TLE, expected_HTLE = torch_logits(checkpoint, part)
        later_TLE = torch_later(checkpoint, part)
        worst["token_step"] = max(worst["token_step"], _streamed_token_step(predictor, part, expected_TLE, later_TLE))
        worst["layer_step"] = max(worst["layer_step"], _streamed_layer_step(predictor, part, expected_HTLE))
        if checkpoint.hidden_step is not None and part.hidden is not None:
            _, expected_HTLE = torch_logits(checkpoint, part, hidden=part.hidden)
            error = _streamed_layer_step(predictor, part, expected_HTLE, part.hidden)
            worst["hidden_step"] = max(worst["hidden_step"], error)
        compared += part.num_tokens
        prompt += 1
    return worst


def _streamed_token_step(
    predictor: OnnxPredictor, prompt: Trace, expected_TLE: Floats, expected_later_TLE: Floats
) -> float:
    """Largest error of the token step's logits and of its logits of later use, token by token."""
    stream, features, worst = predictor.stream(), token_features(prompt, predictor.encoder), 0.0
    for t in range(prompt.num_tokens):
        logits_LE = stream.step_logits(*(column[t] for column in features.columns))
        assert stream.later_logits_LE is not None  # noqa: S101 - every graph that is exported gives them
        errors = logits_LE - expected_TLE[t], stream.later_logits_LE - expected_later_TLE[t]
        worst = max(worst, *(float(np.abs(error).max()) for error in errors))
    return worst


def _streamed_layer_step(
    predictor: OnnxPredictor, prompt: Trace, expected_HTLE: Floats, hidden: HiddenStates | None = None
) -> float:
    """Largest error of the layer step, layer by layer: with hidden states of the tokens of which they are kept."""
    stream, features, worst = predictor.stream(), token_features(prompt, predictor.encoder), 0.0
    for t in range(prompt.num_tokens):
        stream.step_logits(*(column[t] for column in features.columns))
        if hidden is not None and hidden.rows_T[t] < 0:
            continue
        for layer in range(predictor.num_layers - 1):
            gate_1Z = None if hidden is None else hidden.of_layer(hidden.gate_inputs_SYD, layer, slice(t, t + 1))[0]
            logits_HE = stream.layer_logits(layer, prompt.experts_TLK[None, t, layer].astype(np.int64), gate_1Z)
            for h in range(min(len(expected_HTLE), predictor.num_layers - 1 - layer)):
                worst = max(worst, float(np.abs(logits_HE[h] - expected_HTLE[h, t, layer + 1 + h]).max()))
    return worst


def torch_logits(checkpoint: Checkpoint, prompt: Trace, hidden: HiddenStates | None = None) -> tuple[Floats, Floats]:
    """Logits of one prompt in one call: of the token step, float32 [T, L, E], and of the layer step [H, T, L, E].

    Args:
        checkpoint: The steps.
        prompt: A trace of one prompt.
        hidden: Its hidden states, for the layer step that reads them; None: the other one.
    """
    features = token_features(prompt, checkpoint.encoder)
    experts_TLK = torch.from_numpy(prompt.experts_TLK.astype(np.int64))
    with torch.no_grad():
        logits_BTLE, _, _, context_BTW, _ = checkpoint.network(
            *(torch.from_numpy(x)[None] for x in features.columns), *checkpoint.network.empty_state(1)
        )
        if hidden is None or checkpoint.hidden_step is None:
            layers_HTLE = checkpoint.layer_step.all_layers(experts_TLK, logits_BTLE[0], context_BTW[0])
        else:
            gates_LTZ = torch.from_numpy(hidden.gates_LND(slice(None), prompt.metadata.num_layers))
            layers_HTLE = checkpoint.hidden_step.all_layers(experts_TLK, logits_BTLE[0], context_BTW[0], gates_LTZ)
    return np.asarray(logits_BTLE[0].numpy()), np.asarray(layers_HTLE.numpy())


def torch_later(checkpoint: Checkpoint, prompt: Trace) -> Floats:
    """The token step's logits of later use, float32 [T, L, E], of one prompt in one call."""
    features = token_features(prompt, checkpoint.encoder)
    with torch.no_grad():
        *_, later_BTLE = checkpoint.network(
            *(torch.from_numpy(x)[None] for x in features.columns), *checkpoint.network.empty_state(1)
        )
    return np.asarray(later_BTLE[0].numpy())


def _description(checkpoint: Checkpoint, step: Step) -> dict[str, Any]:
    shape, digest = checkpoint.network.shape, hashlib.sha256()
    for tensor in checkpoint.modules.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return {
        "format_version": FORMAT_VERSION,
        "step": step,
        "fit": digest.hexdigest()[:16],
        "model_id": checkpoint.trained_on.model_id,
        "layer_numbers": checkpoint.trained_on.layer_numbers,
        **{name: getattr(shape, name) for name in _DESCRIBED},
        **({name: getattr(shape, name) for name in _DESCRIBED_HIDDEN} if shape.reads_hidden else {}),
        "features": "token string, letter n-grams, routing of the token before, routing of the string's last time",
    }
