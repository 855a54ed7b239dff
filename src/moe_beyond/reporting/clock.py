"""Times per token by split, policy, capacity, device and predictor latency, looked up rather than filtered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import polars as pl

from moe_beyond.reporting.names import label
from moe_beyond.reporting.text import MISSING, number, percent

_COLUMNS = {
    "ms_per_token": "ms per token",
    "tokens_per_second": "Tokens per second",
    "stall_ms_per_token": "Stall, ms per token",
    "prefetches_late": "Prefetches late",
    "fraction_of_bound": "Of the bound, with prefill",
}

Key = tuple[str, str, int, str, float | None]


@dataclass(frozen=True)
class Clock:
    """The rows of timing.csv.

    Attributes:
        devices: Devices in the order of the table; empty where no times were modelled.
        latencies: Predictor latencies in ms that were modelled, rising; empty where the table has no such column or
            only one value.
        columns: Columns of the table that are shown, with their headings.
        rows: By split, policy, capacity in experts, device and latency (None where there is no choice).
    """

    devices: tuple[str, ...]
    latencies: tuple[float, ...]
    columns: tuple[tuple[str, str], ...]
    rows: dict[Key, dict[str, Any]]

    @classmethod
    def read(cls, timing: pl.DataFrame | None) -> Self:
        """Index the table; None, or one in which nothing was decoded, gives a clock without devices."""
        timed = None if timing is None else timing.filter(pl.col("ms_per_token") > 0)
        if timed is None or timed.is_empty():
            return cls((), (), (), {})
        timing = timed
        latencies: list[float] = []
        if "predictor_ms" in timing.columns and timing["predictor_ms"].drop_nulls().n_unique() > 1:
            latencies = timing["predictor_ms"].drop_nulls().unique().sort().to_list()
        choices: list[float | None] = [*latencies] or [None]
        rows: dict[Key, dict[str, Any]] = {}
        for _, part in timing.group_by("split", "policy", "capacity_experts", "device", maintain_order=True):
            for row in part.iter_rows(named=True):
                # what predicts nothing is timed once, whatever a predictor takes
                for latency in choices if part.height == 1 else [row["predictor_ms"]]:
                    rows[row["split"], row["policy"], row["capacity_experts"], row["device"], latency] = row
        columns = tuple((name, heading) for name, heading in _COLUMNS.items() if name in timing.columns)
        devices = tuple(timing["device"].unique(maintain_order=True).to_list())
        return cls(devices, tuple(latencies), columns, rows)

    def cells(self, split: str, policy: str, capacity: int) -> list[list[list[str]]]:
        """Texts of the shown columns, by device, then by latency (one where there is no choice)."""
        return [
            [self._texts(self.rows.get((split, policy, capacity, device, latency))) for latency in self._choices]
            for device in self.devices
        ]

    def ms(self, split: str, policy: str, capacity: int) -> list[list[float | None]]:
        """Milliseconds per token by device, then by latency; None where no time was modelled."""
        return [
            [self._ms(self.rows.get((split, policy, capacity, device, latency))) for latency in self._choices]
            for device in self.devices
        ]

    def winners(self, split: str, capacity: int, policies: list[str]) -> set[str]:
        """Those of `policies` that are the fastest on some device at some latency."""
        found = set()
        for device in self.devices:
            for latency in self._choices:
                timed = [(p, self.rows.get((split, p, capacity, device, latency))) for p in policies]
                known = [(row["ms_per_token"], p) for p, row in timed if row is not None]
                found |= {min(known)[1]} if known else set()
        return found

    def fastest(self, split: str, capacity: int, policies: list[str]) -> list[list[str]]:
        """A sentence by device and latency: which of `policies` gives the most tokens per second."""
        return [
            [self._fastest(split, capacity, policies, device, latency) for latency in self._choices]
            for device in self.devices
        ]

    @property
    def _choices(self) -> tuple[float | None, ...]:
        return self.latencies or (None,)

    @staticmethod
    def _ms(row: dict[str, Any] | None) -> float | None:
        return None if row is None else float(f"{row['ms_per_token']:.6g}")

    def _texts(self, row: dict[str, Any] | None) -> list[str]:
        if row is None:
            return [MISSING] * len(self.columns)
        return [_text(name, row) for name, _ in self.columns]

    def _fastest(self, split: str, capacity: int, policies: list[str], device: str, latency: float | None) -> str:
        timed = [(p, self.rows.get((split, p, capacity, device, latency))) for p in policies]
        known = [(row["ms_per_token"], p, row) for p, row in timed if row is not None]
        if not known:
            return f"No times were modelled here for {label(device)}."
        _, policy, row = min(known, key=lambda entry: entry[:2])
        rate = number(row["tokens_per_second"])
        return f"Fastest that can be built and gives up nothing: {label(policy)}, {rate} tokens per second."


def _text(name: str, row: dict[str, Any]) -> str:
    if name == "prefetches_late":
        return percent(row[name] / row["prefetches"]) if row.get("prefetches") else MISSING
    return percent(row[name]) if name == "fraction_of_bound" else number(row[name])
