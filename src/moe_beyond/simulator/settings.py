"""Parameters of the replay: the section `simulate` of params.yaml."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from moe_beyond.settings import Settings


class SimulateSettings(Settings):
    """Which caches are replayed, and how."""

    capacities: tuple[float, ...] = Field(default=(0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75), min_length=1)
    """Sizes of the cache as shares of all routed experts of the model, rising."""
    headline_capacity: float = Field(default=0.1, gt=0, le=1)
    """The capacity whose numbers stand in metrics.json; one of `capacities`."""
    prefetch_width: int | None = Field(default=None, ge=1)
    """Experts fetched ahead at most per token and layer; null: as many as the router chooses, for each of a
    batch."""
    prefetch_threshold: float = Field(default=0.0, ge=0, le=1)
    """An expert of a lower predicted probability is not fetched."""
    keep_warm: bool = True
    """Keep the cache from one prompt to the next; false: each prompt starts with an empty one, or with a batch each
    wave of prompts, which begin together and wait for each other's end."""
    batch: int = Field(default=1, ge=1)
    """Prompts that run at once, a token of each in a step; an ended one gives its place to the next."""
    prefill: Literal["batched", "token_by_token"] = "batched"
    """Whether a prompt's prefill is one step, or its tokens count as decoded (for traces that hold nothing else)."""
    devices: tuple[str, ...] = ("phone_ufs", "laptop_nvme", "gpu_pcie4")
    """Devices that every policy is timed on, names of files under simulator/devices; empty: no times."""
    predictor_latency_ms: float = Field(default=0.5, ge=0)
    """Time of the predictor's answer, charged to every token of a policy that predicts; export measures it."""
    lookahead_layers: int = Field(default=2, ge=0)
    """For how many layers beyond the present one prefetches may be under way, where there is a clock."""
    timed_expert_mib: float | None = Field(default=8.25, gt=0)
    """Time the reference model as if each of its experts were this large, the size of DeepSeek-V2-Lite's at 8 bits: its
    own are too small for a device to notice. Other models are always timed as they are; null: so is this one."""
    bootstrap_samples: int = Field(default=1000, ge=100, le=100_000)
    """Resamples of the prompts behind every interval."""

    @model_validator(mode="after")
    def _capacities_are_shares(self) -> Self:
        if any(not 0 < share <= 1 for share in self.capacities):
            raise ValueError("capacities must be shares of the model, above 0 and at most 1")
        if list(self.capacities) != sorted(set(self.capacities)):
            raise ValueError("capacities must rise without repetition")
        if self.headline_capacity not in self.capacities:
            raise ValueError(f"headline_capacity must be one of capacities, {list(self.capacities)}")
        return self
