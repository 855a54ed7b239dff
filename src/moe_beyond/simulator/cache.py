# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""Residency, compiled: who is in the cache, who comes in, who leaves, and what is counted of it.

Shape suffixes: M experts of the model, F features, G groups that share a budget, R rows of counts, C counters,
I places.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator.jit import compiled
from moe_beyond.simulator.policies.base import (
    ADMITTED,
    LAST_STEP,
    LAST_USE,
    LAYER,
    NUM_FEATURES,
    PRIOR,
    USES,
    USES_RESIDENT,
)

# columns of the counts; every value is an integer
ACCESSES, HITS, COMPULSORY, EVICTIONS, PREFETCHES, USEFUL, USELESS, DEMAND_BYTES, PREFETCH_BYTES = range(9)
NUM_COUNTERS = 9

ABSENT = -1
DEMANDED = -1
# stamps count half events: 2n while event n's prefetches are admitted, 2n + 1 while its own experts are
NEVER_PROTECTED = -1
NOBODY_IS_SPARED = 2**62


class Cache(NamedTuple):
    """Residency and what is remembered of every expert."""

    features_FM: npt.NDArray[np.float64]
    place_M: npt.NDArray[np.int64]
    """Place in its group's list of residents, or ABSENT."""
    prefetch_row_M: npt.NDArray[np.int64]
    """Row of counts of the prefetch that brought it and that nothing has used yet, or DEMANDED."""
    protected_M: npt.NDArray[np.int64]
    """It may not leave at stamps up to this one."""
    residents_GI: npt.NDArray[np.int32]
    count_G: npt.NDArray[np.int64]
    used_G: npt.NDArray[np.int64]
    ranks_I: npt.NDArray[np.float64]
    """Scratch: ranks of the residents that `make_room` looks at."""
    bytes_M: npt.NDArray[np.int64]
    units_M: npt.NDArray[np.int64]
    group_M: npt.NDArray[np.int64]
    budget_G: npt.NDArray[np.int64]
    counts_RC: npt.NDArray[np.int64]
    admissions_1: npt.NDArray[np.int64]
    """Admissions so far."""


@compiled()
def admit(cache: Cache, expert: int, prefetch_row: int) -> None:
    """Take an expert in; `prefetch_row` is the row of counts of the prefetch that brings it, or DEMANDED."""
    group = cache.group_M[expert]
    place = cache.count_G[group]
    cache.residents_GI[group, place] = expert
    cache.place_M[expert] = place
    cache.count_G[group] = place + 1
    cache.used_G[group] += cache.units_M[expert]
    cache.prefetch_row_M[expert] = prefetch_row
    cache.admissions_1[0] += 1
    cache.features_FM[ADMITTED, expert] = cache.admissions_1[0]
    cache.features_FM[USES_RESIDENT, expert] = 0


@compiled()
def remove(cache: Cache, group: int, place: int, row: int) -> None:
    """Let the expert at a place of its group's list go."""
    expert = cache.residents_GI[group, place]
    last = cache.count_G[group] - 1
    moved = cache.residents_GI[group, last]
    cache.residents_GI[group, place] = moved
    cache.ranks_I[place] = cache.ranks_I[last]
    cache.place_M[moved] = place
    cache.place_M[expert] = ABSENT
    cache.count_G[group] = last
    cache.used_G[group] -= cache.units_M[expert]
    cache.counts_RC[row, EVICTIONS] += 1
    if cache.prefetch_row_M[expert] != DEMANDED:
        cache.counts_RC[cache.prefetch_row_M[expert], USELESS] += 1
        cache.prefetch_row_M[expert] = DEMANDED


