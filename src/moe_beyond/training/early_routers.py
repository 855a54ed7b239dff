"""What the logits of later routers, run early, are worth: as log-odds of an expert's being chosen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_beyond.predictor.base import Floats
from moe_beyond.traces.hidden import HiddenStates, Routers
from moe_beyond.traces.schema import Trace

_TOKENS = 2_000
"""Tokens that are read at most, evenly over the trace."""
_NEWTON_STEPS = 25


def log_odds(train: Trace, hidden: HiddenStates, routers: Routers, horizon: int) -> tuple[Floats, Floats]:
    """Slope and offset by which a later router's logit becomes log-odds, float32 [L, H] each.

    By logistic regression on that one logit, over all experts. Both are 0 where a layer has no states, and beyond the
    last layer.

    Args:
        train: Training prompts.
        hidden: Its hidden states.
        routers: Of the traced model.
        horizon: Layers ahead, H.
    """
    meta = train.metadata
    found_2LH = np.zeros((2, meta.num_layers, horizon), np.float32)
    tokens = np.flatnonzero(np.asarray(hidden.rows_T) >= 0)
    tokens = tokens[:: max(1, len(tokens) // _TOKENS)]
    for layer in range(meta.num_layers):
        inputs_ND, kept_N = hidden.of_layer(hidden.gate_inputs_SYD, layer, tokens)
        if not kept_N.any():
            continue
        for later in range(layer + 1, min(layer + horizon, meta.num_layers - 1) + 1):
            is_chosen_NE = np.zeros((len(tokens), meta.num_experts), bool)
            np.put_along_axis(is_chosen_NE, train.experts_TLK[tokens, later].astype(np.int64), values=True, axis=1)
            found_2LH[:, layer, later - layer - 1] = _fitted(routers.logits_NE(later, inputs_ND), is_chosen_NE)
    return found_2LH[0], found_2LH[1]


def _fitted(logits_NE: Floats, is_chosen_NE: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Slope and offset by Newton's method, with a ridge so small that it only matters where logits decide alone."""
    x_2M = np.stack([logits_NE.ravel().astype(np.float64), np.ones(logits_NE.size)])
    found_2 = np.zeros(2)
    for _ in range(_NEWTON_STEPS):
        chance_M = 1 / (1 + np.exp(-np.clip(found_2 @ x_2M, -30, 30)))
        slope_2 = x_2M @ (is_chosen_NE.ravel() - chance_M) - 1e-3 * found_2
        curve_22 = (x_2M * (chance_M * (1 - chance_M))) @ x_2M.T + 1e-3 * np.eye(2)
        step_2 = np.linalg.solve(curve_22, slope_2)
        found_2 = found_2 + step_2
        if np.abs(step_2).max() < 1e-4:
            break
    return found_2
