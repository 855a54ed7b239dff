"""Traces written out by hand: a line a token, the experts of each layer.

Shape suffixes: T tokens, L MoE layers, K experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moe_beyond.simulator.engine.policy import NUM_FEATURES, Policy
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


def decided(demand, shares, precision, members=None, *, features=None, layer=0):
    """What a policy does with members of an event, from 0 on where none are named, in a model of eight experts.

    Residents are given as their precisions by expert, or as a list of those at full precision.
    """
    features = np.zeros((NUM_FEATURES, 8)) if features is None else features
    members = np.array(range(len(shares)) if members is None else members, np.int32)
    precision_M, actions = np.full(8, -1), np.zeros(len(shares), np.int64)
    for expert, level in (precision if isinstance(precision, dict) else dict.fromkeys(precision, 0)).items():
        precision_M[expert] = level
    demand(features, precision_M, members, np.array(shares, np.float32), 0, layer, actions)
    return actions.tolist()


def misses(policy: Policy, trace: Trace, capacity: int) -> list[int]:
    """Misses of each event."""
    return list(replayed(policy, trace, capacity).misses_N)
