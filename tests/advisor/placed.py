"""Traces on which pins win, and on which an LRU does."""

from dataclasses import replace

import numpy as np

from tests.traces_of_chance import chance_trace


def favourites(num_prompts, seed=0):
    """Every token uses expert 0 of each layer, which an LRU of one slot a layer loses again and again."""
    trace = chance_trace(num_prompts, seed=seed, name=f"of{seed}_")
    experts = np.zeros_like(trace.experts_TLK)
    experts[..., 1] = 1 + (trace.token_ids_T[:, None] + 5 * trace.positions_T[:, None]) % 15
    # the router names its favourite now first, now second
    experts[::2] = experts[::2, :, ::-1]
    return replace(trace, experts_TLK=experts)


def turning(num_prompts):
    """Every prompt has a pair of experts of its own: LRU of two slots a layer keeps it, pins know one pair of eight."""
    trace = chance_trace(num_prompts)
    prompt_T = np.repeat(np.arange(num_prompts), np.diff(trace.prompt_offsets))
    experts = np.zeros_like(trace.experts_TLK)
    experts[..., 0], experts[..., 1] = 2 * (prompt_T % 8)[:, None], 2 * (prompt_T % 8)[:, None] + 1
    experts[::2] = experts[::2, :, ::-1]
    return replace(trace, experts_TLK=experts)
