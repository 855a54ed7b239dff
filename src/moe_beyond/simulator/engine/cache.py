# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""Residency, compiled: what is in the cache, what is admitted and evicted, and what is counted of it.

A cache is five tables. They are passed one by one: a tuple of them would cost more than the work, because compiled code
counts the references to each array that it takes out of a tuple. They are the features of experts [F, M] (rows as in
`policy`), the tables of experts [7, M] and of groups [5, G], the residents of each group in no order [G, I], and the
counts [R, C].

Shape suffixes: M experts of the model, F features, G groups that share a budget, R rows of counts, C counters,
I places, T tokens, L MoE layers, E experts in a layer, H layers ahead.
"""

from __future__ import annotations

from typing import Any

import numpy as np

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
    WEIGHT_SUM,
)
from moe_beyond.simulator.jit import F32, F64, I32, I64, compiled

# columns of the counts; every value is an integer
ACCESSES, HITS, COMPULSORY, EVICTIONS, PREFETCHES, USEFUL, USELESS = range(7)
DEMAND_BYTES, PREFETCH_BYTES, SKIPPED, SUBSTITUTED, LOW_LOADS = range(7, 12)
NUM_COUNTERS = 12
"""Every access is a hit, a miss, SKIPPED or SUBSTITUTED; LOW_LOADS are the misses loaded below full precision."""

ABSENT = -1
DEMANDED = -1
# stamps count half events: 2n while event n's prefetches are admitted, 2n + 1 while its own experts are
NEVER_PROTECTED = -1
NONE_PROTECTED = 2**62


# rows of the table of experts
PLACE, PREFETCH_ROW, PROTECTED, BYTES, UNITS, GROUP, PRECISION = range(7)
"""PLACE: in its group's list of residents, or ABSENT. PREFETCH_ROW: row of counts of the prefetch that loaded it and
that nothing has used yet, or DEMANDED. PROTECTED: it may not be evicted at stamps up to this one. BYTES, UNITS: its
size, and what it takes of its budget. GROUP: the group whose budget that is. PRECISION: at which it is resident, 0 the
full one, or ABSENT; kept by the loop with a clock only."""

# rows of the table of groups
COUNT, USED, BUDGET, ADMISSIONS, WASTED = range(5)
"""COUNT: residents. USED and BUDGET: in units. Of all groups together, in the first column: ADMISSIONS, and WASTED,
the prefetched experts that were evicted unused."""

At = tuple[int, int, int, int]
"""Where the replay stands: next access, step, last layer whose router has chosen in it, and the row of counts."""


@compiled()
def new_cache(
    layer_M: I64, bytes_M: I64, units_M: I64, group_M: I64, budget_G: I64, num_rows: int
) -> tuple[F64, I64, I64, I32, I64]:
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
def set_scores(features: F64, scores: F32) -> None:
    """Make a row of a policy's scores readable for ranks."""
    num_experts = features.shape[1]
    features[SCORE] = scores[:num_experts]
    if len(scores) > num_experts:
        features[SECOND_SCORE] = scores[num_experts:]


@compiled()
def set_scores_ahead(features: F64, ahead_HTLE: F32, row: int, layer: int) -> None:
    """A router has chosen in a layer: of the next H layers' experts a predictor says more now.

    `row` is the token's in `ahead_HTLE`, whose first entry is of the next layer.
    """
    num_layers, num_experts = ahead_HTLE.shape[2:]
    for ahead in range(min(len(ahead_HTLE), num_layers - 1 - layer)):
        other = layer + 1 + ahead
        features[SCORE, other * num_experts : (other + 1) * num_experts] = ahead_HTLE[ahead, row, other]


@compiled(borrows=True)
def forget(features: F64, experts: I64, groups: I64) -> None:
    """Empty the cache and the history of its experts."""
    experts[PLACE] = ABSENT
    experts[PREFETCH_ROW] = DEMANDED
    experts[PRECISION] = ABSENT
    groups[COUNT] = 0
    groups[USED] = 0
    features[LAST_USE] = -1
    features[LAST_STEP] = -1
    features[USES] = 0
    features[WEIGHT_SUM : USES_FULL + 1] = 0


@compiled(borrows=True)
def count_useless(experts: I64, counts_RC: I64) -> None:
    """Count the residents that were prefetched and not used."""
    for row in experts[PREFETCH_ROW]:
        if row != DEMANDED:
            counts_RC[row, USELESS] += 1


@compiled(borrows=True)
def admit(features: F64, experts: I64, groups: I64, residents: I32, expert: int, prefetch_row: int) -> None:
    """Admit an expert; `prefetch_row` is the row of counts of the prefetch that loads it, or DEMANDED."""
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


@compiled(borrows=True)
def remove(
    features: F64,
    experts: I64,
    groups: I64,
    residents: I32,
    counts_RC: I64,
    expert: int,
    row: int,
) -> None:
    """Evict an expert."""
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


@compiled(borrows=True)
def make_space(
    rank: Any,
    features: F64,
    experts: I64,
    groups: I64,
    residents: I32,
    counts_RC: I64,
    group: int,
    limit: int,
    stamp: int,
    at: At,
) -> None:
    """Evict the lowest ranks until the group uses at most `limit`, or only protected experts remain."""
    if groups[USED, group] <= limit:
        return
    rank(features, residents[group, : groups[COUNT, group]], at[0], at[1], at[2])
    # ranks do not change between evictions
    while groups[USED, group] > limit:
        victim, lowest = -1, np.inf
        for place in range(groups[COUNT, group]):
            value = features[RANKS, place]
            if value <= lowest:
                expert = residents[group, place]
                if experts[PROTECTED, expert] < stamp and (
                    value < lowest or _goes_before(features, expert, residents[group, victim])
                ):
                    victim, lowest = place, value
        if victim < 0:
            return
        remove(features, experts, groups, residents, counts_RC, residents[group, victim], at[3])


@compiled(borrows=True)
def discount_unkept(features: F64, experts: I64, counts_RC: I64, members: I32, admissions: int, row: int) -> None:
    """Take back evictions of what an event loaded and did not keep: no resident was evicted.

    Args:
        features: As everywhere here.
        experts: As everywhere here.
        counts_RC: As everywhere here.
        members: The event's experts.
        admissions: Admissions before the event's first access.
        row: Row of counts in which the evictions were counted.
    """
    for expert in members:
        if experts[PLACE, expert] == ABSENT and features[ADMITTED, expert] > admissions:
            counts_RC[row, EVICTIONS] -= 1


@compiled(borrows=True)
def _goes_before(features: F64, expert: int, other: int) -> bool:
    """Of two experts of equal rank: the less recently used, and of two that have not been used yet the lower id."""
    mine, theirs = features[LAST_USE, expert], features[LAST_USE, other]
    return bool(mine < theirs or (mine == theirs and expert < other))


@compiled(borrows=True)
def use(
    features: F64,
    experts: I64,
    groups: I64,
    residents: I32,
    counts_RC: I64,
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
