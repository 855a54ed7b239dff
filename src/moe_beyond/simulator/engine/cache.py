# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""Residency, compiled: who is in the cache, who comes in, who leaves, and what is counted of it.

A cache is five tables. They are handed over one by one: a tuple of them would cost more than the work, because compiled
code counts the references to each array that it takes out of a tuple.

Shape suffixes: M experts of the model, F features, G groups that share a budget, R rows of counts, C counters,
I places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator.engine.policy import (
    ADMITTED,
    LAST_STEP,
    LAST_USE,
    LAYER,
    NUM_FEATURES,
    RANKS,
    SCORE,
    SECOND_SCORE,
    USES,
    USES_FULL,
    USES_RESIDENT,
    WEIGHT,
)
from moe_beyond.simulator.jit import compiled

# columns of the counts; every value is an integer
(
    ACCESSES,
    HITS,
    COMPULSORY,
    EVICTIONS,
    PREFETCHES,
    USEFUL,
    USELESS,
    DEMAND_BYTES,
    PREFETCH_BYTES,
    SKIPPED,
    SUBSTITUTED,
    LOW_LOADS,
) = range(12)
NUM_COUNTERS = 12
"""Every access is a hit, a miss, SKIPPED or SUBSTITUTED; LOW_LOADS are the misses loaded below full precision."""

ABSENT = -1
DEMANDED = -1
# stamps count half events: 2n while event n's prefetches are admitted, 2n + 1 while its own experts are
NEVER_PROTECTED = -1
NOBODY_IS_SPARED = 2**62


# rows of the table of experts
PLACE, PREFETCH_ROW, PROTECTED, BYTES, UNITS, GROUP, PRECISION = range(7)
"""PLACE: in its group's list of residents, or ABSENT. PREFETCH_ROW: row of counts of the prefetch that brought it and
that nothing has used yet, or DEMANDED. PROTECTED: it may not leave at stamps up to this one. BYTES, UNITS: what it
weighs, and what it takes of its budget. GROUP: whose budget that is. PRECISION: at which it is there, 0 the full one,
or ABSENT; kept by the loop with a clock only."""

# rows of the table of groups
COUNT, USED, BUDGET, ADMISSIONS, WASTED = range(5)
"""COUNT: residents. USED and BUDGET: in units. Of all groups together, in the first column: ADMISSIONS, and WASTED,
the prefetched experts that left unused."""

Features = npt.NDArray[np.float64]
"""[F, M], rows as in `policies.base`."""
Experts = npt.NDArray[np.int64]
Groups = npt.NDArray[np.int64]
Residents = npt.NDArray[np.int32]
"""[G, I], the experts of each group in no order."""
CountTable = npt.NDArray[np.int64]
"""[R, C]."""
At = tuple[int, int, int, int]
"""Where the replay stands: next access, step, last layer whose router has chosen in it, and the row of counts."""


@compiled()
def new_cache(
    layer_M: npt.NDArray[np.int64],
    bytes_M: npt.NDArray[np.int64],
    units_M: npt.NDArray[np.int64],
    group_M: npt.NDArray[np.int64],
    budget_G: npt.NDArray[np.int64],
    num_rows: int,
) -> tuple[Features, Experts, Groups, Residents, CountTable]:
    """The tables of an empty cache."""
    num_groups, num_experts = len(budget_G), len(group_M)
    features = np.zeros((NUM_FEATURES, num_experts))
    features[LAYER] = layer_M
    experts = np.zeros((7, num_experts), np.int64)
    experts[PROTECTED] = NEVER_PROTECTED
    experts[BYTES] = bytes_M
    experts[UNITS] = units_M
    experts[GROUP] = group_M
    groups = np.zeros((5, num_groups), np.int64)
    groups[BUDGET] = budget_G
    counts_RC = np.zeros((num_rows, NUM_COUNTERS), np.int64)
    forget(features, experts, groups)
    return features, experts, groups, np.zeros((num_groups, num_experts), np.int32), counts_RC


@compiled()
def set_scores(features: Features, scores: npt.NDArray[np.float32]) -> None:
    """Let ranks read a row of a policy's scores."""
    num_experts = features.shape[1]
    features[SCORE] = scores[:num_experts]
    if len(scores) > num_experts:
        features[SECOND_SCORE] = scores[num_experts:]


@compiled()
def forget(features: Features, experts: Experts, groups: Groups) -> None:
    """Empty the cache and its memory."""
    experts[PLACE] = ABSENT
    experts[PREFETCH_ROW] = DEMANDED
    experts[PRECISION] = ABSENT
    groups[COUNT] = 0
    groups[USED] = 0
    features[LAST_USE] = -1
    features[LAST_STEP] = -1
    features[USES] = 0
    features[WEIGHT : USES_FULL + 1] = 0


