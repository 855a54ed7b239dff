"""Small traces drawn from a seed, with structure that a predictor can learn: a token mostly decides its experts."""

import numpy as np

from moe_beyond.traces.schema import TokenTexts, Trace, TraceMetadata, validate


def chance_trace(
    num_prompts=12, *, num_layers=3, num_experts=16, top_k=2, seed=0, words=20, name="p", held_out=False, lexical=0.9
):
    """A valid trace of prompts of 5 to 40 tokens; with probability `lexical` a token's experts are the word's own."""
    rng = np.random.default_rng(seed)
    # the words' own experts are those of one model, whatever the trace
    own = np.random.default_rng(99).permuted(np.tile(np.arange(num_experts), (words, num_layers, 1)), axis=2)[
        ..., :top_k
    ]
    lengths = rng.integers(5, 41, num_prompts)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    word_T = rng.integers(0, words, offsets[-1])
    other = rng.permuted(np.tile(np.arange(num_experts), (offsets[-1], num_layers, 1)), axis=2)[..., :top_k]
    experts = np.where((rng.random((offsets[-1], num_layers)) < lexical)[..., None], own[word_T], other)
    meta = TraceMetadata(
        model_id="chance",
        layer_numbers=tuple(range(1, num_layers + 1)),
        num_experts=num_experts,
        top_k=top_k,
        expert_bytes=(1000,) * num_layers,
        source="drawn from a seed",
        licence="Apache-2.0",
    )
    trace = Trace(
        metadata=meta,
        prompt_ids=tuple(f"{name}{i}" for i in range(num_prompts)),
        domains=("chance",) * num_prompts,
        held_out_P=np.full(num_prompts, held_out),
        prompt_offsets=offsets,
        num_prefill_P=(lengths // 2).astype(np.int32),
        experts_TLK=experts.astype(np.uint8),
        weights_TLK=rng.random((offsets[-1], num_layers, top_k)).astype(np.float16),
        token_ids_T=word_T.astype(np.int32),
        token_texts=TokenTexts.encode([f"\u0120word{word}" for word in word_T]),
    )
    return validate(trace, "chance")
