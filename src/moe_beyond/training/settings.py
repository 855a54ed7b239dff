"""Parameters of the fit: the section `train` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from moe_beyond.settings import Settings


class TrainSettings(Settings):
    """The fit of a predictor; trials of the search use it too, with their own number of epochs."""

    epochs: int = Field(default=8, ge=1)
    batch_size: int = Field(default=16, ge=1)
    """Windows a step."""
    window: int = Field(default=64, ge=8)
    """Tokens that attention looks back over, and the length of a training window."""
    learning_rate: float = Field(default=3e-3, gt=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    loss: Literal["bce", "softmax", "ranking"] = "bce"
    """See `training/losses.py`; docs/ablation.md compares them."""
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
    """Layers ahead that the layer step predicts, each horizon apart."""
    reach: int = Field(default=6, ge=1)
    """Layers ahead to which an expert of a layer contributes directly; at least the horizon."""
    layer_width: int = Field(default=128, ge=8)
    """Width of the layer step: what it can keep of the experts so far."""
    layer_hidden: int = Field(default=64, ge=8)
    """Hidden units of the small network that reads this; more gain little and cost time at every layer."""
    hidden_states: bool = True
    """Whether the predictor reads the model's hidden states too, where the traces have them; where it is used without,
    it answers from strings and routing alone."""
    hidden_rank: int = Field(default=64, ge=4)
    """Numbers to which a hidden state is brought down."""
    hidden_units: int = Field(default=128, ge=8)
    """Units of the layer step's network that reads hidden states."""
    hidden_horizon: int = Field(default=4, ge=1)
    """Layers ahead that the layer step predicts with hidden states."""
    layer_loss_weight: float = Field(default=1.0, ge=0)
    """Weight of the layer step's loss, the mean over its horizons, beside the token step's; where hidden states are
    there, of that with them and that without together."""
    later_loss_weight: float = Field(default=0.5, ge=0)
    """Weight of the loss of later use, by which caches evict, beside that of the token's own use."""
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
    """Epochs of the paper's own network (`paper/training.py`), causal and leaky, as a baseline; 0 for none.
    On one CPU core an epoch over the published traces takes about an hour and a half, for each."""
