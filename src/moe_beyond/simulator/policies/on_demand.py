"""Policies that look only at past uses and load on demand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from moe_beyond.simulator.engine.orders import by_feature
from moe_beyond.simulator.engine.policy import (
    ADMITTED,
    LAST_STEP,
    LAST_USE,
    RANKS,
    SCORE,
    USES,
    USES_RESIDENT,
    Policy,
)
from moe_beyond.simulator.jit import F32, F64, I32, RANK, compiled
from moe_beyond.traces.schema import TraceMetadata

last_use = by_feature(LAST_USE)
"""Rank of the least recently used."""


@compiled(RANK, borrows=True)
def frequency_by_age(features_FM: F64, residents: I32, now: int, step: int, layer: int) -> None:
    """Rank of LFRU: uses over the accesses since the last one."""
    for place, expert in enumerate(residents):
        features_FM[RANKS, place] = features_FM[USES, expert] / (now - features_FM[LAST_USE, expert])


@compiled(RANK, borrows=True)
def stale_first(features_FM: F64, residents: I32, now: int, step: int, layer: int) -> None:
    """Rank of Least-Stale: experts that were not used in this step first, among equals the longest resident."""
    for place, expert in enumerate(residents):
        fresh = features_FM[LAST_STEP, expert] == step
        # admissions stay below 2 ** 52, so the sum keeps them apart
        features_FM[RANKS, place] = features_FM[ADMITTED, expert] + (4503599627370496.0 if fresh else 0.0)


@compiled(RANK, borrows=True)
def shuffled(features_FM: F64, residents: I32, now: int, step: int, layer: int) -> None:
    """A random number that an expert keeps while it stays: splitmix64 of its admission and the seed in SCORE."""
    for place, expert in enumerate(residents):
        seed = np.uint64(features_FM[SCORE, expert]) * np.uint64(0x9E3779B97F4A7C15)
        word = np.uint64(features_FM[ADMITTED, expert]) + seed
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word ^= word >> np.uint64(31)
        features_FM[RANKS, place] = word >> np.uint64(11)


class Lru(Policy):
    """Least recently used of the whole model.

    Layers come in a cycle, so between two tokens the other layers push through (L - 1) * K experts: in decode a cache
    of that size or less never hits, and below one token cycle of L * K it keeps only part of a layer.
    """

    name = "lru"
    title = "LRU"
    rank = staticmethod(last_use)


class LayerLru(Lru):
    """Least recently used within each layer, slots dealt evenly: no layer evicts another's experts."""

    name = "layer_lru"
    title = "LRU per layer"
    per_layer = True


class Lfu(Policy):
    """Least frequently used of the whole model; counts survive an eviction, of equals the least recently used first."""

    name = "lfu"
    title = "LFU"
    rank = staticmethod(by_feature(USES))


class LfuResident(Policy):
    """Least frequently used, counts starting again at each admission: LFU as cache libraries build it."""

    name = "lfu_resident"
    title = "LFU without history"
    rank = staticmethod(by_feature(USES_RESIDENT))


class LayerLfu(Lfu):
    """Least frequently used within each layer, slots dealt evenly."""

    name = "layer_lfu"
    title = "LFU per layer"
    per_layer = True


class Fifo(Policy):
    """First in, first out."""

    name = "fifo"
    title = "FIFO"
    rank = staticmethod(by_feature(ADMITTED))


class Lfru(Policy):
    """Least frequently and recently used: frequency over age, as proposed for vLLM (its issue 37190)."""

    name = "lfru"
    title = "LFRU"
    rank = staticmethod(frequency_by_age)


class LeastStale(Policy):
    """Evicts what this forward pass has not used, in order of admission (Least-Stale of SpecMD, arXiv 2602.03921)."""

    name = "least_stale"
    title = "Least-Stale"
    rank = staticmethod(stale_first)


@dataclass(frozen=True)
class Random(Policy):
    """Evicts at random, by the seed: what any idea must beat.

    Attributes:
        seed: Below 2 ** 24, so that it passes through a float32 score.
    """

    seed: int = 0
    name = "random"
    title = "Random"
    rank = staticmethod(shuffled)

    @override
    def fixed_scores_M(self, meta: TraceMetadata) -> F32:
        return np.full(meta.num_model_experts, self.seed, np.float32)
