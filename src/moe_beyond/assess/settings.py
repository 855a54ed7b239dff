"""Parameters of the suitability card: the section `assess` of params.yaml."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from moe_beyond.settings import Settings


class OtherTrace(Settings):
    """Traces of another model, for a card to compare with."""

    format: str
    """A format of the importers, or `parquet`."""
    path: str
    """Folder, archive or file."""


class AssessSettings(Settings):
    """What the suitability card measures, and the limits of its verdict."""

    tokens: Literal["all", "decode"] = "all"
    """Replay every token as if it was decoded, or the decoded ones only."""
    windows: tuple[int, ...] = Field(default=(16, 64), min_length=1)
    """Window lengths in tokens of the working set."""
    max_curve_tokens: int = Field(default=200_000, ge=100)
    """Hit curves use every n-th prompt so that about this many tokens are replayed."""
    curve_points: int = Field(default=400, ge=10)
    """Points of each hit curve in the table; the curves themselves have every capacity."""
    budget_fraction: float = Field(default=0.25, gt=0, lt=1)
    """Share of the model's experts that fast memory is assumed to hold."""
    bigger_budget_fraction: float = Field(default=0.5, gt=0, lt=1)
    """The larger cache that the verdict tries next."""
    min_bound_hit_rate: float = Field(default=0.75, gt=0, lt=1)
    """Belady's hit rate from which a cache of that size is worth having: at 0.75 a perfect policy would cut the traffic
    to a quarter, and no real one can do better."""
    min_gain: float = Field(default=0.05, ge=0, lt=1)
    """Points by which LRU or pinned popular experts must beat the share that the cache holds."""
    pairs_per_layer: int = Field(default=20, ge=1, le=1000)
    """Pairs of experts listed for each layer, those that add most to its mutual information."""
    others: tuple[OtherTrace, ...] = ()
    """Traces of other models, whose cards stand beside this one's in the report."""

    @model_validator(mode="after")
    def _budgets_rise(self) -> Self:
        if self.bigger_budget_fraction <= self.budget_fraction:
            raise ValueError("bigger_budget_fraction must exceed budget_fraction")
        return self
