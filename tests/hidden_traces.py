"""Traces with hidden states: a toy whose gate inputs drift from layer to layer, and whose routers choose by them.

Shape suffixes: T tokens, L MoE layers, K experts per token, E experts, D hidden size.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moe_beyond.traces.hidden import HiddenStates, Routers
from moe_beyond.traces.schema import Trace
from tests.simulator.strategies import make_trace

WIDTH = 6


def hidden_trace(
    seed: int,
    lengths: tuple[int, ...] = (9, 7),
    prefill: tuple[int, ...] = (3, 0),
    *,
    num_layers: int = 3,
    num_experts: int = 8,
    top_k: int = 2,
    drift: float = 0.3,
    **router: object,
) -> Trace:
    """All traces of one shape are of one model; `drift` says how far gate inputs of two layers lie apart."""
    model, draw = np.random.default_rng(99), np.random.default_rng(seed)
    trace = make_trace(
        seed, num_layers=num_layers, num_experts=num_experts, top_k=top_k, lengths=lengths, prefill=prefill
    )
    weights_LED = model.standard_normal((num_layers, num_experts, WIDTH)).astype(np.float32)
    if "choice_bias_LE" in router:
        router["choice_bias_LE"] = (0.3 * model.standard_normal((num_layers, num_experts))).astype(np.float32)
    routers = Routers(weights_LED, **router)  # type: ignore[arg-type]
    steps_TLD = draw.standard_normal((trace.num_tokens, num_layers, WIDTH))
    steps_TLD[:, 1:] *= drift
    inputs_TLD = steps_TLD.cumsum(axis=1).astype(np.float16)
    experts_TLK = np.stack([routers.choose(i, inputs_TLD[:, i], top_k) for i in range(num_layers)], axis=1)
    hidden = HiddenStates(
        np.arange(trace.num_tokens),
        tuple(range(num_layers)),
        inputs_TLD,
        (inputs_TLD + 0.1 * draw.standard_normal(inputs_TLD.shape)).astype(np.float16),
        routers=routers,
    )
    return replace(trace, experts_TLK=experts_TLK.astype(np.uint8), hidden=hidden)


def without_some(trace: Trace, seed: int = 0) -> Trace:
    """The same, with the hidden states of half of the tokens, and not of the second layer."""
    hidden = trace.hidden
    assert hidden is not None
    lost_T = np.random.default_rng(seed).random(trace.num_tokens) < 0.5
    layers = [place for place, layer in enumerate(hidden.layers) if layer != 1]
    return replace(
        trace,
        hidden=replace(
            hidden,
            rows_T=np.where(lost_T, -1, hidden.rows_T),
            layers=tuple(hidden.layers[place] for place in layers),
            gate_inputs_SYD=hidden.gate_inputs_SYD[:, layers],
            layer_inputs_SYD=None if hidden.layer_inputs_SYD is None else hidden.layer_inputs_SYD[:, layers],
        ),
    )
