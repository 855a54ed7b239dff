"""A replay whose memory does not grow with the trace: events are made and replayed for some tokens at a time.

The counts are those of a replay of the whole trace. A batched prefill is one step and is never cut. A policy must
decide as it runs; for one that knows the future, a first pass from the end finds the uses in later pieces.

Shape suffixes: P prompts, F phases, M experts of the model, G groups that share a budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.policy_inputs import prepare
from moe_beyond.simulator.engine.replay import Cache
from moe_beyond.simulator.engine.results import Replay
from moe_beyond.simulator.engine.usage import NUM_LOSSES
from moe_beyond.simulator.jit import I64, Bools
from moe_beyond.simulator.schedule.events import NEVER, Events, Prefill, events_of
from moe_beyond.traces.columns import most_choices
from moe_beyond.traces.schema import Trace


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of a trace as a trace of their own.

    Attributes:
        trace: Its experts are a view of the whole one's; it has no other columns.
        first_prompt: Index of its first prompt in the whole trace.
        begins: Whether that prompt begins with it, and not in the piece before.
    """

    trace: Trace
    first_prompt: int
    begins: bool


def pieces_of(trace: Trace, prefill: Prefill) -> Iterator[Piece]:
    """Pieces of as many tokens as may be worked on at once, but none that ends within a batched prefill."""
    most, offsets = max(1, most_choices() // trace.metadata.token_cycle), trace.prompt_offsets
    batched_P = trace.num_prefill_P.astype(np.int64) if prefill == "batched" else np.zeros(trace.num_prompts, np.int64)
    start = 0
    while start < trace.num_tokens:
        end = min(start + most, trace.num_tokens)
        first, last = (int(np.searchsorted(offsets, token, side="right")) - 1 for token in (start, end - 1))
        end = max(end, int(offsets[last] + batched_P[last]))
        bounds = np.clip(offsets[first : last + 2], start, end)
        passed = np.maximum(start - offsets[first : last + 1], 0)
        part = replace(
            trace,
            prompt_ids=trace.prompt_ids[first : last + 1],
            domains=trace.domains[first : last + 1],
            held_out_P=trace.held_out_P[first : last + 1],
            prompt_offsets=bounds - start,
            num_prefill_P=np.clip(trace.num_prefill_P[first : last + 1] - passed, 0, np.diff(bounds)).astype(np.int32),
            experts_TLK=trace.experts_TLK[start:end],
            weights_TLK=None,
            token_ids_T=None,
            token_texts=None,
            predicted_TLK=None,
        )
        yield Piece(part, first, start == offsets[first])
        start = end


def decides_as_it_runs(policy: Policy) -> bool:
    """Whether it reads nothing of a trace ahead but an expert's next use, and takes what the router chose."""
    kind = type(policy)
    ahead = (kind.scores_SM, kind.prefetches, kind.changed_demand)
    return (
        ahead == (Policy.scores_SM, Policy.prefetches, Policy.changed_demand)
        and policy.demand is None
        and not policy.needs_weights
        and len(policy.precisions) == 1
    )


def replay_in_pieces(
    trace: Trace,
    policy: Policy,
    budget: Budget,
    *,
    prefill: Prefill = "batched",
    keep_warm: bool = True,
    overrun: bool = False,
    sequential: bool = False,
) -> tuple[Replay, int]:
    """Replay prompts one after another, as `replay.replay` does.

    Args:
        trace: Mapped, if its own memory is to be bounded too.
        policy: One that `decides_as_it_runs`.
        budget: How much the cache holds.
        prefill: Whether a prompt's prefill is one step.
        keep_warm: Keep the cache from one prompt to the next.
        overrun: As for `replay.replay`.
        sequential: Judge every access as an event of its own.

    Returns:
        The counts, without the misses of single events, and how many experts the cache may have held after an event.
    """
    num_prompts, pieces = trace.num_prompts, list(pieces_of(trace, prefill))

    def events_in(some: Sequence[Piece]) -> Iterator[Events]:
        for piece in some:
            events = events_of(piece.trace, prefill)
            yield events.one_by_one() if sequential else events
            trace.forget()

    later = _later_uses(pieces[::-1], events_in(pieces[::-1]), keep_warm) if policy.knows_future else []
    cache: Cache | None = None
    steps = 0
    tokens_PF, most_G = np.zeros((num_prompts, 2), np.int64), budget.budget_G
    for piece, events in zip(pieces, events_in(pieces), strict=True):
        prepared = prepare(events, policy, keep_warm=keep_warm)
        common = prepared.common._replace(
            step_N=prepared.common.step_N + np.int32(steps),
            row_N=prepared.common.row_N + 2 * piece.first_prompt,
            empties_N=_empties_N(piece, events, keep_warm),
        )
        steps += events.num_steps
        if later:
            next_M, before = later.pop()
            common = common._replace(next_use_A=events.next_use_until(next_M, common.empties_N, before))
        cache = cache or Cache(prepared, budget, 2 * num_prompts)
        cache.run(common, prepared.prefetches.just_in_time(events.num_events), overrun=overrun)
        tokens_PF[piece.first_prompt : piece.first_prompt + events.num_prompts] += events.prompt_tokens_PF
        most_G = np.maximum(most_G, budget.most_G(events.members_A, events.offsets_N))
    assert cache is not None  # noqa: S101 - a trace has tokens
    replayed = Replay(
        policy=policy.name,
        capacity_experts=budget.capacity_experts,
        counts_PFC=cache.counts_RC().reshape(num_prompts, 2, -1),
        tokens_PF=tokens_PF,
        misses_N=np.zeros(0, np.int32),
        weight_lost_PFW=np.zeros((num_prompts, 2, NUM_LOSSES)),
    )
    return replayed, budget.in_experts(most_G) if overrun else budget.capacity_experts


def _later_uses(pieces: Sequence[Piece], events_of_each: Iterator[Events], keep_warm: bool) -> list[tuple[I64, int]]:
    """For each piece, from the last one: what comes after it, as `Events.next_use_until` needs it.

    Events are numbered from the end, the last one -1: only their order counts.
    """
    before, found = 0, []
    next_M = np.full(pieces[0].trace.metadata.num_model_experts, NEVER)
    for piece, events in zip(pieces, events_of_each, strict=True):
        before -= events.num_events
        found.append((next_M.copy(), before))
        events.next_use_until(next_M, _empties_N(piece, events, keep_warm), before)
    return found


def _empties_N(piece: Piece, events: Events, keep_warm: bool) -> Bools:
    empties_N = events.empties_N(keep_warm).copy()
    empties_N[0] &= piece.begins
    return empties_N
