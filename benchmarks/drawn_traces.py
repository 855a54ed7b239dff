"""Traces of any size drawn from a seed, written prompt after prompt: skewed, local, and partly decided by the token.

Of a token's experts in a layer, about two in five follow from its id, three in ten are those of the token before it,
and the others are drawn by a popularity that falls with the square of their rank in the layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator.jit import compiled
from moe_beyond.traces.schema import RoutedPrompt, TraceMetadata

_WORDS = 2_000
_LOW_BITS = 2**53 - 1


@dataclass(frozen=True)
class Shape:
    """A model's shape: MoE layers, routed experts in each, experts per token."""

    name: str
    num_layers: int
    num_experts: int
    top_k: int

    @property
    def activations(self) -> int:
        """Expert choices of one token."""
        return self.num_layers * self.top_k

    def metadata(self) -> TraceMetadata:
        """Of a trace of this shape; experts of 8 MiB."""
        return TraceMetadata(
            model_id=f"drawn/{self.name}",
            layer_numbers=tuple(range(self.num_layers)),
            num_experts=self.num_experts,
            top_k=self.top_k,
            expert_bytes=(8 * 2**20,) * self.num_layers,
            decoding="sampled",
            source="drawn from a seed",
            licence="CC0-1.0",
        )


SHAPES = (
    Shape("DeepSeek-V3", 58, 256, 8),
    Shape("Qwen3-235B", 94, 128, 8),
    Shape("Qwen3-Next", 48, 512, 10),
)


def drawn_prompts(
    shape: Shape, num_tokens: int, *, prompt_tokens: int = 128, seed: int = 0, domain: str = "drawn"
) -> Iterator[RoutedPrompt]:
    """Prompts of `prompt_tokens` tokens, half of them prefill, `num_tokens` in all."""
    own_WLK = np.random.default_rng(99).integers(0, shape.num_experts, (_WORDS, shape.num_layers, shape.top_k))
    ids_LE = np.tile(np.arange(shape.num_experts), (shape.num_layers, 1))
    popular_LE = np.random.default_rng(98).permuted(ids_LE, axis=1)
    draw = np.random.default_rng(seed)
    starts = [*range(0, num_tokens, prompt_tokens), num_tokens]
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        words_T = (draw.random(end - start) ** 3 * _WORDS).astype(np.int32)
        experts_TLK = _route(words_T, own_WLK, popular_LE, int(draw.integers(1, 2**31)))
        yield RoutedPrompt(f"{domain}/{number}", domain, max(1, (end - start) // 2), experts_TLK, token_ids_T=words_T)


@compiled()
def _route(words_T: Any, own_WLK: Any, popular_LE: Any, seed: int) -> npt.NDArray[np.uint16]:
    num_layers, top_k = own_WLK.shape[1:]
    num_experts = popular_LE.shape[1]
    experts_TLK = np.empty((len(words_T), num_layers, top_k), np.uint16)
    np.random.seed(seed)  # noqa: NPY002 - compiled code has this generator
    for token in range(len(words_T)):
        for layer in range(num_layers):
            for slot in range(top_k):
                chance, expert = np.random.random(), -1  # noqa: NPY002
                if chance < 0.4:
                    expert = own_WLK[words_T[token], layer, slot]
                elif chance < 0.7 and token:
                    expert = experts_TLK[token - 1, layer, slot]
                while expert < 0 or (experts_TLK[token, layer, :slot] == expert).any():
                    expert = popular_LE[layer, int(num_experts * np.random.random() ** 2)]  # noqa: NPY002
                experts_TLK[token, layer, slot] = expert
    return experts_TLK
