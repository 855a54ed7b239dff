"""The sizes of a predictor. No torch here: what a step takes in time is worked out from them anywhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkShape:
    """Everything that fixes the shapes of the two steps' tensors.

    Attributes:
        num_layers: MoE layers of the traced model.
        num_experts: Experts in each.
        top_k: Experts that its router chooses.
        num_tokens: Token strings with an embedding of their own, and one row for all others.
        letter_buckets: Hash buckets of character n-grams.
        embedding_width: Of the embeddings of strings and n-grams, the bulk of the weights.
        width: Of the token step.
        depth: Its transformer blocks.
        heads: Of its attention.
        window: Tokens that attention looks back over, the token itself included.
        horizon: Layers ahead that the layer step predicts.
        reach: Layers ahead to which an expert of a layer contributes directly; at least `horizon`.
        layer_width: Width of the layer step.
        layer_hidden: Hidden units of its small network.
        hidden_size: Hidden size of the traced model, where the predictor reads its hidden states; 0: it reads none.
        hidden_rank: Numbers to which a hidden state is brought down before anything else is done with it.
        hidden_units: Units of the layer step's network that reads hidden states.
        hidden_horizon: Layers ahead that the layer step predicts with hidden states.
    """

    num_layers: int
    num_experts: int
    top_k: int
    num_tokens: int
    letter_buckets: int
    embedding_width: int
    width: int
    depth: int
    heads: int
    window: int
    horizon: int
    reach: int
    layer_width: int
    layer_hidden: int
    hidden_size: int = 0
    hidden_rank: int = 64
    hidden_units: int = 128
    hidden_horizon: int = 4

    @property
    def reads_hidden(self) -> bool:
        """Whether the predictor reads hidden states where there are some."""
        return self.hidden_size > 0
