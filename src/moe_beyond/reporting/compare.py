"""What differs between states, and their headline numbers with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Column, Table

from moe_beyond.registry.revisions import State
from moe_beyond.reporting.names import label
from moe_beyond.reporting.text import MISSING

BOUND, LRU = "belady", "lru"
_GATE = "gate"


@dataclass(frozen=True)
class Cell:
    """A number, with its 95 % interval where the table that it comes from has one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def text(self) -> str:
        """`0.805 [0.802, 0.807]`."""
        shown = f"{int(self.value):,}" if self.value > 1 and float(self.value).is_integer() else f"{self.value:.4g}"
        return shown if self.low is None or self.high is None else f"{shown} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Row:
    """A number of every state.

    Attributes:
        parts: What it is, then of which split and policy, by their identifiers.
        cells: Each state's; None where it does not have it.
    """

    parts: tuple[str, ...]
    cells: tuple[Cell | None, ...]

    @property
    def metric(self) -> str:
        """Its identifier."""
        return ", ".join(self.parts)

    @property
    def title(self) -> str:
        """For people."""
        what, *of = self.parts
        return self.metric if what == _GATE else ", ".join([what, *map(label, of)])


def differing_params(states: Sequence[State]) -> list[tuple[str, tuple[str | None, ...]]]:
    """Parameters that are not the same in all states, with each state's value; None where it has none."""
    keys = sorted(set().union(*(state.params for state in states)))
    rows = [(key, tuple(state.params.get(key) for state in states)) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def headline(states: Sequence[State]) -> list[Row]:
    """Recall and hit rates on each test split at the gate's capacity or the headline's, the gate's time, the sizes.

    Rows come in the order of their first appearance over the states.
    """
    found = [_headline(state) for state in states]
    names = dict.fromkeys(parts for cells in found for parts in cells)
    return [Row(parts, tuple(cells.get(parts) for cells in found)) for parts in names]


def print_tables(states: Sequence[State]) -> None:
    """Print what differs and the headline numbers."""
    console = Console()
    names = _names(states)
    for state in states:
        console.print(f"{state.name}: {state.about}")
        for reason in state.missing.values():
            console.print(f"  not there: {reason}")
    differing = Table(
        Column("parameter", overflow="fold"), *names, title="Parameters that differ", title_justify="left"
    )
    for key, values in differing_params(states):
        differing.add_row(key, *(MISSING if value is None else value for value in values))
    # what a row is of must be readable in a narrow terminal too
    numbers = Table(
        Column("number", overflow="fold", min_width=24),
        *names,
        title="Headline, with 95 % intervals by prompt",
        title_justify="left",
    )
    for row in headline(states):
        numbers.add_row(row.title, *(MISSING if cell is None else cell.text for cell in row.cells))
    console.print(differing if differing.row_count else "No parameter differs.")
    console.print(numbers)


def document(states: Sequence[State]) -> dict[str, Any]:
    """All of it for `--json`."""
    return {
        "states": [{"name": s.name, "about": s.about, "missing": s.missing} for s in states],
        "params": {key: dict(zip(_names(states), values, strict=True)) for key, values in differing_params(states)},
        "headline": {
            row.metric: {
                name: None if cell is None else {"value": cell.value, "low": cell.low, "high": cell.high}
                for name, cell in zip(_names(states), row.cells, strict=True)
            }
            for row in headline(states)
        },
    }


def _names(states: Sequence[State]) -> list[str]:
    return [state.name for state in states]


def _headline(state: State) -> dict[tuple[str, ...], Cell]:
    cells: dict[tuple[str, ...], Cell] = {}
    quality, replay, gate = (state.tables.get(name) for name in ("quality", "replay", "gate"))
    if quality is not None:
        whole = quality.filter(
            (pl.col("phase") == "all") & (pl.col("layer") == "all") & pl.col("split").str.starts_with("test")
        )
        for row in whole.filter(pl.col("predictor") == "predictor").iter_rows(named=True):
            cells["recall@k", row["split"]] = Cell(row["recall_at_k"], row["recall_low"], row["recall_high"])
    if replay is not None:
        share = float(state.params.get("simulate.headline_capacity", "nan"))
        # a share becomes a whole number of experts: the replayed capacity nearest to it is the one that was meant
        nearest = min(replay["capacity_fraction"].unique().to_list(), key=lambda value: abs(value - share))
        for row in replay.filter(pl.col("capacity_fraction") == nearest).iter_rows(named=True):
            if row["policy"] in (LRU, BOUND) or row["policy"].startswith("predictor"):
                rate = Cell(row["hit_rate"], row["hit_rate_low"], row["hit_rate_high"])
                cells["hit rate", row["split"], row["policy"]] = rate
    if gate is not None:
        for row in gate.filter((pl.col("contestant") == "challenger") & (pl.col("split") == "all")).iter_rows(
            named=True
        ):
            cells[_GATE, row["metric"]] = Cell(row["value"], row["low"], row["high"])
    for key in ("train/parameters", "export/latency_ms", "export/size_bytes"):
        if key in state.metrics:
            cells[key,] = Cell(state.metrics[key])
    return cells
