"""From a trace to events: the accesses of a cache, in order.

An event is (step, layer) with the union of experts that all tokens of the step use. The prefill of a prompt is one
step; afterwards every decoded token is one, or with several prompts at once a token of each, or a block of tokens that
is verified (`interleaving`). Experts of all layers are numbered through: `layer * E + expert`.

An expert that several tokens of a step use is one access and one load. It counts for one prompt: of those that use it,
the last one in the step's order, which rotates from step to step, so that over time each prompt gets its share.

Shape suffixes: N events, A accesses (members of events, one after another), S steps, M = L * E experts of the model,
P prompts, T tokens, I tokens of all steps, R rows of tokens of decode steps, L MoE layers, K experts per token, E
routed experts in a layer. Offsets have one element more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.simulator.jit import F32, F64, I32, I64, Bools, compiled
from moe_beyond.simulator.schedule.interleaving import Schedule, interleave, verify_blocks
from moe_beyond.simulator.schedule.weight_shares import shares_of
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
        members_A: int32, model-wide expert ids; distinct within an event, the most recently used last.
        offsets_N: int64 [N+1]; event n uses `members_A[offsets_N[n]:offsets_N[n+1]]`.
        layer_N: int32, index of the MoE layer.
        step_N: int32, step of the whole trace, from 0, rising.
        prompt_S: int32, the prompt that a step belongs to; of several at once, their session (see `Schedule`).
        token_S: int64, the token that a decode step routes, -1 for a batched prefill. With several prompts at once a
            step routes several: then it counts the decode steps, and indexes what `by_step` makes of a value a token.
        prompt_tokens_PF: int64 [P, 2], tokens of each prompt in prefill (column 0) and decode (column 1) steps.
        shares_A: float32, each access's share of its event's router weight; None where the trace has no weights.
        schedule: The tokens of each step, where a decode step has several.
        in_blocks: Whether they follow each other in one prompt.
        owner_A: int32, the prompt that each access counts for, where several prompts run at once.
        trace: The trace, of which events know less: which tokens of a prefill used an expert. None for events that were
            not made from one.
    """

    metadata: TraceMetadata
    members_A: I32
    offsets_N: I64
    layer_N: I32
    step_N: I32
    prompt_S: I32
    token_S: I64
    prompt_tokens_PF: I64
    shares_A: F32 | None = None
    schedule: Schedule | None = None
    in_blocks: bool = False
    owner_A: I32 | None = None
    trace: Trace | None = None

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
    def expert_bytes_M(self) -> I64:
        """Bytes of each expert of the model, int64."""
        return np.repeat(np.asarray(self.metadata.expert_bytes, np.int64), self.metadata.num_experts)

    @cached_property
    def is_decode_S(self) -> Bools:
        """True for steps that route one token."""
        return np.asarray(self.token_S >= 0)

    @property
    def event_A(self) -> I64:
        """The event of each access, int64."""
        return np.repeat(np.arange(self.num_events), np.diff(self.offsets_N))

    @property
    def is_decode_A(self) -> Bools:
        """True for accesses of decode steps."""
        return np.asarray(self.is_decode_S[self.step_N][self.event_A])

    @cached_property
    def num_tokens_S(self) -> I64:
        """Tokens of each step, int64."""
        if self.schedule is not None:
            return np.diff(self.schedule.offsets_S)
        return np.where(self.is_decode_S, 1, self.prompt_tokens_PF[self.prompt_S, 0])

    def routed(self) -> tuple[Trace, I64, I64]:
        """The trace, and the tokens of every step: step s routes `tokens_I[offsets_S[s]:offsets_S[s + 1]]` of it.

        Raises:
            ValueError: The events were not made from a trace.
        """
        if self.trace is None:
            raise ValueError("these events were not made from a trace, and know nothing of single tokens")
        if self.schedule is not None:
            return self.trace, self.schedule.tokens_I, self.schedule.offsets_S
        offsets_S = np.concatenate([[0], np.cumsum(self.num_tokens_S)]).astype(np.int64)
        return self.trace, np.arange(self.trace.num_tokens), offsets_S

    @property
    def row_N(self) -> I64:
        """The row of counts, `prompt * 2 + phase`, of each event; of several prompts the last one's; int64."""
        prompt_S = self.prompt_S
        if self.schedule is not None and self.owner_A is not None:
            # the last member of an event is used by the last prompt in order
            prompt_S = self.owner_A[self.offsets_N[np.searchsorted(self.step_N, np.arange(self.num_steps)) + 1] - 1]
        return (prompt_S.astype(np.int64) * 2 + self.is_decode_S)[self.step_N]

    @property
    def row_A(self) -> I64:
        """The row of counts of each access, int64."""
        return self.row_N[self.event_A] if self.owner_A is None else self.owner_A * np.int64(2) + self.is_decode_A

    @cached_property
    def starts_prompt_N(self) -> Bools:
        """True for the first event of each prompt; of several at once, of each session."""
        prompt_N = self.prompt_S[self.step_N]
        return np.concatenate([[True], prompt_N[1:] != prompt_N[:-1]])

    def empties_N(self, keep_warm: bool) -> Bools:
        """True where the cache is emptied before the event: nowhere, or where a prompt starts."""
        return np.zeros(self.num_events, bool) if keep_warm else self.starts_prompt_N

    def require_shares(self, policy: str) -> F32:
        """The attribute `shares_A`.

        Raises:
            InputError: The trace has no router weights, without which `policy` cannot be replayed.
        """
        if self.shares_A is None:
            raise InputError(
                f"policy {policy}: needs router weights, the trace of {self.metadata.model_id} has none; record them "
                "(extract.weights: true), or choose another policy"
            )
        return self.shares_A

    def next_use_A(self, *, within_prompt: bool = False) -> I64:
        """The event that uses each accessed expert next, or NEVER; int64.

        Args:
            within_prompt: Look no further than the prompt, as for a cache that is emptied between prompts.
        """
        next_M = np.full(self.metadata.num_model_experts, NEVER)
        return self.next_use_until(next_M, self.empties_N(not within_prompt), 0)

    def next_use_until(self, next_M: I64, empties_N: Bools, before: int) -> I64:
        """The same for a part of a trace; int64.

        Args:
            next_M: The next use of each expert after these events; changed to that before them.
            empties_N: True where no use is looked for beyond the event's beginning.
            before: Number of the first event.
        """
        return _next_use(self.members_A, self.offsets_N, empties_N, next_M, before)

    def by_step(self, chances_TX: F32, axis: int = 0) -> F32:
        """The probability that a decode step uses something, from those of its tokens: float32 [R, ...].

        `token_S` indexes the result. Tokens of different prompts are taken to be independent of each other, and so are
        those of a block, of which all have the chances of the first: the routing that the others' would need is not
        known when it begins. Where a step has one token, the argument comes back as it is.

        Args:
            chances_TX: float32, probabilities of each token of the trace along `axis`, any further axes.
            axis: The axis of the tokens.
        """
        if self.schedule is None:
            return chances_TX
        if self.in_blocks:
            first_R = self.schedule.tokens_I[self.schedule.offsets_S[:-1][self.is_decode_S]]
            num_tokens_R = self.num_tokens_S[self.is_decode_S]
            shape = [-1 if one == axis else 1 for one in range(chances_TX.ndim)]
            missed = (1 - np.take(chances_TX, first_R, axis=axis)) ** num_tokens_R.reshape(shape)
            return np.asarray(1 - missed, np.float32)
        decodes_I = np.repeat(self.schedule.is_decode_S, self.num_tokens_S)
        num_tokens_R = self.num_tokens_S[self.is_decode_S]
        starts_R = np.cumsum(num_tokens_R) - num_tokens_R
        missed = 1 - np.take(chances_TX, self.schedule.tokens_I[decodes_I], axis=axis)
        return np.asarray(1 - np.multiply.reduceat(missed, starts_R, axis=axis), np.float32)

    def by_prompt(self, values_S: F64) -> F64:
        """Sums of a value of decode steps by prompt: float64 [P]. The tokens of a step share its value evenly.

        Args:
            values_S: float64, milliseconds or any other sum of each step; those of batched prefills are ignored.
        """
        if self.schedule is None:
            decoded_S = np.where(self.is_decode_S, values_S, 0)
            return np.asarray(np.bincount(self.prompt_S, decoded_S, self.num_prompts), np.float64)
        share_I = np.repeat(np.where(self.is_decode_S, values_S, 0) / self.num_tokens_S, self.num_tokens_S)
        return np.asarray(np.bincount(self.schedule.prompt_I, share_I, self.num_prompts), np.float64)

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


