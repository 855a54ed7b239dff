"""Parameters of the search: the section `tune` of params.yaml."""

from __future__ import annotations

from typing import Self

from pydantic import Field, ValidationError, field_validator, model_validator

from moe_beyond.masking import has_password
from moe_beyond.settings import Settings
from moe_beyond.training.settings import TrainSettings

_NOT_SEARCHED = (
    "epochs",
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "threads",
    "published_epochs",
)


class SearchSpace(Settings):
    """Predictors that the study may choose from."""

    width: tuple[int, ...] = Field(default=(96, 128), min_length=1)
    """Model width; must be divisible by every number of heads."""
    depth: tuple[int, ...] = Field(default=(2,), min_length=1)
    """Number of transformer blocks."""
    heads: tuple[int, ...] = Field(default=(4, 8), min_length=1)
    train: dict[str, tuple[bool | int | float | str, ...]] = Field(
        default={"window": (32,), "hidden_rank": (32, 64), "hidden_horizon": (4,)}
    )
    """Parameters of `train` to search beside the size, with the values to try: what is chosen is trained with."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if min(*self.width, *self.depth, *self.heads, 1) < 1:
            raise ValueError("width, depth and heads must be at least 1")
        for width in self.width:
            for heads in self.heads:
                if width % heads:
                    raise ValueError(f"width {width} is not divisible by {heads} heads; change tune.space")
        return self

    @model_validator(mode="after")
    def _train_takes_the_values(self) -> Self:
        for name, values in self.train.items():
            if name not in TrainSettings.model_fields or name in _NOT_SEARCHED:
                raise ValueError(f"train.{name} is not a parameter of train that can be searched; correct tune.space")
            if not values:
                raise ValueError(f"train.{name}: no value to try; give some or remove it from tune.space")
            for value in values:
                try:
                    TrainSettings.model_validate({name: value})
                except ValidationError as error:
                    raise ValueError(f"train.{name}: {error.errors()[0]['msg']} (found {value!r})") from error
        return self


class TuneSettings(Settings):
    """The search for the predictor that saves most time."""

    trials: int = Field(default=6, ge=1)
    """Candidates to try, each once: drawn by the seed from those that are fast enough, so that they fill the space; all
    of them if there are fewer."""
    epochs: int = Field(default=3, ge=1)
    """Epochs of a trial; every trial gets the same."""
    max_prompts: int = Field(default=160, ge=1)
    """At most this many training prompts in a trial, drawn by the seed."""
    workers: int | None = Field(default=None, ge=1)
    """Processes of this machine that try candidates at once; null: as many as it has cores, or one where `train` uses
    another accelerator. The outcome does not depend on it."""
    storage: str | None = Field(default=None, pattern="^postgresql")
    """Where the study lies: null for a file in `.scratch`, or a PostgreSQL address, so that other machines can join.
    The variable OPTUNA_STORAGE goes before it and is the one place for an address with a password: DVC keeps
    parameters."""
    warm_start: str | None = None
    """Candidates of an earlier search to try first: a `trials.csv` (a copy: the stage's own is replaced)."""
    space: SearchSpace = SearchSpace()
    device: str = "phone_ufs"
    """The device whose time per token decides, a name of a file under devices/profiles."""
    capacity: float = Field(default=0.1, gt=0, le=1)
    """The cache on it, as a share of all routed experts of the model."""
    replay_tokens: int = Field(default=20_000, ge=100)
    """At most about this many validation tokens are replayed to find a candidate's time per token."""
    max_latency_ms: float = Field(default=5.0, gt=0)
    """A candidate whose token step is charged more is not tried."""

    @field_validator("storage")
    @classmethod
    def _storage_without_password(cls, address: str | None) -> str | None:
        if address is not None and has_password(address):
            raise ValueError("an address with a password belongs in the variable OPTUNA_STORAGE; remove it here")
        return address
