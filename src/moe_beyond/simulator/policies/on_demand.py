"""Policies that look only at past uses and load on demand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from moe_beyond.simulator.jit import RANK, compiled
from moe_beyond.simulator.policies.base import LAST_USE, USES, Policy, Rank


@compiled(RANK)
def last_use(features_FM: npt.NDArray[np.float64], expert: int, now: int, step: int) -> float:
    """Rank of least recently used."""
    return float(features_FM[LAST_USE, expert])


@compiled(RANK)
def uses(features_FM: npt.NDArray[np.float64], expert: int, now: int, step: int) -> float:
    """Rank of least frequently used, counting also the uses before an eviction."""
    return float(features_FM[USES, expert])


class Lru(Policy):
    """Least recently used of the whole model.

    Layers come in a cycle, so between two tokens the other layers push through (L - 1) * K experts: in decode a cache
    of that size or less never hits, and below one token cycle of L * K it keeps only part of a layer.
    """

    name = "lru"

    @property
    @override
    def rank(self) -> Rank:
        return last_use


class LayerLru(Lru):
    """Least recently used within each layer, slots dealt evenly: no layer pushes out another's experts."""

    name = "layer_lru"
    per_layer = True


class Lfu(Policy):
    """Least frequently used of the whole model; counts survive an eviction, ties leave least recently used first."""

    name = "lfu"

    @property
    @override
    def rank(self) -> Rank:
        return uses


class LayerLfu(Lfu):
    """Least frequently used within each layer, slots dealt evenly."""

    name = "layer_lfu"
    per_layer = True
