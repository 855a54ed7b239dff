"""Parameters of the reference model: the section `reference` of params.yaml."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from moe_beyond.settings import Settings


class ReferenceSettings(Settings):
    """A small DeepSeek-V2-shaped Mixture-of-Experts and the training that makes its routing mean something."""

    hidden_size: int = Field(default=96, ge=16)
    attention_heads: int = Field(default=4, ge=1)
    dense_layers: int = Field(default=1, ge=0)
    moe_layers: int = Field(default=5, ge=1)
    num_experts: int = Field(default=64, ge=2)
    top_k: int = Field(default=6, ge=1)
    shared_experts: int = Field(default=2, ge=1)
    expert_width: int = Field(default=32, ge=1)
    vocabulary_size: int = Field(default=4096, ge=300)

    held_out_share: float = Field(default=0.25, gt=0, lt=1)
    """Share of documents that the model never trains on; prompts to trace are cut from these."""
    tokens: int = Field(default=1_000_000, ge=1)
    """Training budget in tokens, not minutes: the same on every machine."""
    sequence_tokens: int = Field(default=128, ge=8)
    batch_sequences: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=5e-3, gt=0)
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    balance_weight: float = Field(default=0.01, ge=0)
    """Weight of the load-balance loss; at 0 a fifth to a third of the experts die."""
    validation_tokens: int = Field(default=32_768, ge=1)
    """At most so many held-out tokens are scored."""
    validations: int = Field(default=5, ge=1)
    """How often validation runs, evenly spread, the last at the end."""

    @model_validator(mode="after")
    def _shape_is_possible(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(f"reference.top_k ({self.top_k}) exceeds num_experts ({self.num_experts})")
        if self.hidden_size % (4 * self.attention_heads):
            # a head is cut into two thirds without position and one third with; both must be even
            raise ValueError(
                f"reference.hidden_size ({self.hidden_size}) must be a multiple of 4 x attention_heads "
                f"({self.attention_heads})"
            )
        return self
