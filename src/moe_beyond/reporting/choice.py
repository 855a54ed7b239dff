"""Which policies a reader meets first, and the groups by which the others are found.

A page that draws thirty policies at once says nothing. Shown first are ours, the best of each kind, LRU and the bound;
everything else is a group away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from moe_beyond.reporting.headline import CacheRow, cache_rows, nearest_capacity
from moe_beyond.reporting.names import is_bound, is_learned, is_published, needs_another_router, ordered
from moe_beyond.reporting.tables import Tables

FEW = "few"
GROUPS = {
    FEW: "The best of each kind",
    "all": "All",
    "demand": "Load on demand",
    "prefetch": "Fetch ahead",
    "learned": "By our predictor",
    "published": "Published systems",
    "lossy": "Give up accuracy",
    "bound": "Bounds",
}
"""Groups of policies, with what a reader picks."""


def groups(row: CacheRow, lossy: set[str]) -> list[str]:
    """The groups that a policy belongs to, apart from the few and all."""
    if is_bound(row.policy):
        return ["bound"]
    found = ["lossy"] if row.policy in lossy else []
    found.append("prefetch" if row.prefetches else "demand")
    if is_learned(row.policy):
        found.append("learned")
    if is_published(row.policy):
        found.append("published")
    return found


def kind(row: CacheRow, lossy: set[str]) -> str:
    """What a policy does, in words for a table."""
    found = groups(row, lossy)
    if "bound" in found:
        return "bound"
    price = ", another router" if needs_another_router(row.policy) else ", lossy" if "lossy" in found else ""
    return ("fetches ahead" if "prefetch" in found else "on demand") + price


def standouts(rows: list[CacheRow], ours: str | None, lossy: set[str], fastest: Iterable[str] = ()) -> list[str]:
    """Names of the few policies to show first: ours first, bounds last, in the order of `rows` between.

    Args:
        rows: What each policy did at one capacity.
        ours: The policy of the trained predictor.
        lossy: Policies that give up accuracy.
        fastest: Policies that win in time somewhere.
    """
    honest = [row for row in rows if not is_bound(row.policy) and row.policy not in lossy]
    tests: tuple[Callable[[CacheRow], bool], ...] = (
        lambda row: is_learned(row.policy) and row.policy != ours,
        lambda row: not is_learned(row.policy) and row.prefetches > 0,
        lambda row: not is_learned(row.policy) and row.prefetches == 0,
        lambda row: is_published(row.policy),
    )
    chosen = {name for name in (ours, "lru", *fastest) if name is not None}
    for test in tests:
        chosen |= _best(row for row in honest if test(row))
    chosen |= _best(row for row in rows if row.policy in lossy)
    chosen |= _best(row for row in rows if is_bound(row.policy))
    return [name for name in ordered([row.policy for row in rows]) if name in chosen]


def headline_standouts(tables: Tables, split: str, fraction: float) -> list[str]:
    """The few for the charts of a split: chosen at the headline capacity, the fastest on each device among them."""
    capacity = nearest_capacity(tables["replay"].rows, split, fraction)
    rows = cache_rows(tables, split, capacity)
    return standouts(rows, tables.learned_policy, tables.lossy, fastest(tables, split, capacity).values())


def fastest(tables: Tables, split: str, capacity: int) -> Mapping[str, str]:
    """By device, the fastest policy at that capacity that can be built and does all that the router wants."""
    if tables.times is None:
        return {}
    found: dict[str, tuple[float, str]] = {}
    for row in tables.times.iter_rows(named=True):
        name = row["policy"]
        if row["split"] != split or row["capacity_experts"] != capacity or not tables.can_win(name):
            continue
        found[row["device"]] = min(found.get(row["device"], (float("inf"), "")), (row["ms_per_token"], name))
    return {device: name for device, (_, name) in found.items()}


def _best(rows: Iterable[CacheRow]) -> set[str]:
    best = max(rows, key=lambda row: (row.hit_rate, row.policy), default=None)
    return set() if best is None else {best.policy}
