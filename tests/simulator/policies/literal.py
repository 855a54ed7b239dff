"""Traces written out by hand: a line a token, the experts of each layer.

Shape suffixes: T tokens, L MoE layers, K experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.engine.results import Replay
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.traces.schema import Trace, validate
from tests.simulator.strategies import make_trace


def literal(
    experts_TLK: Sequence[object],
    *,
    num_experts: int,
    lengths: tuple[int, ...] | None = None,
    weights_TLK: Sequence[object] | None = None,
) -> Trace:
    """A trace of decoded tokens. A token of one layer and one expert may be a number, of more a list of lists."""
    experts = np.array(experts_TLK, np.uint8)
    experts = experts.reshape(len(experts), -1, 1) if experts.ndim < 3 else experts
    lengths = lengths or (len(experts),)
    shape = {"num_layers": experts.shape[1], "num_experts": num_experts, "top_k": experts.shape[2]}
    trace = make_trace(0, **shape, lengths=lengths, prefill=(0,) * len(lengths))
    weights = trace.weights_TLK if weights_TLK is None else np.array(weights_TLK, np.float16).reshape(experts.shape)
    return validate(replace(trace, experts_TLK=experts, weights_TLK=weights), "literal")


def replayed(policy: Policy, trace: Trace, capacity: int) -> Replay:
    """A replay in a cache that is divided as the policy divides it."""
    return replay(events_of(trace), policy, policy.budget(trace.metadata, capacity))


def misses(policy: Policy, trace: Trace, capacity: int) -> list[int]:
    """Misses of each event."""
    return list(replayed(policy, trace, capacity).misses_N)
