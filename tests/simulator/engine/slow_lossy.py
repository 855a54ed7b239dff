"""A slow, obvious cache for policies that do without: precisions, skipping, stand-ins."""

from collections import Counter

from tests.simulator.strategies import members

SKIPS, STANDS_IN, LOADS = "skip", "stand in", "at most"


def replay(events, decide, units, capacity):
    """LRU over events whose misses are decided one by one on what is resident when the event starts.

    Args:
        events: What is wanted, with shares.
        decide: From an expert, its share, and the precision of each resident: (SKIPS, 0), (STANDS_IN, expert), or
            (LOADS, precision), the expert at that precision or a better one. Of decoded tokens; all else is loaded.
        units: What an expert takes, by precision.
        capacity: Units of the whole cache.

    Returns:
        Counts and the sums of lost weight, by their names in the product.
    """
    counts, access = Counter(), 0
    resident, last = {}, {}  # precisions, and accesses
    for event, experts in enumerate(members(events)):
        shares = events.shares_A[access : access + len(experts)].tolist()
        before = dict(resident)
        if events.is_decode_S[events.step_N[event]]:
            decisions = [decide(expert, share, before) for expert, share in zip(experts, shares, strict=True)]
        else:
            decisions = [(LOADS, 0)] * len(experts)
        busy = {expert for expert, (what, _) in zip(experts, decisions, strict=True) if what == LOADS}
        for expert, share, (what, detail) in zip(experts, shares, decisions, strict=True):
            used = expert
            if what == LOADS:
                if resident.get(expert, detail + 1) <= detail:
                    counts["hits"] += 1
                else:
                    counts.update(misses=1, low_precision_loads=detail > 0)
                    resident[expert] = detail
                counts["weight_low_precision"] += share * (resident[expert] > 0)
            elif what == STANDS_IN and detail in before and detail not in busy:
                counts.update(substituted=1, weight_substituted=share)
                used = detail
                busy.add(detail)
            else:
                counts.update(skipped=1, weight_skipped=share)
                used = None
            last[used] = access
            access += 1
        for spared in (busy, set()):
            while sum(units[precision] for precision in resident.values()) > capacity and set(resident) - spared:
                del resident[min(set(resident) - spared, key=last.get)]
    return counts
