"""What some formats need to be told beside the placement."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """What counts cannot say.

    Attributes:
        engine: Name of colibri's engine for the model, such as `olmoe` or `glm_moe_dsa`: its hash stands in the file.
        architecture: The GGUF's `general.architecture`, for names of tensors; None: names of all of them.
        expert_parallel: Ranks that SGLang's experts are dealt out to.
    """

    engine: str | None = None
    architecture: str | None = None
    expert_parallel: int = 1
