# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""What happens with each expert that a router chose, compiled: used, loaded, replaced, or skipped.

Shape suffixes as in `stepper`; I members of an event.
"""

from __future__ import annotations

from moe_beyond.simulator.engine import cache
from moe_beyond.simulator.engine.policy import (
    FULL,
    LAST_STEP,
    LAST_USE,
    SKIP,
    USES,
    USES_FULL,
    USES_RESIDENT,
    WEIGHT_SUM,
)
from moe_beyond.simulator.jit import DEMAND, F32, F64, I32, I64, compiled

# the outcome of an access; from MISSED on it waited for a load of its own
HIT, PREFETCHED, LATE, WAS_SKIPPED, WAS_SUBSTITUTED, MISSED, MISSED_LOW = range(7)
"""PREFETCHED: the first use of a prefetched expert that was there in time. LATE: of one that was waited for.
WAS_SKIPPED, WAS_SUBSTITUTED: no expert or another resident one computed. MISSED_LOW: loaded below full precision."""

# columns of the router weight lost
LOST_SKIPPED, LOST_SUBSTITUTED, LOST_PRECISION = range(3)
NUM_LOSSES = 3


@compiled(DEMAND, borrows=True)
def full_precision(
    features_FM: F64, precision_M: I64, members_I: I32, shares_I: F32, step: int, layer: int, actions_I: I64
) -> None:
    """The demand of a lossless policy: every expert at full precision."""
    actions_I[:] = FULL


@compiled(borrows=True)
def resolve(experts: I64, members_I: I32, actions_I: I64, busy_M: I64, event: int, num_precisions: int) -> None:
    """Correct what a demand function has written: no replacement that is absent or in use, no unknown precision."""
    for place, expert in enumerate(members_I):
        if actions_I[place] <= FULL:
            actions_I[place] = max(actions_I[place], FULL - num_precisions + 1)
            busy_M[expert] = event
    for place in range(len(members_I)):
        other = actions_I[place]
        if other >= 0:
            if experts[cache.PRECISION, other] == cache.ABSENT or busy_M[other] == event:
                actions_I[place] = SKIP
            else:
                busy_M[other] = event


@compiled(borrows=True)
def use_as_decided(
    features: F64,
    experts: I64,
    groups: I64,
    residents: I32,
    counts_RC: I64,
    weight_lost_RW: F64,
    bytes_VM: I64,
    units_VM: I64,
    share: float,
    weighs: bool,
    action: int,
    expert: int,
    now: int,
    step: int,
    row: int,
    stamp: int,
) -> tuple[int, int, int]:
    """Count one access and do what the policy decided; the expert that computes is protected until `stamp`.

    Features of weights are kept where it `weighs`: its `share` of the event's router weight is known.

    Returns:
        Its outcome, the expert that computes, and at which precision; -1 and -1 where none does.
    """
    counts_RC[row, cache.ACCESSES] += 1
    if action == SKIP:
        counts_RC[row, cache.SKIPPED] += 1
        weight_lost_RW[row, LOST_SKIPPED] += share
        return WAS_SKIPPED, -1, -1
    outcome, worst = HIT, 0
    if action >= 0:
        counts_RC[row, cache.SUBSTITUTED] += 1
        weight_lost_RW[row, LOST_SUBSTITUTED] += share
        expert, outcome = action, WAS_SUBSTITUTED
    else:
        worst = FULL - action
        if experts[cache.PLACE, expert] == cache.ABSENT or experts[cache.PRECISION, expert] > worst:
            counts_RC[row, cache.COMPULSORY] += features[USES, expert] == 0
            _load(features, experts, groups, residents, counts_RC, bytes_VM, units_VM, worst, expert, row)
            outcome = MISSED if worst == 0 else MISSED_LOW
        else:
            counts_RC[row, cache.HITS] += 1
    if experts[cache.PREFETCH_ROW, expert] != cache.DEMANDED:
        counts_RC[experts[cache.PREFETCH_ROW, expert], cache.USEFUL] += 1
        experts[cache.PREFETCH_ROW, expert] = cache.DEMANDED
        outcome = PREFETCHED if outcome == HIT else outcome
    precision = experts[cache.PRECISION, expert]
    if precision > 0 and outcome != WAS_SUBSTITUTED:
        weight_lost_RW[row, LOST_PRECISION] += share
    features[LAST_USE, expert] = now
    features[LAST_STEP, expert] = step
    features[USES, expert] += 1
    features[USES_RESIDENT, expert] += 1
    if weighs:
        features[WEIGHT_SUM, expert] += share
        features[USES_FULL, expert] += precision == 0
    experts[cache.PROTECTED, expert] = max(experts[cache.PROTECTED, expert], stamp)
    return outcome, expert, precision


@compiled(borrows=True)
def _load(
    features: F64,
    experts: I64,
    groups: I64,
    residents: I32,
    counts_RC: I64,
    bytes_VM: I64,
    units_VM: I64,
    precision: int,
    expert: int,
    row: int,
) -> None:
    """Load an expert at a precision, or a better copy of a resident one in its place."""
    counts_RC[row, cache.DEMAND_BYTES] += bytes_VM[precision, expert]
    counts_RC[row, cache.LOW_LOADS] += precision > 0
    before = experts[cache.UNITS, expert]
    experts[cache.BYTES, expert], experts[cache.UNITS, expert] = (
        bytes_VM[precision, expert],
        units_VM[precision, expert],
    )
    if experts[cache.PLACE, expert] == cache.ABSENT:
        cache.admit(features, experts, groups, residents, expert, cache.DEMANDED)
    else:
        groups[cache.USED, experts[cache.GROUP, expert]] += experts[cache.UNITS, expert] - before
    experts[cache.PRECISION, expert] = precision
