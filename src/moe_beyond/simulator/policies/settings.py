"""Parameters of the published policies: the group `published_policies` of the section `simulate` of params.yaml."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from moe_beyond.settings import Settings


class PolicySettings(Settings):
    """What the published policies remember and fit."""

    matrices: int = Field(default=1000, ge=1, le=100_000)
    """Count matrices in MoE-Infinity's store, as published; each costs time at every layer of every token."""
    maps: int = Field(default=1000, ge=1, le=100_000)
    """Gate maps in FineMoE's store, as published; each costs time at every layer of every token."""
    speculative_loads: int = Field(default=2, ge=1)
    """Experts of the next layer that Mixtral-offloading loads ahead; its authors use one or two."""
    seed: int | None = Field(default=None, ge=0, lt=2**24)
    """Of random eviction, the learned eviction's first weights and the clusters of task patterns; null: the run's."""

    def of_seed(self, seed: int) -> Self:
        """With the seed of a run, of any size, where none is set."""
        return self if self.seed is not None else self.model_copy(update={"seed": seed % 2**24})
