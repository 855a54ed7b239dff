"""What a replay counted. Counts are stored, ratios are properties.

Shape suffixes: P prompts, F phases (0 prefill, 1 decode), C counters, W ways of giving up router weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_beyond.intervals import Ratio
from moe_beyond.simulator.engine import cache

MIB = 2**20


@dataclass(frozen=True)
class Counts:
    """Sums over some accesses: of all prompts, one prompt, one phase.

    A prefetch is useful when something used the expert before it left, useless when nothing did. Bytes moved are those
    of misses and of prefetches, useful or not.

    Router weight that was given up is counted in tokens of the whole model: 1 is all that one token's routers weigh.
    It went to experts that were skipped, to others that stood in for them, or to a lower precision.
    """

    accesses: int
    hits: int
    compulsory_misses: int
    evictions: int
    prefetches: int
    prefetches_useful: int
    prefetches_useless: int
    demand_bytes: int
    prefetch_bytes: int
    tokens: int
    skipped: int = 0
    substituted: int = 0
    low_precision_loads: int = 0
    weight_skipped: float = 0.0
    weight_substituted: float = 0.0
    weight_low_precision: float = 0.0

    @property
    def misses(self) -> int:
        """Accesses that waited for a load."""
        return self.accesses - self.hits - self.skipped - self.substituted

    @property
    def mass_given_up(self) -> float:
        """Share of the router's weight that no expert of its choice computed at full precision; 0 where lossless."""
        given_up = self.weight_skipped + self.weight_substituted + self.weight_low_precision
        return given_up / self.tokens if self.tokens else 0.0

    @property
    def loads(self) -> int:
        """Experts moved: misses and prefetches."""
        return self.misses + self.prefetches

    @property
    def hit_rate(self) -> float:
        """Share of accesses that found their expert resident."""
        return self.hits / self.accesses if self.accesses else 0.0

    @property
    def loads_avoided(self) -> float:
        """Share of accesses that cost no load; below the hit rate where prefetches moved experts too."""
        return 1 - self.loads / self.accesses if self.accesses else 0.0

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
        given_up_PFW: float64, router weight given up, in tokens; columns of `usage`.
    """

    policy: str
    capacity_experts: int
    counts_PFC: npt.NDArray[np.int64]
    tokens_PF: npt.NDArray[np.int64]
    misses_N: npt.NDArray[np.int32]
    given_up_PFW: npt.NDArray[np.float64]

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
    def hits_P(self) -> npt.NDArray[np.int64]:
        """Hits of each prompt, both phases."""
        return np.asarray(self.counts_PFC[..., cache.HITS].sum(axis=1))

    @property
    def accesses_P(self) -> npt.NDArray[np.int64]:
        """Accesses of each prompt, both phases."""
        return np.asarray(self.counts_PFC[..., cache.ACCESSES].sum(axis=1))

    def _sum(self, phases: slice) -> Counts:
        column = self.counts_PFC[:, phases].sum(axis=(0, 1)).tolist()
        skipped, substituted, low_precision = self.given_up_PFW[:, phases].sum(axis=(0, 1)).tolist()
        return Counts(
            accesses=column[cache.ACCESSES],
            hits=column[cache.HITS],
            compulsory_misses=column[cache.COMPULSORY],
            evictions=column[cache.EVICTIONS],
            prefetches=column[cache.PREFETCHES],
            prefetches_useful=column[cache.USEFUL],
            prefetches_useless=column[cache.USELESS],
            demand_bytes=column[cache.DEMAND_BYTES],
            prefetch_bytes=column[cache.PREFETCH_BYTES],
            tokens=int(self.tokens_PF[:, phases].sum()),
            skipped=column[cache.SKIPPED],
            substituted=column[cache.SUBSTITUTED],
            low_precision_loads=column[cache.LOW_LOADS],
            weight_skipped=skipped,
            weight_substituted=substituted,
            weight_low_precision=low_precision,
        )