def events_of(
    trace: Trace,
    prefill: Prefill = "batched",
    *,
    batch: int = 1,
    waves: bool = False,
    block: int = 1,
    accepted_share: float | None = None,
) -> Events:
    """Group a trace's routing into events, prompts in their order.

    Args:
        trace: A valid trace.
        prefill: Whether a prompt's prefill is one step or its tokens are steps of their own.
        batch: Prompts that run at once.
        waves: Of several at once, begin the next ones only when all have ended: what a cache needs that starts cold.
        block: Tokens that a decode step verifies; a token counts once, however often it is verified.
        accepted_share: Of them, as for `interleaving.verify_blocks`.

    Raises:
        InputError: `batch` or `block` is below 1, both are above it, or a block lacks the accepted share.
    """
    if block != 1 and (batch != 1 or accepted_share is None):
        raise InputError(
            f"block_tokens: {block} with a batch of {batch}; give one of them as 1"
            if batch != 1
            else f"block_tokens: {block}; give accepted_share too, the part of a block's tokens that is kept"
        )
    meta = trace.metadata
    offsets = np.asarray(trace.prompt_offsets)
    lengths_P = np.diff(offsets)
    batched_P = trace.num_prefill_P.astype(np.int64) if prefill == "batched" else np.zeros(trace.num_prompts, np.int64)
    if block == 1:
        schedule = interleave(offsets, batched_P, batch, waves=waves)
    else:
        schedule = verify_blocks(offsets, batched_P, block, accepted_share or 0.0)
    first_S = schedule.tokens_I[schedule.offsets_S[:-1]]
    members_A, user_A, offsets_N = _members(
        np.asarray(trace.experts_TLK), schedule.tokens_I, schedule.offsets_S, meta.num_experts, batch > 1
    )
    num_steps = schedule.num_steps
    single = Events(
        metadata=meta,
        members_A=members_A,
        offsets_N=offsets_N,
        layer_N=np.tile(np.arange(meta.num_layers, dtype=np.int32), num_steps),
        step_N=np.repeat(np.arange(num_steps, dtype=np.int32), meta.num_layers),
        prompt_S=schedule.session_S,
        token_S=np.where(schedule.is_decode_S, first_S, -1),
        prompt_tokens_PF=np.stack([batched_P, lengths_P - batched_P], axis=1),
        shares_A=shares_of(trace, schedule, members_A, offsets_N),
        trace=trace,
    )
    if batch == block == 1:
        return single
    single = replace(
        single,
        token_S=np.where(schedule.is_decode_S, np.cumsum(schedule.is_decode_S) - 1, -1),
        schedule=schedule,
        in_blocks=block != 1,
    )
    if batch == 1:
        return single
    prompt_T = np.empty(trace.num_tokens, np.int32)
    prompt_T[schedule.tokens_I] = schedule.prompt_I
    return replace(single, owner_A=prompt_T[user_A])


