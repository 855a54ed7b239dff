"""Parameters of the split: the section `split` of params.yaml."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from moe_beyond.settings import Settings


class SplitSettings(Settings):
    """How prompts are divided. Held-out domains are never trained on."""

    validation_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Expected share of the groups of in-domain prompts; a hash of the content decides, so the share is not exact."""
    test_fraction: float = Field(default=0.05, gt=0, lt=1)
    gate_fraction: float = Field(default=0.05, gt=0, lt=1)
    """For the gate alone, which chooses between predictors: no reported figure comes from these prompts."""
    gate_held_out_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Of the groups of a held-out domain, for the gate too; with 0 all of them are for the test."""
    near_duplicate_jaccard: float = Field(default=0.7, ge=0.5, le=1)
    """Prompts whose sets of shingles are at least this similar land on one side; below 0.5 many would be missed."""
    shingle_tokens: int = Field(default=5, ge=1, le=64)
    shared_prefix_tokens: int = Field(default=32, ge=1)
    """Prompts that share so many first tokens land on one side: a causal model routes that prefix identically."""
    exact_duplicates: Literal["one", "all"] = "one"
    """Keep one prompt of each set of identical ones, or all of them."""

    @model_validator(mode="after")
    def _train_is_left(self) -> Self:
        if self.validation_fraction + self.test_fraction + self.gate_fraction >= 1:
            raise ValueError(
                "validation_fraction, test_fraction and gate_fraction leave nothing to train on; keep their sum below 1"
            )
        return self
