"""What later routers make of a layer's input and output when they are run early, and what that is worth.

Shape suffixes: L MoE layers, E experts, K experts per token, H horizon, N tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

from moe_beyond.predictor.base import Floats
from moe_beyond.traces.hidden import HiddenStates, Routers
from moe_beyond.traces.schema import Trace

_TOKENS = 20_000
"""Tokens that are read at most, evenly over the trace."""
_RIDGE = 10.0
_FIT_TOKENS, _NEWTON_STEPS, _LITTLE = 2_000, 50, 1e-3


class EarlyRouters(NamedTuple):
    """What `network.hidden_step.HiddenStep.set_routers` takes beside the routers' weights; float32.

    Attributes:
        moved_LEHE: By how much a chosen expert's output moves the logits of the next layers' routers, the mean: that of
            default vectors (arXiv 2603.19289) after the router. By least squares on the shares that chosen experts have
            of the output, which are in the mean 1. A K-th of the later router's bias is in each, since shares add up
            to K.
        slope_LH: Slope by which the distance of a logit from the threshold of the choice, half way from the K-th to the
            next, becomes log-odds of being chosen: logistic regression on that one number, over all experts.
    """

    moved_LEHE: Floats
    slope_LH: Floats


def early_routers(train: Trace, hidden: HiddenStates, routers: Routers, horizon: int) -> EarlyRouters:
    """Fit them; all are 0 where a layer has no states, and beyond the last layer.

    Args:
        train: Training prompts.
        hidden: Its hidden states.
        routers: Of the traced model.
        horizon: Layers ahead, H.
    """
    meta = train.metadata
    moved_LHEE = np.zeros((meta.num_layers, horizon, meta.num_experts, meta.num_experts), np.float32)
    slope_LH = np.zeros((meta.num_layers, horizon), np.float32)
    tokens = np.flatnonzero(np.asarray(hidden.rows_T) >= 0)
    tokens = tokens[:: max(1, len(tokens) // _TOKENS)]
    for layer in range(meta.num_layers):
        inputs_ND, kept_N = hidden.of_layer(hidden.gate_inputs_SYD, layer, tokens)
        if not kept_N.any():
            continue
        share_NE = shares(routers, layer, inputs_ND, train.experts_TLK[tokens, layer])
        gram_EE = share_NE.T @ share_NE + _RIDGE * np.eye(meta.num_experts)
        for later in range(layer + 1, min(layer + horizon, meta.num_layers - 1) + 1):
            ahead = later - layer - 1
            early_NE = routers.logits_NE(later, inputs_ND)
            later_ND, known_N = hidden.of_layer(hidden.gate_inputs_SYD, later, tokens)
            if known_N.any():
                difference_NE = routers.logits_NE(later, later_ND) - early_NE
                moved_LHEE[layer, ahead] = np.linalg.solve(gram_EE, share_NE.T @ difference_NE)
            some = slice(None, None, max(1, len(tokens) // _FIT_TOKENS))
            early_NE = early_NE[some] + share_NE[some] @ moved_LHEE[layer, ahead]
            last_N2 = -np.sort(-early_NE, axis=1)[:, meta.top_k - 1 : meta.top_k + 1]
            above_NE = early_NE - last_N2.mean(axis=1, keepdims=True)
            is_chosen_NE = np.zeros(above_NE.shape, bool)
            experts_NK = train.experts_TLK[tokens[some], later].astype(np.int64)
            np.put_along_axis(is_chosen_NE, experts_NK, values=True, axis=1)
            if routers.logit_bias_LE is not None:
                moved_LHEE[layer, ahead] += routers.logit_bias_LE[later] / meta.top_k
            slope_LH[layer, ahead] = log_odds_slope(above_NE.ravel(), is_chosen_NE.ravel())
    return EarlyRouters(np.ascontiguousarray(moved_LHEE.transpose(0, 2, 1, 3)), slope_LH)


def shares(routers: Routers, layer: int, inputs_ND: Floats, experts_NK: npt.NDArray[np.unsignedinteger]) -> Floats:
    """What each expert has of its layer's output, in the mean of those chosen 1, of the others 0; float32 [N, E].

    By the softmax over the logits, without biases, of those that were chosen: combine weights, where the model makes
    them so, and much like them elsewhere.
    """
    logits_NE, chosen_NK = inputs_ND @ routers.weights_LED[layer].T, experts_NK.astype(np.int64)
    share_NE = np.zeros(logits_NE.shape, np.float32)
    share_NK = softmax(np.take_along_axis(logits_NE, chosen_NK, axis=1), axis=1) * experts_NK.shape[1]
    np.put_along_axis(share_NE, chosen_NK, share_NK, axis=1)
    return share_NE


def log_odds_slope(above_N: Floats, is_chosen_N: npt.NDArray[np.bool_]) -> float:
    """By Newton's method, with a ridge so small that it only matters where the sign decides alone."""
    above_N, slope = above_N.astype(np.float64), 0.0
    for _ in range(_NEWTON_STEPS):
        chance_N = expit(slope * above_N)
        curve = np.square(above_N) @ (chance_N * (1 - chance_N)) + _LITTLE
        step = (above_N @ (is_chosen_N - chance_N) - _LITTLE * slope) / curve
        slope += step
        if abs(step) < 1e-4 * slope:
            break
    return float(slope)