def members_of(experts_TK: npt.NDArray[np.integer], layer: int, num_experts: int) -> I32:
    """Members of one event as `events_of` has them, from what the router of a layer chose for a step's tokens: int32.

    Args:
        experts_TK: Ids within the layer.
        layer: Index of the MoE layer.
        num_experts: Experts in each layer.
    """
    num_tokens = len(experts_TK)
    offsets_S = np.array([0, num_tokens], np.int64)
    experts_T1K = np.ascontiguousarray(experts_TK[:, None, :], np.int64)
    members_A, _, _ = _members(experts_T1K, np.arange(num_tokens), offsets_S, num_experts, False)
    return members_A + np.int32(layer * num_experts)


@compiled()
def _members(experts_TLK: Any, tokens_I: I64, offsets_S: I64, num_experts: int, shared: bool) -> tuple[I32, I64, I64]:
    """Members of all events in order of their last use, so that a single token's keep the router's order.

    With `shared`, also the token of each member's last use; otherwise nothing.
    """
    num_layers, top_k = experts_TLK.shape[1], experts_TLK.shape[2]
    most = num_layers * np.minimum(np.diff(offsets_S) * top_k, num_experts).sum()
    members_A = np.empty(most, np.int32)
    user_A = np.empty(most if shared else 0, np.int64)
    num_steps = len(offsets_S) - 1
    offsets_N = np.zeros(num_steps * num_layers + 1, np.int64)
    end = 0
    used_E = np.zeros(num_experts, np.bool_)
    for step in range(num_steps):
        first, last = offsets_S[step], offsets_S[step + 1] - 1
        for layer in range(num_layers):
            base = layer * num_experts
            start = end
            if first == last:
                for slot in range(top_k):
                    members_A[end] = base + experts_TLK[tokens_I[first], layer, slot]
                    end += 1
                if shared:
                    user_A[start:end] = tokens_I[first]
            else:
                used_E[:] = False
                for i in range(last, first - 1, -1):
                    for slot in range(top_k - 1, -1, -1):
                        expert = experts_TLK[tokens_I[i], layer, slot]
                        if not used_E[expert]:
                            used_E[expert] = True
                            members_A[end] = base + expert
                            if shared:
                                user_A[end] = tokens_I[i]
                            end += 1
                members_A[start:end] = members_A[start:end][::-1].copy()
                if shared:
                    user_A[start:end] = user_A[start:end][::-1].copy()
            offsets_N[step * num_layers + layer + 1] = end
    # what is left over was never touched, and takes no memory
    return members_A[:end], user_A[:end], offsets_N


@compiled()
def _next_use(members_A: I32, offsets_N: I64, starts_N: Bools, next_M: I64, before: int) -> I64:
    next_A = np.empty(len(members_A), np.int64)
    for event in range(len(offsets_N) - 2, -1, -1):
        for access in range(offsets_N[event], offsets_N[event + 1]):
            next_A[access] = next_M[members_A[access]]
            next_M[members_A[access]] = before + event
        if starts_N[event]:
            next_M[:] = NEVER
    return next_A
