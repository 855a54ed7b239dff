"""What differs between states of the pipeline: parameters, and the numbers that decide with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from moe_beyond.registry.states import State
from moe_beyond.tracking.run_record import CHOSEN

_MISSING = "\u2013"

Number = dict[str, float]
"""`value` and, where it has an interval, `low` and `high`."""


def differing_params(states: Sequence[State]) -> list[tuple[str, tuple[str | None, ...]]]:
    """Parameters that are not the same in all states, with each state's value; None where it has none.

    What the search chose is compared where all states have it.
    """
    keys = sorted(set().union(*(state.params for state in states)))
    rows = [(key, tuple(state.params.get(key) for state in states)) for key in keys]
    return [
        (key, found) for key, found in rows if len(set(found)) > 1 and not (key.startswith(CHOSEN) and None in found)
    ]


def numbers(states: Sequence[State]) -> list[tuple[str, tuple[Number | None, ...]]]:
    """The numbers that decide, in the order of their first appearance, with each state's; None where it has none."""
    names = dict.fromkeys(name for state in states for name in state.numbers)
    return [(name, tuple(state.numbers.get(name) for state in states)) for name in names]


def text(number: Number | None) -> str:
    """`0.805 [0.802, 0.807]`."""
    if number is None:
        return _MISSING
    shown = f"{number['value']:.4g}"
    return f"{shown} [{number['low']:.4g}, {number['high']:.4g}]" if "low" in number else shown


def print_tables(states: Sequence[State]) -> None:
    """Print what differs, and the numbers."""
    console, names = Console(), [Column(state.name, overflow="fold") for state in states]
    for state in states:
        console.print(f"{state.name}: {state.about}")
    differing = Table(
        Column("parameter", overflow="fold"), *names, title="Parameters that differ", title_justify="left"
    )
    for key, values in differing_params(states):
        differing.add_row(key, *(_MISSING if value is None else value for value in values))
    # what a row is of must be readable in a narrow terminal too
    heading = Column("number", overflow="fold", min_width=24)
    table = Table(heading, *names, title="Numbers with 95 % intervals by prompt", title_justify="left")
    for name, found in numbers(states):
        table.add_row(name, *map(text, found))
    console.print(differing if differing.row_count else "No parameter differs.")
    console.print(table)


def document(states: Sequence[State]) -> dict[str, Any]:
    """All of it for `--json`."""
    names = [state.name for state in states]
    return {
        "states": {state.name: state.about for state in states},
        "params": {key: dict(zip(names, found, strict=True)) for key, found in differing_params(states)},
        "numbers": {name: dict(zip(names, found, strict=True)) for name, found in numbers(states)},
    }
