# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""From a trace to events: what a cache is asked for, in order.

An event is (prompt, step, layer) with the union of experts that all tokens of the step want. The prefill of a prompt is
one step; afterwards every decoded token is one. Experts of all layers are numbered through: `layer * E + expert`.

Shape suffixes: N events, A accesses (members of events, one after another), S steps, M = L * E experts of the model,
P prompts, T tokens, L MoE layers, K experts per token, E routed experts in a layer. Offsets have one element more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator.jit import compiled
from moe_beyond.traces.schema import Trace, TraceMetadata

Prefill = Literal["batched", "token_by_token"]
"""`batched`: a prompt's prefill is one step, as engines run it. `token_by_token`: its tokens count as decoded."""

NEVER = np.int64(2**62)
"""The next use of an expert that is not used again."""


@dataclass(frozen=True)
class Events:
    """Accesses of a whole trace, grouped into events.

    Attributes:
        metadata: The model's shape and the size of its experts.
        members_A: int32, model-wide expert ids; distinct within an event, the most recently wanted last.
        offsets_N: int64 [N+1]; event n wants `members_A[offsets_N[n]:offsets_N[n+1]]`.
        layer_N: int32, index of the MoE layer.
        step_N: int32, step of the whole trace, from 0, rising.
        prompt_S: int32, the prompt that a step belongs to.
        token_S: int64, the token that a decode step routes, -1 for a batched prefill.
        prompt_tokens_PF: int64 [P, 2], tokens of each prompt in prefill (column 0) and decode (column 1) steps.
    """

    metadata: TraceMetadata
    members_A: npt.NDArray[np.int32]
    offsets_N: npt.NDArray[np.int64]
    layer_N: npt.NDArray[np.int32]
    step_N: npt.NDArray[np.int32]
    prompt_S: npt.NDArray[np.int32]
    token_S: npt.NDArray[np.int64]
    prompt_tokens_PF: npt.NDArray[np.int64]

    @property
    def num_events(self) -> int:
        """Number of events, N."""
        return len(self.layer_N)

    @property
    def num_steps(self) -> int:
        """Number of steps, S."""
        return len(self.prompt_S)

    @property
    def num_accesses(self) -> int:
        """Number of accesses, A."""
        return len(self.members_A)

    @property
    def num_prompts(self) -> int:
        """Number of prompts, P."""
        return len(self.prompt_tokens_PF)

    @cached_property
    def expert_bytes_M(self) -> npt.NDArray[np.int64]:
        """Bytes of each expert of the model, int64."""
        return np.repeat(np.asarray(self.metadata.expert_bytes, np.int64), self.metadata.num_experts)

    @cached_property
    def is_decode_S(self) -> npt.NDArray[np.bool_]:
        """True for steps that route one token."""
        return np.asarray(self.token_S >= 0)

    @cached_property
    def starts_prompt_N(self) -> npt.NDArray[np.bool_]:
        """True for the first event of each prompt."""
        prompt_N = self.prompt_S[self.step_N]
        return np.concatenate([[True], prompt_N[1:] != prompt_N[:-1]])

    def next_use_A(self, *, within_prompt: bool = False) -> npt.NDArray[np.int64]:
        """The event that uses each accessed expert next, or NEVER; int64.

        Args:
            within_prompt: Look no further than the prompt, as for a cache that is emptied between prompts.
        """
        starts_N = self.starts_prompt_N if within_prompt else np.zeros(self.num_events, bool)
        return _next_use(self.members_A, self.offsets_N, starts_N, self.metadata.num_model_experts)

    def one_by_one(self) -> Events:
        """Every access as an event of its own, in listed order: the `sequential` mode of older papers.

        It judges a layer's later experts after its earlier ones have already evicted something, which no engine does:
        use it only to compare with figures that were made this way.
        """
        lengths_N = np.diff(self.offsets_N)
        return replace(
            self,
            offsets_N=np.arange(self.num_accesses + 1, dtype=np.int64),
            layer_N=np.repeat(self.layer_N, lengths_N),
            step_N=np.repeat(self.step_N, lengths_N),
        )


