"""What a model's tensors weigh, by how decoding reads them: experts by layer, dense parts, and the rest."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from moe_beyond.errors import InputError

MOST_LAYERS = 1000
MOST_EXPERTS = 65536


class Tensor(NamedTuple):
    """A tensor that a header promises.

    Attributes:
        name: As the file has it.
        shape: Slowest dimension first.
        num_bytes: As stored.
    """

    name: str
    shape: tuple[int, ...]
    num_bytes: int


class Part(NamedTuple):
    """What a tensor's name says of it.

    Attributes:
        layer: Number of the layer; None outside of layers.
        routed: Whether it belongs to routed experts.
        expert: Which of them; None: it holds all of a layer, the first dimension counts them.
        read: Whether each token of text reads all of it, where it is not routed.
    """

    layer: int | None
    routed: bool = False
    expert: int | None = None
    read: bool = True


@dataclass(frozen=True)
class ModelSizes:
    """A model as its header or index describes it.

    Attributes:
        name: What the file calls the model.
        source: What the bytes come from, in words.
        num_layers: Decoder layers, dense ones included.
        num_experts: Routed experts of a layer.
        top_k: Experts that a token uses in a layer.
        layer_numbers: Numbers of the layers with experts, rising.
        expert_bytes: Bytes of an expert of each of them; the mean where experts of a layer differ.
        dense_bytes: Bytes of all weights beside routed experts that every token reads.
        other_bytes: Bytes of the rest: rows of embeddings, vision, layers that predict further tokens.
    """

    name: str
    source: str
    num_layers: int
    num_experts: int
    top_k: int
    layer_numbers: tuple[int, ...]
    expert_bytes: tuple[int, ...]
    dense_bytes: int
    other_bytes: int

    @property
    def routed_bytes(self) -> int:
        """Bytes of all routed experts."""
        return self.num_experts * sum(self.expert_bytes)

    @property
    def token_cycle_bytes(self) -> int:
        """Bytes of the experts that one token uses: a smaller LRU cache evicts each before it is used again."""
        return self.top_k * sum(self.expert_bytes)


def check_shape(num_layers: int, num_experts: int, top_k: int, where: str) -> None:
    """Raise InputError unless these can be a mixture of experts."""
    if not (1 <= num_layers <= MOST_LAYERS and 2 <= num_experts <= MOST_EXPERTS and 1 <= top_k <= num_experts):
        raise InputError(
            f"{where}: {num_layers} layers with {num_experts} experts, top-{top_k}: not a mixture of experts"
        )


def sizes_of(
    tensors: Iterable[Tensor],
    part_of: Callable[[Tensor], Part],
    *,
    name: str,
    source: str,
    num_layers: int,
    num_experts: int,
    top_k: int,
    where: str,
) -> ModelSizes:
    """Add up a model's tensors.

    Args:
        tensors: All of the model, from every shard.
        part_of: What a format's names say.
        name: As the attribute.
        source: As the attribute.
        num_layers: As the attribute; tensors of layers above belong to the prediction of further tokens.
        num_experts: As the attribute.
        top_k: As the attribute.
        where: Names the file in messages.

    Raises:
        InputError: No layer has experts, a layer lacks some, or a tensor's experts are another number.
    """
    check_shape(num_layers, num_experts, top_k, where)
    routed: dict[int, int] = defaultdict(int)
    listed: dict[int, Counter[int]] = defaultdict(Counter)
    dense = other = 0
    for tensor in tensors:
        part = part_of(tensor)
        if part.layer is not None and part.layer >= num_layers:
            other += tensor.num_bytes
        elif not part.routed:
            dense, other = (dense + tensor.num_bytes, other) if part.read else (dense, other + tensor.num_bytes)
        elif part.layer is None:
            raise InputError(f"{where}: {tensor.name:.80} names no layer; its names are not known here")
        else:
            routed[part.layer] += tensor.num_bytes
            if part.expert is not None:
                listed[part.layer][part.expert] += 1
            elif tensor.shape[0] % num_experts:
                raise InputError(
                    f"{where}: {tensor.name:.80} holds {tensor.shape[0]} experts, expected {num_experts}; fetch it "
                    "again, and config.json with it where there is one"
                )
    if not routed:
        raise InputError(f"{where}: no tensor of routed experts; give the header of a mixture of experts")
    for layer, experts in listed.items():
        if set(experts) != set(range(num_experts)) or len(set(experts.values())) > 1:
            raise InputError(
                f"{where}: layer {layer} has tensors of {len(experts)} experts, {min(experts.values())} to "
                f"{max(experts.values())} of each, expected as many of each of {num_experts}; give every shard's "
                "header, and the config.json of this very model"
            )
    layers = tuple(sorted(routed))
    return ModelSizes(
        name=re.sub(r"\s+", " ", name)[:200],
        source=source,
        num_layers=num_layers,
        num_experts=num_experts,
        top_k=top_k,
        layer_numbers=layers,
        expert_bytes=tuple(math.ceil(routed[layer] / num_experts) for layer in layers),
        dense_bytes=dense,
        other_bytes=other,
    )
