"""Parameters of the replay: the section `simulate` of params.yaml."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from moe_beyond.settings import Settings
from moe_beyond.simulator.policies.settings import PolicySettings


class ReplaySettings(Settings):
    """Rules that every replay keeps, those of the search as well: `dvc.yaml` lists each among the params of `tune`."""

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
    block_tokens: int = Field(default=1, ge=1)
    """Tokens that a decode step verifies (speculative decoding): it uses the experts of all of them. Needs a batch
    of 1."""
    accepted_share: float | None = Field(default=None, gt=0, le=1)
    """Of a verify block's tokens the part that is kept; drafting takes no time. Needed where `block_tokens` is
    above 1."""
    prefill: Literal["batched", "token_by_token"] = "batched"
    """Whether a prompt's prefill is one step, or its tokens count as decoded (for traces that hold nothing else)."""
    lookahead_layers: int = Field(default=2, ge=0)
    """For how many layers beyond the present one prefetches may be under way, where there is a clock."""
    timed_expert_mib: float | None = Field(default=8.25, gt=0)
    """Time the reference model as if each of its experts were this large, the size of DeepSeek-V2-Lite's at 8 bits: its
    own are too small for a device to notice. Other models are always timed as they are; null: so is this one."""

    @property
    def step_tokens(self) -> int:
        """Tokens of a decode step at most."""
        return self.batch * self.block_tokens

    @model_validator(mode="after")
    def _blocks_are_of_one_prompt(self) -> Self:
        if self.block_tokens > 1 and (self.batch > 1 or self.accepted_share is None):
            raise ValueError("block_tokens above 1 needs accepted_share, and a batch of 1")
        return self

    def of_source(self, source: str) -> Self:
        """The same for traces of a source: only the reference model is timed at another expert size than traced."""
        return self if source == "reference" else self.model_copy(update={"timed_expert_mib": None})


class SimulateSettings(ReplaySettings):
    """Which caches are replayed, and how."""

    capacities: tuple[float, ...] = Field(default=(0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75), min_length=1)
    """Sizes of the cache as shares of all routed experts of the model, rising."""
    headline_capacity: float = Field(default=0.1, gt=0, le=1)
    """The capacity whose numbers stand in metrics.json; one of `capacities`."""
    overrun: bool = False
    """Keep what an event has just used until the next event of its cache, even above the budget, as engines do that
    never evict what their batch has touched. Off, because all are compared at the same memory: a cache that is split
    over layers may hold a whole prompt's experts so, whatever its budget. Bounds allow for it."""
    devices: tuple[str, ...] = ("phone_ufs", "laptop_nvme", "gpu_pcie4")
    """Devices that every policy is timed on, names of files under devices/profiles; empty: no times."""
    timed_capacities: tuple[float, ...] | None = None
    """Those of `capacities` that are timed too, `headline_capacity` among them; null: all. A clock takes several times
    as long as counting."""
    bandwidths_gb_per_s: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
    """Links that prefetching is timed with at the headline capacity, to find from where on it pays; empty: none."""
    widths: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0)
    """Prefetch widths that are timed at the headline capacity, as multiples of the router's k; empty: none."""
    ablation_threshold: float = Field(default=0.1, ge=0, le=1)
    """Least probability that is fetched, in the step of the ablation that shows what a threshold is worth."""
    headline_device: str | None = None
    """The device whose numbers stand in metrics.json; one of `devices`; null: the first of them."""
    choose_tokens: int = Field(default=20_000, ge=100)
    """About how many validation tokens are replayed to choose how the predictor is used at each capacity and device."""
    timeline_steps: int = Field(default=48, ge=1)
    """Steps of the prompt that is recorded event by event."""
    costliest_misses: int = Field(default=50, ge=1)
    """Events of the longest stalls that are listed."""
    policies: tuple[str, ...] | None = None
    """Names of the policies to replay beside those that the predictors drive; null: all that the traces allow, and
    the table `not_replayed` gives the reason for the others."""
    workers: int = Field(default=1, ge=1)
    """Processes that policies are shared among; a Ray or Dask cluster that the environment names decides for itself."""
    published_policies: PolicySettings = PolicySettings()
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
        timed = set(self.capacities if self.timed_capacities is None else self.timed_capacities)
        if not {self.headline_capacity} <= timed <= set(self.capacities):
            raise ValueError(
                f"timed_capacities must be some of capacities, {list(self.capacities)}, headline_capacity among them"
            )
        return self

    @model_validator(mode="after")
    def _measures_rise(self) -> Self:
        for name in ("bandwidths_gb_per_s", "widths"):
            values = getattr(self, name)
            if list(values) != sorted(set(values)) or any(value <= 0 for value in values):
                raise ValueError(f"{name} must rise without repetition, from above 0")
        if self.headline_device is not None and self.headline_device not in self.devices:
            raise ValueError(f"headline_device must be one of devices, {list(self.devices)}")
        return self
