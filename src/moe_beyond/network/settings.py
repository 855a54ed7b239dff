"""Parameters of the exported predictor: the section `export` of params.yaml."""

from __future__ import annotations

from pydantic import Field

from moe_beyond.settings import Settings


class ExportSettings(Settings):
    """The ONNX form of the predictor."""

    opset: int = Field(default=20, ge=18)
    parity_tolerance: float = Field(default=1e-4, gt=0)
    """Largest allowed difference of a logit between torch and onnxruntime."""
    parity_tokens: int = Field(default=500, ge=2)
    """Tokens of the validation split that are streamed one by one through both."""
    int8_lost_points: float = Field(default=0.5, ge=0)
    """Points of recall@k that the int8 files may lose; operators that lose more stay in fp32."""
    missed_capacity: float = Field(default=0.1, gt=0, le=1)
    """Share of all routed experts that an LRU holds whose misses the table `hidden` looks at; as
    `simulate.headline_capacity`."""
    latency_repeats: int = Field(default=500, ge=10)
    bootstrap_resamples: int = Field(default=1000, ge=100)
    """Resamples of prompts behind each confidence interval."""