@compiled()
def make_room(
    rank: Any, cache: Cache, group: int, limit: int, stamp: int, now: int, step: int, layer: int, row: int
) -> None:
    """Let the lowest ranks leave until the group uses at most `limit`, or only protected ones are left."""
    if cache.used_G[group] <= limit:
        return
    features_FM, residents, ranks = cache.features_FM, cache.residents_GI[group], cache.ranks_I
    for place in range(cache.count_G[group]):
        expert = residents[place]
        protected = cache.protected_M[expert] >= stamp
        ranks[place] = np.inf if protected else rank(features_FM, expert, now, step, layer)
    while cache.used_G[group] > limit:
        best = -1
        lowest = np.inf
        for place in range(cache.count_G[group]):
            if ranks[place] < lowest:
                best, lowest = place, ranks[place]
            elif ranks[place] == lowest and best >= 0:
                a, b = residents[place], residents[best]
                # only experts that nothing has used yet share a last use
                if (features_FM[LAST_USE, a], a) < (features_FM[LAST_USE, b], b):
                    best = place
        if best < 0:
            return
        remove(cache, group, best, row)


@compiled()
def count_useless(cache: Cache) -> None:
    """Count the residents that were prefetched and that nothing has used."""
    for expert in range(len(cache.place_M)):
        if cache.prefetch_row_M[expert] != DEMANDED:
            cache.counts_RC[cache.prefetch_row_M[expert], USELESS] += 1


@compiled()
def empty(cache: Cache) -> None:
    """Forget everything."""
    count_useless(cache)
    cache.place_M[:] = ABSENT
    cache.prefetch_row_M[:] = DEMANDED
    cache.count_G[:] = 0
    cache.used_G[:] = 0
    cache.features_FM[LAST_USE] = -1
    cache.features_FM[LAST_STEP] = -1
    cache.features_FM[USES] = 0


@compiled()
def new_cache(
    prior_M: npt.NDArray[np.float64],
    layer_M: npt.NDArray[np.int64],
    bytes_M: npt.NDArray[np.int64],
    units_M: npt.NDArray[np.int64],
    group_M: npt.NDArray[np.int64],
    budget_G: npt.NDArray[np.int64],
    num_rows: int,
) -> Cache:
    """An empty cache."""
    num_groups, num_experts = len(budget_G), len(group_M)
    cache = Cache(
        features_FM=np.zeros((NUM_FEATURES, num_experts)),
        place_M=np.full(num_experts, ABSENT),
        prefetch_row_M=np.full(num_experts, DEMANDED),
        protected_M=np.full(num_experts, NEVER_PROTECTED),
        residents_GI=np.zeros((num_groups, num_experts), np.int32),
        count_G=np.zeros(num_groups, np.int64),
        used_G=np.zeros(num_groups, np.int64),
        ranks_I=np.zeros(num_experts),
        bytes_M=bytes_M,
        units_M=units_M,
        group_M=group_M,
        budget_G=budget_G,
        counts_RC=np.zeros((num_rows, NUM_COUNTERS), np.int64),
        admissions_1=np.zeros(1, np.int64),
    )
    empty(cache)
    cache.features_FM[LAYER] = layer_M
    cache.features_FM[PRIOR] = prior_M
    return cache


@compiled()
def use(cache: Cache, expert: int, now: int, step: int, row: int) -> bool:
    """Count one access; admit the expert where it was missed. Returns whether it was."""
    counts_C = cache.counts_RC[row]
    features_FM = cache.features_FM
    missed = cache.place_M[expert] == ABSENT
    counts_C[ACCESSES] += 1
    if missed:
        counts_C[DEMAND_BYTES] += cache.bytes_M[expert]
        counts_C[COMPULSORY] += features_FM[USES, expert] == 0
        admit(cache, expert, DEMANDED)
    else:
        counts_C[HITS] += 1
        if cache.prefetch_row_M[expert] != DEMANDED:
            cache.counts_RC[cache.prefetch_row_M[expert], USEFUL] += 1
            cache.prefetch_row_M[expert] = DEMANDED
    features_FM[LAST_USE, expert] = now
    features_FM[LAST_STEP, expert] = step
    features_FM[USES, expert] += 1
    features_FM[USES_RESIDENT, expert] += 1
    return bool(missed)
