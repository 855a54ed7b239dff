"""What a replay counted. Counts are stored, ratios are properties.

Shape suffixes: P prompts, F phases (0 prefill, 1 decode), C counters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator import cache

MIB = 2**20


@dataclass(frozen=True)
class Counts:
    """Sums over some accesses: of all prompts, one prompt, one phase.

    A prefetch is useful when something used the expert before it left, useless when nothing did. Bytes moved are those
    of misses and of prefetches, useful or not.
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

    @property
    def misses(self) -> int:
        """Accesses that waited for a load."""
        return self.accesses - self.hits

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
    """

    policy: str
    capacity_experts: int
    counts_PFC: npt.NDArray[np.int64]
    tokens_PF: npt.NDArray[np.int64]
    misses_N: npt.NDArray[np.int32]

    @property
    def total(self) -> Counts:
        """Both phases of all prompts."""
        return _counts(self.counts_PFC.sum(axis=(0, 1)), int(self.tokens_PF.sum()))

    @property
    def decode(self) -> Counts:
        """The decode steps of all prompts."""
        return _counts(self.counts_PFC[:, 1].sum(axis=0), int(self.tokens_PF[:, 1].sum()))

    @property
    def prefill(self) -> Counts:
        """The batched prefills of all prompts."""
        return _counts(self.counts_PFC[:, 0].sum(axis=0), int(self.tokens_PF[:, 0].sum()))

    @property
    def hits_P(self) -> npt.NDArray[np.int64]:
        """Hits of each prompt, both phases."""
        return np.asarray(self.counts_PFC[..., cache.HITS].sum(axis=1))

    @property
    def accesses_P(self) -> npt.NDArray[np.int64]:
        """Accesses of each prompt, both phases."""
        return np.asarray(self.counts_PFC[..., cache.ACCESSES].sum(axis=1))


def _counts(sums_C: npt.NDArray[np.int64], tokens: int) -> Counts:
    column = sums_C.tolist()
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
        tokens=tokens,
    )
