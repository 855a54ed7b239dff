"""Small traces drawn from a seed, with structure that a predictor can learn: a token mostly decides its experts."""

from dataclasses import replace

import numpy as np

from moe_beyond.traces.schema import TokenTexts, validate
from tests.traces.random_traces import random_experts, trace_of


def chance_trace(
    num_prompts=12, *, num_layers=3, num_experts=16, top_k=2, seed=0, words=20, name="p", held_out=False, lexical=0.9
):
    """A valid trace of prompts of 5 to 40 tokens; with probability `lexical` a token's experts are the word's own."""
    rng = np.random.default_rng(seed)
    # the words' own experts are those of one model, whatever the trace
    own = random_experts((words, num_layers), num_experts, top_k, 99)
    lengths = rng.integers(5, 41, num_prompts)
    num_tokens = lengths.sum()
    word_T = rng.integers(0, words, num_tokens)
    other = rng.permuted(np.tile(np.arange(num_experts), (num_tokens, num_layers, 1)), axis=2)[..., :top_k]
    experts = np.where((rng.random((num_tokens, num_layers)) < lexical)[..., None], own[word_T], other)
    trace = trace_of(experts, lengths.tolist(), num_experts)
    changes = {"model_id": "chance", "expert_bytes": (1000,) * num_layers, "licence": "Apache-2.0"}
    trace = replace(
        trace,
        metadata=trace.metadata.model_copy(update=changes | {"source": "drawn from a seed"}),
        prompt_ids=tuple(f"{name}{i}" for i in range(num_prompts)),
        domains=("chance",) * num_prompts,
        held_out_P=np.full(num_prompts, held_out),
        num_prefill_P=(lengths // 2).astype(np.int32),
        weights_TLK=rng.random(experts.shape).astype(np.float16),
        token_ids_T=word_T.astype(np.int32),
        token_texts=TokenTexts.encode([f"\u0120word{word}" for word in word_T]),
    )
    return validate(trace, "chance")