@compiled()
def count_useless(experts: Experts, counts_RC: CountTable) -> None:
    """Count the residents that were prefetched and that nothing has used."""
    for row in experts[PREFETCH_ROW]:
        if row != DEMANDED:
            counts_RC[row, USELESS] += 1


@compiled()
def admit(
    features: Features, experts: Experts, groups: Groups, residents: Residents, expert: int, prefetch_row: int
) -> None:
    """Take an expert in; `prefetch_row` is the row of counts of the prefetch that brings it, or DEMANDED."""
    group = experts[GROUP, expert]
    place = groups[COUNT, group]
    residents[group, place] = expert
    experts[PLACE, expert] = place
    experts[PREFETCH_ROW, expert] = prefetch_row
    groups[COUNT, group] = place + 1
    groups[USED, group] += experts[UNITS, expert]
    groups[ADMISSIONS, 0] += 1
    features[ADMITTED, expert] = groups[ADMISSIONS, 0]
    features[USES_RESIDENT, expert] = 0


@compiled()
def remove(
    features: Features,
    experts: Experts,
    groups: Groups,
    residents: Residents,
    counts_RC: CountTable,
    expert: int,
    row: int,
) -> None:
    """Let an expert go."""
    group, place = experts[GROUP, expert], experts[PLACE, expert]
    last = groups[COUNT, group] - 1
    moved = residents[group, last]
    residents[group, place] = moved
    features[RANKS, place] = features[RANKS, last]
    experts[PLACE, moved] = place
    experts[PLACE, expert] = ABSENT
    experts[PRECISION, expert] = ABSENT
    groups[COUNT, group] = last
    groups[USED, group] -= experts[UNITS, expert]
    counts_RC[row, EVICTIONS] += 1
    if experts[PREFETCH_ROW, expert] != DEMANDED:
        counts_RC[experts[PREFETCH_ROW, expert], USELESS] += 1
        experts[PREFETCH_ROW, expert] = DEMANDED
        groups[WASTED, 0] += 1


@compiled()
def make_room(
    rank: Any,
    features: Features,
    experts: Experts,
    groups: Groups,
    residents: Residents,
    counts_RC: CountTable,
    group: int,
    limit: int,
    stamp: int,
    at: At,
) -> None:
    """Let the lowest ranks leave until the group uses at most `limit`, or only protected ones are left."""
    if groups[USED, group] <= limit:
        return
    rank(features, residents[group, : groups[COUNT, group]], at[0], at[1], at[2])
    # ranks do not change while one leaves after another
    while groups[USED, group] > limit:
        leaves, lowest = -1, np.inf
        for place in range(groups[COUNT, group]):
            value = features[RANKS, place]
            if value <= lowest:
                expert = residents[group, place]
                if experts[PROTECTED, expert] < stamp and (
                    value < lowest or _goes_before(features, expert, residents[group, leaves])
                ):
                    leaves, lowest = place, value
        if leaves < 0:
            return
        remove(features, experts, groups, residents, counts_RC, residents[group, leaves], at[3])


@compiled()
def _goes_before(features: Features, expert: int, other: int) -> bool:
    """Between two of equal rank: the less recently used, and of two that nothing has used yet the lower id."""
    mine, theirs = features[LAST_USE, expert], features[LAST_USE, other]
    return bool(mine < theirs or (mine == theirs and expert < other))


@compiled()
def use(
    features: Features,
    experts: Experts,
    groups: Groups,
    residents: Residents,
    counts_RC: CountTable,
    expert: int,
    now: int,
    step: int,
    row: int,
) -> bool:
    """Count one access; admit the expert where it was missed. Returns whether it was."""
    missed = experts[PLACE, expert] == ABSENT
    counts_RC[row, ACCESSES] += 1
    if missed:
        counts_RC[row, DEMAND_BYTES] += experts[BYTES, expert]
        counts_RC[row, COMPULSORY] += features[USES, expert] == 0
        admit(features, experts, groups, residents, expert, DEMANDED)
    else:
        counts_RC[row, HITS] += 1
        if experts[PREFETCH_ROW, expert] != DEMANDED:
            counts_RC[experts[PREFETCH_ROW, expert], USEFUL] += 1
            experts[PREFETCH_ROW, expert] = DEMANDED
    features[LAST_USE, expert] = now
    features[LAST_STEP, expert] = step
    features[USES, expert] += 1
    features[USES_RESIDENT, expert] += 1
    return bool(missed)
