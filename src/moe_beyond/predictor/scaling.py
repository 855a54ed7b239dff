"""Logits into probabilities that can be taken at their word, layer by layer, and thresholds with a stated coverage.

Platt's scaling: probability = 1 / (1 + exp(-(scale * logit + shift))), scale and shift fitted for each layer by the
likelihood of the validation split. The scale is positive, so that no order of experts changes and recall@k stays.

Split conformal prediction: prefetch the experts whose probability reaches a threshold, the threshold of a layer being
such an order statistic of the true experts' probabilities on the validation split that a true expert of a new prompt
like those is among them with at least the stated probability. The guarantee is on average over such prompts: where the
domain changes, it does not hold, and what came out is measured on each test split.

Shape suffixes: T tokens, L MoE layers, E experts, K top-k, B bins of logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from moe_beyond.traces.schema import ExpertIds

Floats = npt.NDArray[np.float32]
Reals = npt.NDArray[np.float64]

_LOGIT_RANGE, _BINS = 32.0, 4096
_NEWTON_STEPS = 30
_LEAST_SCALE = 1e-3
_PULL = 1.0  # weight of staying with the logits as they are, in statements: a layer without data keeps them


@dataclass(frozen=True)
class Scaling:
    """Scale, shift and conformal thresholds of each layer.

    Attributes:
        scale_L: float64, above 0.
        shift_L: float64.
        thresholds_L: Coverage -> the least probability of a layer's prefetch set, float64.
    """

    scale_L: Reals
    shift_L: Reals
    thresholds_L: dict[float, Reals]

    @classmethod
    def identity(cls, num_layers: int) -> Self:
        """The logits as they are, no thresholds."""
        return cls(np.ones(num_layers), np.zeros(num_layers), {})

    def probabilities(self, logits_XLE: Floats) -> Floats:
        """Probabilities of logits of any leading shape, float32 [..., L, E]."""
        scaled = logits_XLE * self.scale_L[:, None].astype(np.float32) + self.shift_L[:, None].astype(np.float32)
        return sigmoid(scaled)

    def layer(self, index: int) -> Scaling:
        """That of one layer alone, for logits [..., 1, E]."""
        one = slice(index, index + 1)
        return Scaling(self.scale_L[one], self.shift_L[one], {c: v[one] for c, v in self.thresholds_L.items()})

    def as_dict(self) -> dict[str, Any]:
        """For the metadata of an ONNX file."""
        thresholds = {str(coverage): values.tolist() for coverage, values in self.thresholds_L.items()}
        return {"scale": self.scale_L.tolist(), "shift": self.shift_L.tolist(), "thresholds": thresholds}

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> Self:
        """What `as_dict` gave."""
        thresholds = {float(coverage): np.array(values) for coverage, values in description["thresholds"].items()}
        return cls(np.array(description["scale"]), np.array(description["shift"]), thresholds)


class ScalingFit:
    """Gathers logits part by part, then fits; memory does not grow with the number of inactive experts."""

    def __init__(self, num_layers: int) -> None:
        self.count_LB, self.sum_LB, self.true_LB = (np.zeros((num_layers, _BINS)) for _ in range(3))
        self.true_logits: list[Floats] = []

    def add(self, logits_TLE: Floats, experts_TLK: ExpertIds) -> None:
        """Gather a part of the validation split.

        Args:
            logits_TLE: Of the predictor, float32.
            experts_TLK: The router's choice.
        """
        true_TLK = np.take_along_axis(logits_TLE, experts_TLK.astype(np.int64), axis=2)
        self.true_logits.append(true_TLK)
        for layer in range(len(self.count_LB)):
            logits = logits_TLE[:, layer].ravel()
            bins = _bin(logits)
            self.count_LB[layer] += np.bincount(bins, minlength=_BINS)
            self.sum_LB[layer] += np.bincount(bins, logits, _BINS)
            self.true_LB[layer] += np.bincount(_bin(true_TLK[:, layer].ravel()), minlength=_BINS)

    def fit(self, coverages: tuple[float, ...]) -> Scaling:
        """Scale and shift of the greatest likelihood, then thresholds for each coverage in (0, 1)."""
        fitted = [_platt(*counts) for counts in zip(self.count_LB, self.sum_LB, self.true_LB, strict=True)]
        scale_L, shift_L = (np.array(values) for values in zip(*fitted, strict=True))
        plain = Scaling(scale_L, shift_L, {})
        # a true expert's probability is scaled by its own layer, so the last axis may hold the true experts alone
        true_TLK = plain.probabilities(np.concatenate(self.true_logits)).astype(np.float64)
        ordered_LN = np.sort(true_TLK.transpose(1, 0, 2).reshape(len(scale_L), -1), axis=1)
        return Scaling(scale_L, shift_L, {coverage: _thresholds(ordered_LN, coverage) for coverage in coverages})


def sigmoid(logits: Floats) -> Floats:
    """Logistic function, without overflow, float32."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), np.float32)


def _bin(logits: Floats) -> npt.NDArray[np.int64]:
    place = (logits / (2 * _LOGIT_RANGE) + 0.5) * _BINS
    return np.asarray(np.clip(place, 0, _BINS - 1), np.int64)


def _platt(count_B: Reals, sum_B: Reals, true_B: Reals) -> tuple[float, float]:
    """Logistic regression on the mean logit of each filled bin, by Newton's method with halved steps."""
    filled = count_B > 0
    x, count, true = sum_B[filled] / count_B[filled], count_B[filled], true_B[filled]
    design = np.stack([x, np.ones_like(x)])
    weights, start = np.array([1.0, 0.0]), np.array([1.0, 0.0])

    def loss(w: Reals) -> float:
        z = w @ design
        return float((count * np.logaddexp(0, z) - true * z).sum() + _PULL / 2 * ((w - start) ** 2).sum())

    for _ in range(_NEWTON_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(weights @ design, -60, 60)))
        gradient = design @ (count * chance - true) + _PULL * (weights - start)
        curvature = (design * (count * chance * (1 - chance))) @ design.T + _PULL * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        before, length = loss(weights), 1.0
        while loss(weights - length * step) > before and length > 1e-6:
            length /= 2
        weights = weights - length * step
        if np.abs(length * step).max() < 1e-9:
            break
    return max(float(weights[0]), _LEAST_SCALE), float(weights[1])


def _thresholds(ordered_LN: Reals, coverage: float) -> Reals:
    """The floor((1 - coverage) (N + 1))-th smallest true probability of each layer; 0 where that is none."""
    rank = math.floor((1 - coverage) * (ordered_LN.shape[1] + 1) + 1e-9)
    return ordered_LN[:, rank - 1].copy() if rank > 0 else np.zeros(len(ordered_LN))
