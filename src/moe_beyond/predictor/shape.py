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
