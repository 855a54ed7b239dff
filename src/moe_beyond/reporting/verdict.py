"""The first sentence of the page, and the paragraph that carries it. Both are computed, whichever way they turn out."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from moe_beyond.reporting.headline import Contest, contest, hardest_split, split_label
from moe_beyond.reporting.names import is_learned, label
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import interval, listed, number, percent

_SAID = {
    "go": "Worth offloading",
    "go with a bigger cache": "Worth offloading with a bigger cache",
    "do not": "Not worth offloading",
}


@dataclass(frozen=True)
class Race:
    """Milliseconds per token on one device at the headline capacity.

    Attributes:
        device: Where.
        ours: The fastest policy that the predictor drives.
        ours_ms: Its milliseconds.
        rival: The fastest of the others that can be built and give up nothing.
        rival_ms: Its milliseconds.
    """

    device: str
    ours: str
    ours_ms: float
    rival: str
    rival_ms: float

    @property
    def gain(self) -> float:
        """By what share ours gives more tokens per second; negative where it gives fewer."""
        return self.rival_ms / self.ours_ms - 1


@dataclass(frozen=True)
class Verdict:
    """What to take home, and why."""

    sentence: str
    because: str


def verdict(tables: Tables, fraction: float) -> Verdict:
    """The card's verdict with the race in time, or with the hit rates where no times were modelled."""
    said = str(tables.card.get("verdict", "")).strip().rstrip(".")
    opening = _SAID.get(said.lower().replace("_", " "), said)
    split = hardest_split(tables)
    result = contest(tables, split, fraction) if split else None
    if result is None:
        rest = "No replay of a trained predictor stands beside it yet."
        sentence = f"{_capital(opening)}. {rest}" if opening else f"No verdict yet: {tables['replay'].absent or rest}"
        return Verdict(sentence, "")
    found = races(tables, result)
    main = _raced(found) if found else _hit(result)
    sentence = f"{_capital(opening)}: {main}." if opening else f"{_capital(main)}."
    return Verdict(sentence, _because(result))


def races(tables: Tables, result: Contest) -> list[Race]:
    """Ours against the rest on every device, at the contest's split and capacity; none where no times were modelled."""
    if tables.times is None:
        return []
    rows = tables.times.filter(
        (pl.col("split") == result.split) & (pl.col("capacity_experts") == result.ours.capacity_experts)
    )
    found = []
    for (device,), part in rows.sort("ms_per_token", "policy").group_by("device", maintain_order=True):
        honest = [row for row in part.iter_rows(named=True) if tables.can_win(row["policy"])]
        ours = next((row for row in honest if is_learned(row["policy"])), None)
        rival = next((row for row in honest if not is_learned(row["policy"])), None)
        if ours is not None and rival is not None:
            times = (ours["policy"], ours["ms_per_token"], rival["policy"], rival["ms_per_token"])
            found.append(Race(str(device), *times))
    return sorted(found, key=lambda race: tables.devices.index(race.device))


def _raced(found: list[Race]) -> str:
    won = [race for race in found if race.gain > 0]
    if not won:
        rivals = listed(list(dict.fromkeys(label(race.rival) for race in found)))
        return f"the predictor makes tokens no faster on any of {len(found)} devices; {rivals} is at least as fast"
    gains = [percent(gain, 0 if gain >= 0.1 else 1) for gain in sorted(race.gain for race in won)]
    spread = gains[0] if gains[0] == gains[-1] else f"{gains[0]} to {gains[-1]}"
    return (
        f"the predictor makes tokens {spread} faster than the best policy without it, on {len(won)} of {len(found)} "
        "devices"
    )


def _hit(result: Contest) -> str:
    ours, rival = result.ours, result.rival
    return (
        f"prefetching by the predictor hits {percent(ours.hit_rate)} on {split_label(result.split)}; the best other "
        f"policy, {label(rival.policy)}, hits {percent(rival.hit_rate)}"
    )


def _because(result: Contest) -> str:
    ours, rival = result.ours, result.rival
    spread = interval(ours.low, ours.high)
    text = (
        f"With {percent(ours.capacity_fraction, 0)} of the experts in fast memory, on {split_label(result.split)}, "
        f"{label(ours.policy)} hits {percent(ours.hit_rate)}{f' {spread}' if spread else ''}; the best policy without "
        f"the predictor, {label(rival.policy)}, hits {percent(rival.hit_rate)}."
    )
    if result.demand is not None and result.demand.mib_per_token > 0:
        ratio = ours.mib_per_token / result.demand.mib_per_token
        text += (
            f" It moves {number(ratio)} times the bytes of {label(result.demand.policy)}, the best without prefetch."
        )
    return f"{text} Times are modelled, hit rates are replayed."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
