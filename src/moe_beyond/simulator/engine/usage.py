# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""What becomes of each expert that a router wants, compiled: used, loaded, or done without.

Shape suffixes as in `timed_kernel`; I members of an event.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator.engine.cache import (
    ABSENT,
    ACCESSES,
    BYTES,
    COMPULSORY,
    DEMAND_BYTES,
    DEMANDED,
    GROUP,
    HITS,
    LOW_LOADS,
    PLACE,
    PRECISION,
    PREFETCH_ROW,
    PROTECTED,
    SKIPPED,
    SUBSTITUTED,
    UNITS,
    USED,
    USEFUL,
    CountTable,
    Experts,
    Features,
    Groups,
    Residents,
    admit,
)
from moe_beyond.simulator.engine.policy import (
    FULL,
    LAST_STEP,
    LAST_USE,
    SKIP,
    USES,
    USES_FULL,
    USES_RESIDENT,
    WEIGHT,
    WEIGHT_SUM,
)
from moe_beyond.simulator.jit import DEMAND, compiled

# what became of an access; from MISSED on it waited for a load of its own
HIT, PREFETCHED, LATE, LEFT_OUT, STOOD_IN, MISSED, MISSED_LOW = range(7)
"""PREFETCHED: the first use of a prefetched expert that was there in time. LATE: of one that was waited for. LEFT_OUT,
STOOD_IN: nobody or another resident expert did its work. MISSED_LOW: loaded below full precision."""

# columns of the weight given up
GAVE_UP_SKIPPED, GAVE_UP_SUBSTITUTED, GAVE_UP_PRECISION = range(3)
NUM_GIVEN_UP = 3


@compiled(DEMAND)
def as_wanted(
    features_FM: npt.NDArray[np.float64],
    precision_M: npt.NDArray[np.int64],
    members_I: npt.NDArray[np.int32],
    shares_I: npt.NDArray[np.float32],
    step: int,
    layer: int,
    actions_I: npt.NDArray[np.int64],
) -> None:
    """The demand of a lossless policy: every expert at full precision."""
    actions_I[:] = FULL


@compiled()
def resolve(
    experts: Experts,
    members_I: npt.NDArray[np.int32],
    actions_I: npt.NDArray[np.int64],
    busy_M: npt.NDArray[np.int64],
    event: int,
    num_precisions: int,
) -> None:
    """Make what a demand function has written legal: no stand-in that is absent or busy, no precision there is not."""
    for place, expert in enumerate(members_I):
        if actions_I[place] <= FULL:
            actions_I[place] = max(actions_I[place], FULL - num_precisions + 1)
            busy_M[expert] = event
    for place in range(len(members_I)):
        other = actions_I[place]
        if other >= 0:
            if experts[PRECISION, other] == ABSENT or busy_M[other] == event:
                actions_I[place] = SKIP
            else:
                busy_M[other] = event


@compiled()
def use_as_told(
    features: Features,
    experts: Experts,
    groups: Groups,
    residents: Residents,
    counts_RC: CountTable,
    given_up_RW: npt.NDArray[np.float64],
    weight_VM: npt.NDArray[np.int64],
    units_VM: npt.NDArray[np.int64],
    shares_A: npt.NDArray[np.float32],
    action: int,
    expert: int,
    now: int,
    step: int,
    row: int,
    stamp: int,
) -> tuple[int, int, int]:
    """Count one access and do what the policy says of it; whoever computes is protected until `stamp`.

    Returns:
        What became of it, the expert that computes, and at which precision; -1 and -1 where none does.
    """
    share = shares_A[now] if len(shares_A) else np.float32(0)
    counts_RC[row, ACCESSES] += 1
    if action == SKIP:
        counts_RC[row, SKIPPED] += 1
        given_up_RW[row, GAVE_UP_SKIPPED] += share
        return LEFT_OUT, -1, -1
    outcome, worst = HIT, 0
    if action >= 0:
        counts_RC[row, SUBSTITUTED] += 1
        given_up_RW[row, GAVE_UP_SUBSTITUTED] += share
        expert, outcome = action, STOOD_IN
    else:
        worst = FULL - action
        if experts[PLACE, expert] == ABSENT or experts[PRECISION, expert] > worst:
            counts_RC[row, COMPULSORY] += features[USES, expert] == 0
            _load(features, experts, groups, residents, counts_RC, weight_VM, units_VM, worst, expert, row)
            outcome = MISSED if worst == 0 else MISSED_LOW
        else:
            counts_RC[row, HITS] += 1
    if experts[PREFETCH_ROW, expert] != DEMANDED:
        counts_RC[experts[PREFETCH_ROW, expert], USEFUL] += 1
        experts[PREFETCH_ROW, expert] = DEMANDED
        outcome = PREFETCHED if outcome == HIT else outcome
    precision = experts[PRECISION, expert]
    if precision > 0 and outcome != STOOD_IN:
        given_up_RW[row, GAVE_UP_PRECISION] += share
    features[LAST_USE, expert] = now
    features[LAST_STEP, expert] = step
    features[USES, expert] += 1
    features[USES_RESIDENT, expert] += 1
    if len(shares_A):
        features[WEIGHT, expert] = share
        features[WEIGHT_SUM, expert] += share
        features[USES_FULL, expert] += precision == 0
    experts[PROTECTED, expert] = max(experts[PROTECTED, expert], stamp)
    return outcome, expert, precision


@compiled()
def _load(
    features: Features,
    experts: Experts,
    groups: Groups,
    residents: Residents,
    counts_RC: CountTable,
    weight_VM: npt.NDArray[np.int64],
    units_VM: npt.NDArray[np.int64],
    precision: int,
    expert: int,
    row: int,
) -> None:
    """Bring an expert in at a precision, or a better copy of a resident one in its place."""
    counts_RC[row, DEMAND_BYTES] += weight_VM[precision, expert]
    counts_RC[row, LOW_LOADS] += precision > 0
    before = experts[UNITS, expert]
    experts[BYTES, expert], experts[UNITS, expert] = weight_VM[precision, expert], units_VM[precision, expert]
    if experts[PLACE, expert] == ABSENT:
        admit(features, experts, groups, residents, expert, DEMANDED)
    else:
        groups[USED, experts[GROUP, expert]] += experts[UNITS, expert] - before
    experts[PRECISION, expert] = precision
