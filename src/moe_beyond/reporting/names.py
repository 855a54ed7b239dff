"""Titles of devices and splits, and looks of lines, chosen from the facts in a policy's row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from moe_beyond.reporting.text import Row, texts

LRU, PAPER_LRU = "lru", "paper_lru"
BOUND = "Clairvoyant bound"
LEAKY = "published network, leaky"
"""It sees later tokens of the prompt, so it can run on no device and is no rival."""

_COLOURS = ("@blue", "@orange", "@vermilion", "@green", "@purple", "@sky", "@wine", "@teal", "@grey")
DASHES = ((1, 0), (7, 4), (2, 4), (10, 4, 2, 4), (14, 5))


def label(name: str) -> str:
    """What a person reads for the identifier of a device, a split or a cache."""
    words = name.replace("_", " ")
    return str(texts()["titles"].get(name, words[:1].upper() + words[1:]))


@dataclass(frozen=True)
class Look:
    """Colour token and dash of a line."""

    colour: str
    dash: tuple[int, ...] = (1, 0)


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A colour each; past the palette, another dash."""
    count = len(_COLOURS)
    return {name: Look(_COLOURS[i % count], DASHES[i // count % len(DASHES)]) for i, name in enumerate(names)}


def policy_looks(rows: Iterable[Row], ours: str | None) -> Mapping[str, Look]:
    """By title: the colour stands for the kind of policy, the dash differs between policies of a kind.

    Args:
        rows: Policies with their facts, each once.
        ours: Name of our predictor.
    """
    found: dict[str, Look] = {}
    for row in rows:
        colour = _colour(row, ours)
        alike = sum(look.colour == colour for look in found.values())
        found[row["title"]] = Look(colour, DASHES[alike % len(DASHES)])
    return found


def _colour(row: Row, ours: str | None) -> str:
    if row["bound"]:
        return "@ink"
    if row["predictor"] is not None:
        return "@blue" if row["predictor"] == ours else "@orange"
    if row["lossy"]:
        return "@purple"
    return "@green" if row["prefetches"] else "@vermilion"


def kind(row: Row) -> str:
    """What a policy does, for a table."""
    if row["bound"]:
        return "bound"
    return ("prefetches" if row["prefetches"] else "on demand") + (", lossy" if row["lossy"] else "")
