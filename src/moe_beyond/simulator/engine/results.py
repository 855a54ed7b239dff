"""What a replay counted. Counts are stored, ratios are properties.

Shape suffixes: P prompts, F phases (0 prefill, 1 decode), C counters, W ways of losing router weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_beyond.intervals import Ratio
from moe_beyond.simulator.engine import cache
from moe_beyond.simulator.jit import F64, I32, I64

MIB = 2**20


@dataclass(frozen=True)
class Counts:
    """Sums over some accesses: of all prompts, one prompt, one phase.

    A prefetch is useful if the expert was used before it was evicted, else useless. Bytes moved are those of misses and
    of prefetches, useful or not.

    Lost router weight is counted in tokens of the whole model: 1 is the sum of one token's router weights. It belonged
    to experts that were skipped, replaced by others, or computed at a lower precision.
    """

    tokens: int
    accesses: int
    hits: int
    compulsory_misses: int
    evictions: int
    prefetches: int
    prefetches_useful: int
    prefetches_useless: int
    demand_bytes: int
    prefetch_bytes: int
    skipped: int
    substituted: int
    low_precision_loads: int
    weight_skipped: float
    weight_substituted: float
    weight_low_precision: float

    @property
    def misses(self) -> int:
        """Accesses that waited for a load."""
        return self.accesses - self.hits - self.skipped - self.substituted

    @property
    def mass_given_up(self) -> float:
        """Share of the router's weight that no expert of its choice computed at full precision; 0 where lossless."""
        weight_lost = self.weight_skipped + self.weight_substituted + self.weight_low_precision
        return weight_lost / self.tokens if self.tokens else 0.0

    @property
    def loads(self) -> int:
        """Experts moved: misses and prefetches."""
        return self.misses + self.prefetches

    @property
    def hit_rate(self) -> float:
        """Share of accesses that found their expert resident."""
        return self.hits / self.accesses if self.accesses else 0.0

    @property
    def bytes_moved(self) -> int:
        """Bytes of misses and prefetches."""
        return self.demand_bytes + self.prefetch_bytes

    @property
    def mib_per_token(self) -> float:
        """MiB moved per token."""
        return self.bytes_moved / MIB / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class Replay:
    """One policy at one capacity over one trace.

    Attributes:
        policy: Name of the policy.
        capacity_experts: Slots of the cache; for a budget in bytes, how many of the smallest experts fit.
        counts_PFC: int64, counters of `cache` per prompt and phase.
        tokens_PF: int64, tokens per prompt and phase.
        misses_N: int32, misses of each event.
        weight_lost_PFW: float64, router weight lost, in tokens; columns of `usage`.
    """

    policy: str
    capacity_experts: int
    counts_PFC: I64
    tokens_PF: I64
    misses_N: I32
    weight_lost_PFW: F64

    @property
    def total(self) -> Counts:
        """Both phases of all prompts."""
        return self._sum(slice(None))

    @property
    def decode(self) -> Counts:
        """The decode steps of all prompts."""
        return self._sum(slice(1, 2))

    @property
    def prefill(self) -> Counts:
        """The batched prefills of all prompts."""
        return self._sum(slice(0, 1))

    @property
    def hit_ratio(self) -> Ratio:
        """Hits over accesses, by prompt."""
        return Ratio(self.hits_P, self.accesses_P)

    @property
    def hits_P(self) -> I64:
        """Hits of each prompt, both phases."""
        return np.asarray(self.counts_PFC[..., cache.HITS].sum(axis=1))

    @property
    def accesses_P(self) -> I64:
        """Accesses of each prompt, both phases."""
        return np.asarray(self.counts_PFC[..., cache.ACCESSES].sum(axis=1))

    def _sum(self, phases: slice) -> Counts:
        # both arrays have their columns in the order of the fields
        counters = self.counts_PFC[:, phases].sum(axis=(0, 1)).tolist()
        weights = self.weight_lost_PFW[:, phases].sum(axis=(0, 1)).tolist()
        return Counts(int(self.tokens_PF[:, phases].sum()), *counters, *weights)
