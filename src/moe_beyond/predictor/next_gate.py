"""Gates of later layers, run early: as they are, with default vectors, and with an adapter that all layers share.

Shape suffixes: L MoE layers, E experts, K experts per token, H horizon, D hidden size of the traced model, N tokens, R
rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from moe_beyond.errors import InputError
from moe_beyond.predictor.base import Floats
from moe_beyond.predictor.descent import descend, softmax
from moe_beyond.predictor.from_hidden import HORIZON, FromHidden, Seen, recall_ahead, require_routers, seen_parts
from moe_beyond.traces.hidden import HiddenStates, Routers
from moe_beyond.traces.schema import Trace

_RIDGES = (1.0, 10.0, 100.0, 1000.0)
_DECAYS = (0.0, 1e-2)
Sums = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NextGate(FromHidden):
    """The router of a later layer, run on what this layer's router has read (Mixtral-offloading, arXiv 2312.17238).

    Attributes:
        routers: Of the traced model, with biases, groups and scoring as it has them.
    """

    routers: Routers
    name = "next gate"

    @classmethod
    def fit(cls, train: Trace) -> Self:
        """Nothing is fitted; raises InputError where the trace has no routers."""
        return cls(require_routers(train))

    @override
    def scores_NE(self, layer: int, ahead: int, seen: Seen) -> Floats:
        return self.routers.ranks_NE(layer + ahead, seen.inputs_ND)

    @property
    @override
    def num_parameters(self) -> int:
        return 0

    @property
    @override
    def weights_per_layer(self) -> int:
        return HORIZON * int(np.prod(self.routers.weights_LED.shape[1:]))


@dataclass(frozen=True)
class DefaultVectors(FromHidden):
    """A later router on this layer's gate input plus the weighted mean outputs of the chosen experts (2603.19289).

    After arXiv 2603.19289, unverified: the residual ahead of the experts plus, for each chosen expert, its weight times
    its mean output, is what stands in for the next layer's input. A trace has gate inputs, which are that residual
    after a norm whose scale is not kept; so the vectors are those by which later gate inputs differ from this one, by
    least squares on the weights: they hold the mean of what attention adds as well. Two and more layers ahead have
    vectors of their own, instead of a chain of guessed experts.

    Attributes:
        routers: Of the traced model.
        vectors_LHED: float32; what each expert of a layer adds to the gate input of each layer ahead.
    """

    routers: Routers
    vectors_LHED: Floats
    name = "default vectors"

    @classmethod
    def fit(cls, train: Trace, validation: Trace) -> Self:
        """Least squares on the training split, a ridge for each horizon by recall on the validation split.

        Raises:
            InputError: The traces have no routers or no combine weights.
        """
        routers, meta = require_routers(train), train.metadata
        if train.weights_TLK is None or train.hidden is None:
            raise InputError(f"the trace of {meta.model_id} has no router weights, which default vectors need")
        shape = (meta.num_layers, HORIZON, meta.num_experts, routers.weights_LED.shape[2])
        plain, sums = NextGate(routers), {}
        for layer in range(meta.num_layers - 1):
            sums[layer] = _weighted_sums(train, train.hidden, plain, layer)
        candidates = []
        for ridge in _RIDGES:
            vectors_LHED = np.zeros(shape, np.float32)
            for layer, (gram_EE, moved_HED) in sums.items():
                system_EE = gram_EE + ridge * np.eye(meta.num_experts)
                for ahead, moved_ED in enumerate(moved_HED):
                    vectors_LHED[layer, ahead] = np.linalg.solve(system_EE, moved_ED)
            candidates.append(cls(routers, vectors_LHED))
        best = cls(routers, np.zeros(shape, np.float32))
        for ahead in range(1, min(HORIZON, meta.num_layers - 1) + 1):
            chosen = max(candidates, key=lambda one: recall_ahead(one, validation, ahead))
            best.vectors_LHED[:, ahead - 1] = chosen.vectors_LHED[:, ahead - 1]
        return best

    @override
    def scores_NE(self, layer: int, ahead: int, seen: Seen) -> Floats:
        if seen.weights_NK is None:
            raise InputError("default vectors need router weights, and the trace has none")
        # for one token gathering its k vectors is cheaper than a product with all
        if len(seen.inputs_ND) == 1:
            moved_1D = seen.weights_NK @ self.vectors_LHED[layer, ahead - 1][seen.experts_NK[0].astype(np.int64)]
        else:
            weights_NE = seen.one_hot_NE(self.vectors_LHED.shape[2], weighted=True)
            moved_1D = weights_NE @ self.vectors_LHED[layer, ahead - 1]
        return self.routers.ranks_NE(layer + ahead, seen.inputs_ND + moved_1D)

    @property
    @override
    def num_parameters(self) -> int:
        return self.vectors_LHED.size

    @property
    @override
    def weights_per_layer(self) -> int:
        # sixteen gathered vectors stand for those of any router's k
        return HORIZON * int(np.prod(self.routers.weights_LED.shape[1:]) + 16 * self.vectors_LHED.shape[3])


def _weighted_sums(train: Trace, hidden: HiddenStates, reader: FromHidden, layer: int) -> tuple[Sums, Sums]:
    """A layer's Gram matrix of weights [E, E], and their products with how gate inputs differ ahead [H, E, D]."""
    meta = train.metadata
    gram_EE = np.zeros((meta.num_experts, meta.num_experts))
    moved_HED = np.zeros((min(HORIZON, meta.num_layers - 1 - layer), meta.num_experts, hidden.width))
    for tokens, seen in seen_parts(train, reader, layer):
        weights_NE = seen.one_hot_NE(meta.num_experts, weighted=True)
        gram_EE += weights_NE.T @ weights_NE
        for ahead in range(len(moved_HED)):
            later_ND, kept_N = hidden.of_layer(hidden.gate_inputs_SYD, layer + ahead + 1, tokens)
            moved_HED[ahead] += weights_NE.T @ ((later_ND - seen.inputs_ND) * kept_N[:, None])
    return gram_EE, moved_HED


