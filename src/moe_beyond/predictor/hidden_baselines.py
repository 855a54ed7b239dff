"""Linear baselines on hidden states, without the model's routers; and all baselines together.

Shape suffixes: L MoE layers, E experts, K experts per token, H horizon, D hidden size of the traced model, N tokens, X
features (D hidden values, then E marks of chosen experts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from moe_beyond.errors import InputError
from moe_beyond.predictor.base import Floats
from moe_beyond.predictor.descent import descend, softmax
from moe_beyond.predictor.from_hidden import HORIZON, FromHidden, Seen, recall_ahead, seen_parts
from moe_beyond.predictor.next_gate import DefaultVectors, NextGate, SharedAdapter
from moe_beyond.traces.hidden import HiddenStates
from moe_beyond.traces.schema import Trace

_RIDGES = (1.0, 10.0, 100.0, 1000.0, 10_000.0)
_DECAYS = (0.0, 1e-2)


@dataclass(frozen=True)
class HiddenRidge(FromHidden):
    """Ridge regression from a layer's gate input and its chosen experts to the choices of later layers.

    Attributes:
        scale_L: What the gate inputs of each layer are divided by, float32: their root mean square.
        weights_LHXE: float32.
        bias_LHE: float32.
    """

    scale_L: Floats
    weights_LHXE: Floats
    bias_LHE: Floats
    name = "ridge"

    @classmethod
    def fit(cls, train: Trace, validation: Trace) -> Self:
        """Least squares on the training split, a ridge for each horizon by recall on the validation split."""
        meta, hidden = train.metadata, train.hidden
        if hidden is None:
            raise InputError(f"the trace of {meta.model_id} has no hidden states")
        features = hidden.width + meta.num_experts
        scale_L = np.ones(meta.num_layers, np.float32)
        empty = cls(
            scale_L,
            np.zeros((meta.num_layers, HORIZON, features, meta.num_experts), np.float32),
            np.zeros((meta.num_layers, HORIZON, meta.num_experts), np.float32),
        )
        candidates = [cls(scale_L, empty.weights_LHXE.copy(), empty.bias_LHE.copy()) for _ in _RIDGES]
        for layer in range(meta.num_layers - 1):
            sums = _sums(train, empty, layer)
            if sums is None:
                continue
            gram_XX, mean_X, scale = sums[:3]
            scale_L[layer] = scale
            for ridge, one in zip(_RIDGES, candidates, strict=True):
                for ahead, (products_XE, mean_E) in enumerate(sums[3]):
                    weights_XE = np.linalg.solve(gram_XX + ridge * np.eye(features), products_XE)
                    one.weights_LHXE[layer, ahead] = weights_XE
                    one.bias_LHE[layer, ahead] = mean_E - mean_X @ weights_XE
        for ahead in range(1, min(HORIZON, meta.num_layers - 1) + 1):
            best = max(candidates, key=lambda one: recall_ahead(one, validation, ahead))
            empty.weights_LHXE[:, ahead - 1] = best.weights_LHXE[:, ahead - 1]
            empty.bias_LHE[:, ahead - 1] = best.bias_LHE[:, ahead - 1]
        return empty

    @override
    def scores_NE(self, layer: int, ahead: int, seen: Seen) -> Floats:
        weights_XE, bias_E = self.weights_LHXE[layer, ahead - 1], self.bias_LHE[layer, ahead - 1]
        width = seen.inputs_ND.shape[1]
        scores_NE = (seen.inputs_ND / self.scale_L[layer]) @ weights_XE[:width] + bias_E
        if len(scores_NE) == 1:
            return np.asarray(scores_NE + weights_XE[width + seen.experts_NK[0].astype(np.int64)].sum(axis=0))
        return np.asarray(scores_NE + seen.one_hot_NE(len(bias_E)) @ weights_XE[width:])

    @property
    @override
    def num_parameters(self) -> int:
        return self.weights_LHXE.size + self.bias_LHE.size + self.scale_L.size

    @property
    @override
    def weights_per_layer(self) -> int:
        return int(self.weights_LHXE[0].size)


def _sums(
    train: Trace, reader: FromHidden, layer: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], float, list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]] | None:
    """Sums over the tokens of a layer; None where nothing is kept.

    Returns:
        The features' Gram matrix about their means [X, X], their means [X], what the inputs were divided by; and for
        each layer ahead the products with its choices about the means [X, E] and the choices' means [E].
    """
    meta = train.metadata
    far = min(HORIZON, meta.num_layers - 1 - layer)
    count, squares, sum_X, gram_XX = 0, 0.0, 0.0, 0.0
    products: list[Any] = [0.0] * far
    sums: list[Any] = [0.0] * far
    width = 0
    for tokens, seen in seen_parts(train, reader, layer):
        width = seen.inputs_ND.shape[1]
        x_NX = np.concatenate([seen.inputs_ND, seen.one_hot_NE(meta.num_experts)], axis=1)
        count += len(x_NX)
        squares += float((seen.inputs_ND.astype(np.float64) ** 2).sum())
        sum_X = sum_X + x_NX.sum(axis=0, dtype=np.float64)
        gram_XX = gram_XX + (x_NX.T @ x_NX).astype(np.float64)
        for ahead in range(far):
            chosen = Seen(seen.inputs_ND, np.asarray(train.experts_TLK[tokens, layer + ahead + 1]))
            chosen_NE = chosen.one_hot_NE(meta.num_experts)
            products[ahead] = products[ahead] + (x_NX.T @ chosen_NE).astype(np.float64)
            sums[ahead] = sums[ahead] + chosen_NE.sum(axis=0, dtype=np.float64)
    if not count:
        return None
    scale = max((squares / (count * width)) ** 0.5, 1e-6)
    inverse_X = np.ones(width + meta.num_experts)
    inverse_X[:width] = 1 / scale
    mean_X = np.asarray(sum_X) * inverse_X / count
    centred_XX = np.asarray(gram_XX) * inverse_X[:, None] * inverse_X - count * np.outer(mean_X, mean_X)
    targets = [
        (product * inverse_X[:, None] - np.outer(mean_X, total), total / count)
        for product, total in zip(products, sums, strict=True)
    ]
    return centred_XX, mean_X, scale, targets


@dataclass(frozen=True)
class PreAttention(FromHidden):
    """A linear head on what a layer reads ahead of its attention, for the layer's own experts, the first one's too.

    After arXiv 2511.10676, unverified: linear heads with a loss that ranks. Which one is descended there is not known
    to us: here it is ListNet's (Cao et al. 2007) of the best one, the cross entropy of the softmax over scores with
    equal shares of the experts that were chosen. Hidden states are divided by their root mean square, token by token,
    as the layer's own norm does.

    Attributes:
        weights_LDE: float32.
        bias_LE: float32.
    """

    weights_LDE: Floats
    bias_LE: Floats
    name = "pre-attention head"
    first_ahead = 0

    @classmethod
    def fit(cls, train: Trace, validation: Trace, seed: int) -> Self:
        """Descend on the training split; the validation split chooses the decay of the weights.

        Raises:
            InputError: The trace keeps nothing of what layers read ahead of their attention.
        """
        meta, hidden = train.metadata, train.hidden
        if hidden is None or hidden.layer_inputs_SYD is None:
            raise InputError(f"the trace of {meta.model_id} has no layer inputs, which a pre-attention head reads")
        shape = (meta.num_layers, hidden.width, meta.num_experts)
        found = []
        for decay in _DECAYS:
            one = cls(np.zeros(shape, np.float32), np.zeros(shape[::2], np.float32))
            for layer in range(meta.num_layers):
                draw = np.random.default_rng([seed, layer])
                parts = [(_normed(seen.inputs_ND), seen.experts_NK) for _, seen in seen_parts(train, one, layer)]
                _rank_best([one.weights_LDE[layer], one.bias_LE[layer]], parts, decay, draw)
            found.append(one)
        return max(found, key=lambda one: recall_ahead(one, validation, 0))

    @override
    def states(self, hidden: HiddenStates) -> npt.NDArray[np.float16] | None:
        return hidden.layer_inputs_SYD

    @override
    def scores_NE(self, layer: int, ahead: int, seen: Seen) -> Floats:
        return np.asarray(_normed(seen.inputs_ND) @ self.weights_LDE[layer] + self.bias_LE[layer])

    @property
    @override
    def num_parameters(self) -> int:
        return self.weights_LDE.size + self.bias_LE.size

    @property
    @override
    def weights_per_layer(self) -> int:
        return int(self.weights_LDE[0].size)


def _normed(inputs_ND: Floats) -> Floats:
    mean_N1 = np.square(inputs_ND).mean(axis=1, keepdims=True)
    return np.asarray(inputs_ND / np.sqrt(mean_N1 + np.float32(1e-6)), np.float32)


def _rank_best(
    matrices: list[Floats],
    parts: list[tuple[Floats, npt.NDArray[Any]]],
    decay: float,
    draw: np.random.Generator,
) -> None:
    def slopes(part: int, batch_B: npt.NDArray[np.int64]) -> list[Floats]:
        x_BD, experts_BK = parts[part][0][batch_B], parts[part][1][batch_B].astype(np.int64)
        slope_BE = softmax(x_BD @ matrices[0] + matrices[1])
        shares_BK = np.take_along_axis(slope_BE, experts_BK, axis=1) - np.float32(1 / experts_BK.shape[1])
        np.put_along_axis(slope_BE, experts_BK, shares_BK, axis=1)
        slope_BE /= np.float32(len(batch_B))
        return [x_BD.T @ slope_BE, slope_BE.sum(axis=0)]

    descend(matrices, slopes, [len(inputs_ND) for inputs_ND, _ in parts], decay=decay, draw=draw)


def fit_from_hidden(train: Trace, validation: Trace, seed: int) -> list[FromHidden]:
    """Every baseline that the traces allow, the cheapest first; none without hidden states."""
    if train.hidden is None or validation.hidden is None:
        return []
    found: list[FromHidden] = []
    if train.hidden.routers is not None:
        found.append(NextGate.fit(train))
        if train.weights_TLK is not None and validation.weights_TLK is not None:
            found.append(DefaultVectors.fit(train, validation))
        found.append(SharedAdapter.fit(train, validation, seed))
    found.append(HiddenRidge.fit(train, validation))
    if train.hidden.layer_inputs_SYD is not None and validation.hidden.layer_inputs_SYD is not None:
        found.append(PreAttention.fit(train, validation, seed))
    return found
