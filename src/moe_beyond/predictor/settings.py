"""Parameters of the predictor: the sections `tune`, `train` and `export` of params.yaml."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from moe_beyond.settings import Settings


class TrainSettings(Settings):
    """The fit of a predictor; trials of the search use it too, with their own number of epochs."""

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=16, ge=1)
    """Windows a step."""
    window: int = Field(default=64, ge=8)
    """Tokens that attention looks back over, and the length of a training window."""
    learning_rate: float = Field(default=3e-3, gt=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    loss: Literal["bce", "softmax", "ranking"] = "bce"
    """See `predictor/losses.py`; docs/ablation.md compares them."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    history_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of tokens whose previous routing is hidden in training, so that the network copes without it; the same
    share of those whose string stood in the prompt before."""
    token_dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of tokens replaced by the unknown token in training, so that the network copes with unseen ones."""
    gradient_clip: float = Field(default=1.0, gt=0)
    patience: int = Field(default=5, ge=1)
    """Epochs without a better validation recall after which training stops."""
    min_token_count: int = Field(default=2, ge=1)
    """Token strings seen less often in training share the unknown embedding; their letters still tell them apart."""
    letter_buckets: int = Field(default=2048, ge=16)
    """Hash buckets of the character n-grams of a token string."""
    embedding_width: int = Field(default=128, ge=4)
    """Width of the embeddings of token strings and n-grams, which hold most of the weights."""
    horizon: int = Field(default=2, ge=1)
    """Layers ahead that the layer step answers for, each horizon apart."""
    reach: int = Field(default=6, ge=1)
    """Layers ahead to which an expert of a layer speaks directly; at least the horizon."""
    layer_width: int = Field(default=128, ge=8)
    """Width of the layer step: what it can keep of the experts so far."""
    layer_hidden: int = Field(default=64, ge=8)
    """Hidden units of the small network that reads this; more say little and cost time at every layer."""
    layer_loss_weight: float = Field(default=1.0, ge=0)
    """Weight of the layer step's loss, the mean over its horizons, beside the token step's."""
    teachers: int = Field(default=0, ge=0)
    """Predictors of other seeds that are fitted first; the one that is shipped learns their mean probabilities beside
    the truth. Each costs a fit of its own; the search does without. They need the loss `bce`."""
    teacher_weight: float = Field(default=0.5, ge=0, le=1)
    """Weight of the teachers' probabilities in the targets; the truth has the rest."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Of the arithmetic in training. A processor with bfloat16 instructions multiplies about five times faster in
    bf16-mixed, at no loss of recall that was measured; one without is slower."""
    accelerator: str = "cpu"
    """Lightning's: cpu, gpu, auto and others."""
    devices: int = Field(default=1, ge=1)
    """Devices of a machine, processes on `cpu`; each takes its share of every batch."""
    num_nodes: int = Field(default=1, ge=1)
    """Machines."""
    strategy: str = "auto"
    """How devices work together, Lightning's: auto, ddp and others."""
    threads: int = Field(default=1, ge=1)
    """Threads for torch on CPU. One makes results independent of the machine's cores; small widths need no more."""
    published_epochs: int = Field(default=0, ge=0)
    """Epochs of the paper's own network (`predictor/published.py`), causal and leaky, as a baseline; 0 leaves it out.
    On one CPU core an epoch over the published traces takes about an hour and a half, for each."""

    @model_validator(mode="after")
    def _teachers_speak_in_probabilities(self) -> Self:
        if self.teachers and self.loss != "bce":
            raise ValueError(f"teachers need the loss bce, not {self.loss}: only its logits are log-odds")
        return self


_NOT_SEARCHED = (
    "epochs",
    "teachers",
    "teacher_weight",
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "threads",
    "published_epochs",
)


class SearchSpace(Settings):
    """Predictors that the study may choose from."""

    width: tuple[int, ...] = Field(default=(64, 96, 128, 192), min_length=1)
    """Model width; must be divisible by every number of heads."""
    depth: tuple[int, ...] = Field(default=(1, 2, 3), min_length=1)
    """Number of transformer blocks."""
    heads: tuple[int, ...] = Field(default=(2, 4, 8), min_length=1)
    train: dict[str, tuple[bool | int | float | str, ...]] = Field(default={"window": (32, 64)})
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

    trials: int = Field(default=8, ge=1)
    """Candidates to try, each once; all of the space if it holds fewer."""
    epochs: int = Field(default=3, ge=1)
    """Epochs of a trial; every trial gets the same."""
    max_prompts: int = Field(default=300, ge=1)
    """At most this many training prompts in a trial, drawn by the seed."""
    workers: int = Field(default=1, ge=1)
    """Processes of this machine that try candidates at once. With one, the same study comes out every time."""
    storage: str | None = Field(default=None, pattern="^postgresql")
    """Where the study lies: null for a journal file in `.scratch`, or a PostgreSQL address, so that other machines can
    join. The variable OPTUNA_STORAGE goes before it and is the place for an address with a password."""
    warm_start: str | None = None
    """Candidates of an earlier search to try first: a `trials.csv` (a copy: the stage's own is replaced), or
    `study:NAME` in the same storage."""
    pruning_margin: float | None = Field(default=0.01, ge=0, le=1)
    """A trial ends early when a smaller predictor, in no searched number larger, had after as many epochs a validation
    recall that was higher by this; null: never."""
    space: SearchSpace = SearchSpace()
    device: str = "phone_ufs"
    """The device whose time per token decides, a name of a file under simulator/devices."""
    capacity: float = Field(default=0.1, gt=0, le=1)
    """The cache on it, as a share of all routed experts of the model."""
    replay_tokens: int = Field(default=20_000, ge=100)
    """At most about this many validation tokens are replayed to find a candidate's time per token."""
    max_latency_ms: float = Field(default=5.0, gt=0)
    """A candidate whose median token step takes longer on one thread is never chosen."""
    latency_repeats: int = Field(default=200, ge=10)


class ExportSettings(Settings):
    """The ONNX form of the predictor."""

    opset: int = Field(default=20, ge=18)
    parity_tolerance: float = Field(default=1e-4, gt=0)
    """Largest allowed difference of a logit between torch and onnxruntime."""
    parity_tokens: int = Field(default=500, ge=2)
    """Tokens of the validation split that are streamed one by one through both."""
    coverages: tuple[float, ...] = (0.8, 0.9, 0.95)
    """Shares of the true experts that prefetch sets shall hold; a threshold for each stands in the ONNX files."""
    int8_lost_points: float = Field(default=0.5, ge=0)
    """Points of recall@k that the int8 files may lose; operators that lose more stay in fp32."""
    latency_repeats: int = Field(default=500, ge=10)
    bootstrap_resamples: int = Field(default=1000, ge=100)
    """Resamples of prompts behind each confidence interval."""

    @field_validator("coverages")
    @classmethod
    def _are_shares(cls, coverages: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < coverage < 1 for coverage in coverages):
            raise ValueError("a coverage is a share between 0 and 1")
        return coverages
