# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""Importance-driven substitution (SMoE, arXiv 2508.18983): a similar resident expert replaces a missing one. Lossy.

Shape suffixes: I members of an event, F features, M = L * E experts of the model, L MoE layers, E routed experts in a
layer, T tokens, N nearest experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numba import njit
from typing_extensions import override

from moe_beyond.simulator.engine.orders import by_feature
from moe_beyond.simulator.engine.policy import FULL, LAYER, WEIGHT_SUM, Demand, Policy
from moe_beyond.simulator.jit import DEMAND, F32, F64, I32, I64
from moe_beyond.traces.schema import Trace

_LOW = 1.0
"""An expert of less than this part of an equal share of the weight may be replaced."""


@dataclass(frozen=True)
class Substitution(Policy):
    """Missing experts of low weight are replaced by resident ones of like function (SMoE, arXiv 2508.18983), lossy.

    Functional likeness needs the experts' outputs, which a trace does not hold; `live.likeness` measures it on a model.
    `fit` takes conditional usage: two experts of a layer are alike where the experts that their tokens used one layer
    below are. Where none of an expert's
    eight nearest is free, it is loaded. Eviction by the sum of router weights. Which weights count as low is not in the
    public text: below an equal share.

    Attributes:
        nearest_ME: For each expert of the model the others of its layer, most alike first, model-wide ids, int32.
    """

    nearest_ME: I32
    name = "substitution"
    title = "Substitution (SMoE)"
    needs_weights = True
    per_layer = True
    rank = staticmethod(by_feature(WEIGHT_SUM))

    @classmethod
    def fit(cls, training: Trace, neighbours: int = 8) -> Substitution:
        """Count, on the training split, which experts of the layer below (of the first: above) go with each expert."""
        meta = training.metadata
        likeness_LEE = np.empty((meta.num_layers, meta.num_experts, meta.num_experts))
        for layer in range(meta.num_layers):
            beside = layer - 1 if layer else min(1, meta.num_layers - 1)
            usage_EE = _used_together(training, layer, beside)
            usage_EE /= np.maximum(np.linalg.norm(usage_EE, axis=1, keepdims=True), 1e-9)
            likeness_LEE[layer] = usage_EE @ usage_EE.T
        return cls.of_likeness(likeness_LEE, neighbours)

    @classmethod
    def of_likeness(cls, likeness_LEE: F64, neighbours: int = 8) -> Substitution:
        """The nearest by a likeness of each two experts of a layer, [L, E, E]: the larger, the more alike."""
        num_layers, num_experts, _ = likeness_LEE.shape
        others_LEE = np.where(np.eye(num_experts, dtype=bool), -np.inf, likeness_LEE)
        order_LEN = np.argsort(-others_LEE, axis=2, kind="stable")[..., : min(neighbours, num_experts - 1)]
        nearest_LEN = order_LEN + num_experts * np.arange(num_layers)[:, None, None]
        return cls(nearest_LEN.reshape(num_layers * num_experts, -1).astype(np.int32))

    @property
    @override
    def demand(self) -> Demand:  # type: ignore[override]
        return _by_likeness(self.nearest_ME.tobytes(), self.nearest_ME.shape[1])


def _used_together(training: Trace, layer: int, beside: int) -> F64:
    """How often tokens use each expert of one layer and each of another, float64 [E, E]."""
    num_experts = training.metadata.num_experts
    here_TK = training.experts_TLK[:, layer].astype(np.int64)
    there_TK = training.experts_TLK[:, beside].astype(np.int64)
    pairs = (here_TK[:, :, None] * num_experts + there_TK[:, None, :]).ravel()
    return np.bincount(pairs, minlength=num_experts**2).reshape(num_experts, -1).astype(np.float64)


@lru_cache(maxsize=4)
def _by_likeness(table: bytes, neighbours: int) -> Demand:
    """The demand function for one table of likeness: compiled for it, since no argument could carry the table."""
    nearest_ME = np.frombuffer(table, np.int32).reshape(-1, neighbours)

    def by_likeness(
        features_FM: F64, precision_M: I64, members_I: I32, shares_I: F32, step: int, layer: int, actions_I: I64
    ) -> None:
        num_experts = features_FM.shape[1] // (int(features_FM[LAYER, features_FM.shape[1] - 1]) + 1)
        taken_E = np.zeros(num_experts, np.bool_)
        for expert in members_I:
            taken_E[expert % num_experts] = True
        for i in range(len(members_I)):
            actions_I[i] = FULL
            if precision_M[members_I[i]] < 0 and shares_I[i] < _LOW / len(members_I):
                for candidate in nearest_ME[members_I[i]]:
                    if precision_M[candidate] >= 0 and not taken_E[candidate % num_experts]:
                        taken_E[candidate % num_experts] = True
                        actions_I[i] = candidate
                        break

    return cast("Demand", cast(Any, njit(DEMAND, nogil=True, error_model="numpy"))(by_likeness))
