"""Parameters of the registry's gate and of drift: the section `publish` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from moe_beyond.settings import Settings


class DriftSettings(Settings):
    """When new traces no longer look like those the predictor was trained on: read by `moe-beyond drift`."""

    max_psi: float = Field(default=0.2, gt=0)
    """Largest population stability index of expert usage in any layer; 0.1 is commonly called small, 0.25 large."""
    max_recall_loss: float = Field(default=0.05, ge=0, le=1)
    """Recall@k may fall this far below that of the training window."""
    max_hit_rate_loss: float = Field(default=0.05, ge=0, le=1)
    """The cache's hit rate may fall this far below that of the training window."""
    max_regret_rise: float = Field(default=0.1, ge=0)
    """The share of loads that perfect foresight would have saved may rise by this much."""
    chance_draws: int = Field(default=200, ge=20, le=10_000)
    """Random divisions of all prompts: they give the index that chance alone reaches, and a smaller one is no drift."""


class PublishSettings(Settings):
    """The registry's gate: when the predictor just made becomes the champion."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]+$")
    """Registered model in MLflow; null: `moe-beyond.<traced model>.<device>`, so that models never compete."""
    device: str = "laptop_nvme"
    """Device that both are timed on, a file under devices/profiles."""
    capacity: float = Field(default=0.1, gt=0, le=1)
    """Cache of the replay, as a share of all routed experts of the model."""
    metric: Literal["ms_per_token", "hit_rate", "recall_at_k", "layer_recall_at_k"] = "ms_per_token"
    """What the challenger must win by. Milliseconds are net: waiting, bytes and the predictor's own time count. Recall
    is the token step's, or the layer step's one layer ahead."""
    margin: float = Field(default=0.005, ge=0, lt=1)
    """The lower end of the improvement's 95 % interval must exceed this share of the champion's value."""
    max_worst_domain_loss: float = Field(default=0.01, ge=0, le=1)
    """The hit rate on the worst domain may fall this far below the champion's worst."""
    max_latency_ms: float = Field(default=5.0, gt=0)
    """A predictor whose token step is charged more on the device is refused, as the first one too."""
    latency_repeats: int = Field(default=200, ge=10)
    """Steps behind each of three medians, taken alternately by both sides."""
    bootstrap_samples: int = Field(default=1000, ge=100, le=100_000)
    """Resamples of prompts, the same for both sides."""
    drift: DriftSettings = DriftSettings()
