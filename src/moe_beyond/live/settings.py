"""Parameters of the live check: the section `verify` of params.yaml."""

from __future__ import annotations

from pydantic import Field

from moe_beyond.settings import Settings


class VerifySettings(Settings):
    """How much of the test prompts is decoded live, with experts on disk."""

    prompts: int = Field(default=2, ge=1)
    """Test prompts that each policy decodes on a link slowed down to the headline device's."""
    tokens: int = Field(default=16, ge=2)
    """Tokens of each that are decoded at most."""
    quality_prompts: int = Field(default=4, ge=2)
    """Test prompts whose text lossy policies read beside the full model."""
    quality_prefill: int = Field(default=2, ge=1)
    """Tokens of each text that are read at once, ahead of those that are compared."""
    quality_tokens: int = Field(default=10, ge=8)
    """Tokens of each that are compared at most."""
    lossy: tuple[str, ...] = ("hobbit", "drop_cold")
    """Lossy policies that are timed too; the quality of all of them is measured in any case."""
    threads: int | None = Field(default=1, ge=1)
    """That compute; null: torch's choice."""
    lanes: int = Field(default=1, ge=1)
    """Parts of an expert that are read at once."""