def events_of(trace: Trace, prefill: Prefill = "batched") -> Events:
    """Group a trace's routing into events, prompts in their order.

    Args:
        trace: A valid trace.
        prefill: Whether a prompt's prefill is one step or its tokens are steps of their own.
    """
    meta = trace.metadata
    lengths_P = np.diff(trace.prompt_offsets)
    batched_P = trace.num_prefill_P.astype(np.int64) if prefill == "batched" else np.zeros(trace.num_prompts, np.int64)
    token_S, prompt_S = _steps(np.asarray(trace.prompt_offsets), batched_P)
    members_A, offsets_N = _members(
        np.asarray(trace.experts_TLK), np.asarray(trace.prompt_offsets), batched_P, token_S, prompt_S, meta.num_experts
    )
    num_steps = len(prompt_S)
    return Events(
        metadata=meta,
        members_A=members_A,
        offsets_N=offsets_N,
        layer_N=np.tile(np.arange(meta.num_layers, dtype=np.int32), num_steps),
        step_N=np.repeat(np.arange(num_steps, dtype=np.int32), meta.num_layers),
        prompt_S=prompt_S,
        token_S=token_S,
        prompt_tokens_PF=np.stack([batched_P, lengths_P - batched_P], axis=1),
    )


def _steps(
    prompt_offsets: npt.NDArray[np.int64], batched_P: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """The token of each step (-1: batched prefill) and its prompt."""
    tokens: list[npt.NDArray[np.int64]] = []
    for start, end, batched in zip(prompt_offsets[:-1], prompt_offsets[1:], batched_P, strict=True):
        decoded = np.arange(start + batched, end, dtype=np.int64)
        tokens.append(np.concatenate([[-1], decoded]) if batched else decoded)
    prompt_S = np.repeat(np.arange(len(batched_P), dtype=np.int32), [len(steps) for steps in tokens])
    return np.concatenate(tokens), prompt_S


@compiled()
def _members(
    experts_TLK: Any,
    prompt_offsets: npt.NDArray[np.int64],
    batched_P: npt.NDArray[np.int64],
    token_S: npt.NDArray[np.int64],
    prompt_S: npt.NDArray[np.int32],
    num_experts: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Members of all events: a decoded token's experts in the router's order, a prefill's union by last use."""
    num_layers, top_k = experts_TLK.shape[1], experts_TLK.shape[2]
    members_A = np.empty(experts_TLK.size, np.int32)
    offsets_N = np.zeros(len(token_S) * num_layers + 1, np.int64)
    end = 0
    wanted_E = np.zeros(num_experts, np.bool_)
    for step in range(len(token_S)):
        token = token_S[step]
        for layer in range(num_layers):
            base = layer * num_experts
            if token >= 0:
                for slot in range(top_k):
                    members_A[end] = base + experts_TLK[token, layer, slot]
                    end += 1
            else:
                first = prompt_offsets[prompt_S[step]]
                wanted_E[:] = False
                start = end
                for t in range(first + batched_P[prompt_S[step]] - 1, first - 1, -1):
                    for slot in range(top_k - 1, -1, -1):
                        expert = experts_TLK[t, layer, slot]
                        if not wanted_E[expert]:
                            wanted_E[expert] = True
                            members_A[end] = base + expert
                            end += 1
                members_A[start:end] = members_A[start:end][::-1].copy()
            offsets_N[step * num_layers + layer + 1] = end
    return members_A[:end].copy(), offsets_N


@compiled()
def _next_use(
    members_A: npt.NDArray[np.int32],
    offsets_N: npt.NDArray[np.int64],
    starts_N: npt.NDArray[np.bool_],
    num_model_experts: int,
) -> npt.NDArray[np.int64]:
    next_A = np.empty(len(members_A), np.int64)
    next_M = np.full(num_model_experts, NEVER)
    for event in range(len(offsets_N) - 2, -1, -1):
        for access in range(offsets_N[event], offsets_N[event + 1]):
            next_A[access] = next_M[members_A[access]]
            next_M[members_A[access]] = event
        if starts_N[event]:
            next_M[:] = NEVER
    return next_A