@dataclass(frozen=True)
class SharedAdapter(FromHidden):
    """A later router on x + B A x, A and B of low rank and shared by all layers (2607.24787).

    After arXiv 2607.24787, unverified: which loss is descended there. Here it is the divergence of the softmax over the
    guessed logits from that over the router's own, which it gives for its real input; biases of the choice alone and
    groups stay out of the loss, and are in the choice. A pair of matrices for each number of layers ahead.

    Attributes:
        routers: Of the traced model.
        down_HRD: A, float32.
        up_HDR: B, float32.
    """

    routers: Routers
    down_HRD: Floats
    up_HDR: Floats
    name = "shared adapter"

    @classmethod
    def fit(cls, train: Trace, validation: Trace, seed: int, rank: int = 16) -> Self:
        """Descend on the training split; the validation split chooses the decay of both matrices.

        Raises:
            InputError: The traces have no routers.
        """
        routers, num_layers = require_routers(train), train.metadata.num_layers
        width, far = routers.weights_LED.shape[2], min(HORIZON, num_layers - 1)
        empty = cls(routers, np.zeros((HORIZON, rank, width), np.float32), np.zeros((HORIZON, width, rank), np.float32))
        plain = NextGate(routers)
        states = {layer: list(seen_parts(train, plain, layer)) for layer in range(num_layers)}
        for ahead in range(1, far + 1):
            rows = [
                (layer + ahead, part.inputs_ND, softmax(routers.logits_NE(layer + ahead, later.inputs_ND)))
                for layer in range(num_layers - ahead)
                for (_, part), (_, later) in zip(states[layer], states[layer + ahead], strict=False)
            ]
            found = []
            for decay in _DECAYS:
                one = cls(routers, empty.down_HRD.copy(), empty.up_HDR.copy())
                one.down_HRD[ahead - 1], one.up_HDR[ahead - 1] = _adapted(routers, rows, rank, decay, seed)
                found.append(one)
            best = max(found, key=lambda one: recall_ahead(one, validation, ahead))
            empty.down_HRD[ahead - 1], empty.up_HDR[ahead - 1] = best.down_HRD[ahead - 1], best.up_HDR[ahead - 1]
        return empty

    @override
    def scores_NE(self, layer: int, ahead: int, seen: Seen) -> Floats:
        moved_ND = (seen.inputs_ND @ self.down_HRD[ahead - 1].T) @ self.up_HDR[ahead - 1].T
        return self.routers.ranks_NE(layer + ahead, seen.inputs_ND + moved_ND)

    @property
    @override
    def num_parameters(self) -> int:
        return self.down_HRD.size + self.up_HDR.size

    @property
    @override
    def weights_per_layer(self) -> int:
        return HORIZON * int(np.prod(self.routers.weights_LED.shape[1:])) + self.num_parameters


def _adapted(
    routers: Routers, rows: list[tuple[int, Floats, Floats]], rank: int, decay: float, seed: int
) -> tuple[Floats, Floats]:
    draw = np.random.default_rng(seed)
    width = routers.weights_LED.shape[2]
    matrices = [
        (draw.standard_normal((rank, width)) / width**0.5).astype(np.float32),
        np.zeros((width, rank), np.float32),
    ]

    def slopes(row: int, batch_B: npt.NDArray[np.int64]) -> list[Floats]:
        target, inputs_ND, shares_NE = rows[row]
        x_BD = inputs_ND[batch_B]
        down_RD, up_DR = matrices
        low_BR = x_BD @ down_RD.T
        slope_BE = softmax(routers.logits_NE(target, x_BD + low_BR @ up_DR.T)) - shares_NE[batch_B]
        back_BD = slope_BE @ routers.weights_LED[target] / np.float32(len(batch_B))
        return [(back_BD @ up_DR).T @ x_BD, back_BD.T @ low_BR]

    descend(matrices, slopes, [len(inputs_ND) for _, inputs_ND, _ in rows], decay=decay, draw=draw)
    return matrices[0], matrices[1]
