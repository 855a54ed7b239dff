"""The compiled loop with a clock against the slow reference, event by event."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.cache import (
    ACCESSES,
    DEMAND_BYTES,
    EVICTIONS,
    HITS,
    NUM_COUNTERS,
    PREFETCH_BYTES,
    PREFETCHES,
    USEFUL,
    USELESS,
)
from moe_beyond.simulator.engine.loop import Run, Times, run
from moe_beyond.simulator.engine.policy import Policy, Prefetches
from moe_beyond.simulator.engine.prepared import Prepared, prepare
from moe_beyond.simulator.engine.usage import HIT, LATE, MISSED, NUM_LOSSES, PREFETCHED
from moe_beyond.simulator.policies.anticipate import MEMORY, PERSISTENCE, Anticipate
from moe_beyond.simulator.policies.on_demand import Fifo, LeastStale, Lfru, Lfu, LfuResident, Lru
from moe_beyond.simulator.policies.static import StaticPopularity
from moe_beyond.simulator.schedule.events import Events, events_of
from moe_beyond.traces.schema import TraceMetadata
from tests.simulator.engine import slow_clock
from tests.simulator.engine.slow_clock import Case, Record, Request
from tests.simulator.strategies import make_trace, traces

RANKS = {**slow_clock.RANKS, "anticipate": slow_clock.anticipate(PERSISTENCE, MEMORY, rarest=1e-3)}
POLICIES: dict[str, type[Policy]] = {
    "lru": Lru,
    "lfu": Lfu,
    "lfu_resident": LfuResident,
    "lfru": Lfru,
    "fifo": Fifo,
    "least_stale": LeastStale,
}
OUTCOMES = {HIT: slow_clock.HIT, PREFETCHED: slow_clock.PREFETCHED, LATE: slow_clock.LATE, MISSED: slow_clock.MISSED}
LONGER_THAN_A_LAYER_MS = 100.0
RANDOMS = st.randoms(use_true_random=True)


# the two sides of the comparison


def events_apart(prepared: Prepared) -> Prepared:
    """The same, with a row of counts for each event instead of each prompt and phase."""
    num_events = prepared.events.num_events
    num_pairs = (num_events + 1) // 2
    return replace(
        prepared,
        events=replace(prepared.events, prompt_tokens_PF=np.zeros((num_pairs, 2), np.int64)),
        common=prepared.common._replace(row_N=np.arange(num_events), row_A=np.zeros(0, np.int64)),
        skipped_RC=np.zeros((2 * num_pairs, NUM_COUNTERS), np.int64),
        weight_lost_RW=np.zeros((2 * num_pairs, NUM_LOSSES)),
    )


def records_of(events: Events, result: Run) -> list[Record]:
    """What the compiled loop says of each event, in the words of the reference."""
    counts_NC = result.replay.counts_PFC.reshape(-1, NUM_COUNTERS)
    records = []
    for n in range(events.num_events):
        outcome_I = result.outcome_A[events.offsets_N[n] : events.offsets_N[n + 1]]
        counts = counts_NC[n].tolist()
        assert counts[EVICTIONS] == result.evictions_N[n]
        assert counts[HITS] == int((outcome_I < MISSED).sum())
        assert result.replay.misses_N[n] == int((outcome_I == MISSED).sum())
        records.append(
            Record(
                outcomes=[OUTCOMES[code] for code in outcome_I.tolist()],
                time_ms=float(result.time_N[n]),
                stall_ms=float(result.stall_N[n]),
                evictions=int(result.evictions_N[n]),
                wasted=int(result.wasted_N[n]),
                demand_bytes=counts[DEMAND_BYTES],
                prefetches=counts[PREFETCHES],
                prefetch_bytes=counts[PREFETCH_BYTES],
                useful=counts[USEFUL],
                useless=counts[USELESS],
            )
        )
    return records


def counts_of(records: list[Record], events: Events) -> npt.NDArray[np.int64]:
    """Sums of the reference's counts by prompt and phase: an access is its prompt's, all else that of its event."""
    counts_RC = np.zeros((2 * events.num_prompts, NUM_COUNTERS), np.int64)
    row_A = iter(events.row_A.tolist())
    for n, (record, row) in enumerate(zip(records, events.row_N.tolist(), strict=True)):
        size = events.metadata.expert_bytes[int(events.layer_N[n])]
        for outcome in record.outcomes:
            of_access, missed = next(row_A), outcome == slow_clock.MISSED
            counts_RC[of_access, ACCESSES] += 1
            counts_RC[of_access, HITS] += not missed
            counts_RC[of_access, DEMAND_BYTES] += size * missed
        found = (record.evictions, record.prefetches, record.useful, record.useless, record.prefetch_bytes)
        counts_RC[row, [EVICTIONS, PREFETCHES, USEFUL, USELESS, PREFETCH_BYTES]] += np.array(found)
    return counts_RC


COUNTED = [ACCESSES, HITS, EVICTIONS, PREFETCHES, USEFUL, USELESS, DEMAND_BYTES, PREFETCH_BYTES]


def same_ms(slow: float, fast: float) -> bool:
    return math.isclose(slow, fast, rel_tol=1e-9, abs_tol=1e-12)


def assert_same(expected: list[Record], actual: list[Record]) -> None:
    for event, (slow, fast) in enumerate(zip(expected, actual, strict=True)):
        assert same_ms(slow.time_ms, fast.time_ms), event
        assert same_ms(slow.stall_ms, fast.stall_ms), event
        assert replace(slow, time_ms=0, stall_ms=0) == replace(fast, time_ms=0, stall_ms=0), event


# what is drawn


@st.composite
def replays(draw: st.DrawFn) -> tuple[Events, bool]:
    """Events of one prompt or of several at once, and whether the cache stays warm."""
    events = events_of(
        draw(traces()),
        prefill=draw(st.sampled_from(["batched", "token_by_token"])),
        batch=draw(st.sampled_from([1, 1, 2, 3])),
        waves=draw(st.booleans()),
    )
    return events, draw(st.booleans())


@st.composite
def budgets(draw: st.DrawFn, meta: TraceMetadata) -> Budget:
    """Of the whole model or of each layer, in slots or bytes; more often small than large."""
    per_layer, share = draw(st.booleans()), draw(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.8]))
    if draw(st.booleans()):
        return Budget.slots(meta, max(1, round(share * meta.num_model_experts)), per_layer=per_layer)
    total, least = sum(meta.expert_bytes) * meta.num_experts, max(meta.expert_bytes)
    return Budget.bytes(meta, max(least, int(share * total)), per_layer=per_layer)


def draw_policy(rank: str, events: Events, random: Random, *, bypass: bool) -> Policy:
    """A policy that evicts by the rank of this name."""
    meta, draw = events.metadata, np.random.default_rng(random.randrange(2**32))
    policy: Policy
    if rank == "anticipate":
        popularity_LE = draw.uniform(0, 0.9, (meta.num_layers, meta.num_experts)).astype(np.float32)
        policy = Anticipate("drawn", events.by_step(draw_chances(events, random)), popularity_LE)
    elif rank == "static":
        # few values, so that some are equal
        policy = StaticPopularity(draw.integers(0, 3, meta.num_model_experts).astype(np.float32))
    else:
        policy = POLICIES[rank]()
    object.__setattr__(policy, "bypass", bypass)  # some are frozen
    return policy


def draw_chances(events: Events, random: Random, *more: int) -> npt.NDArray[np.float32]:
    """Probabilities of each token, layer and expert, in eighths: some are equal, and their products are exact."""
    meta, num_tokens = events.metadata, int(events.prompt_tokens_PF.sum())
    draw = np.random.default_rng(random.randrange(2**32))
    eighths = draw.integers(0, 9, (*more, num_tokens, meta.num_layers, meta.num_experts))
    return (eighths / 8).astype(np.float32)


# requests of any kind, and times that add up without rounding


def draw_requests(events: Events, random: Random) -> list[Request]:
    """Requests for events of the same step or less than L events ahead; many for one event, some that name no expert.

    Experts and priorities are in no order.
    """
    meta, steps = events.metadata, events.step_N.tolist()
    requests = []
    for _ in range(random.randint(0, 3 * events.num_events)):
        event = random.randrange(events.num_events)
        first = min(steps.index(steps[event]), max(0, event - meta.num_layers + 1))
        experts = random.sample(range(meta.num_experts), random.randint(1, meta.num_experts))
        experts = [int(events.layer_N[event]) * meta.num_experts + expert for expert in experts]
        experts = [] if random.random() < 0.1 else experts
        # eighths are exact in 32 bits, and some are equal
        priorities = [random.randint(0, 5) / 8 for _ in experts]
        requests.append(Request(random.randint(2 * first, 2 * event), event, experts, priorities))
    return requests


def in_order(request):
    """The expert of the highest priority first, of equal ones as they are listed."""
    order = sorted(range(len(request.experts)), key=lambda place: -request.priorities[place])
    experts, priorities = ([of[place] for place in order] for of in (request.experts, request.priorities))
    return replace(request, experts=experts, priorities=priorities)


def prefetches_of(events: Events, requests: list[Request]) -> Prefetches:
    """What the compiled loop takes."""
    if not requests:
        return Prefetches.none()
    return Prefetches.from_requests(
        events,
        np.array([request.known for request in requests]),
        np.array([request.event for request in requests]),
        np.array([len(request.experts) for request in requests]),
        np.array([expert for request in requests for expert in request.experts], np.int64),
        priorities_X=np.array([priority for request in requests for priority in request.priorities], np.float32),
    )


def draw_times(events: Events, random: Random) -> Times:
    """Quarters of a millisecond; some times are 0, some longer than a layer."""
    meta = events.metadata
    size_M = np.repeat(meta.expert_bytes, meta.num_experts) / 100

    def quarters(*most: int) -> npt.NDArray[np.float64]:
        limit = random.choice(most)
        return np.array([random.randint(0, limit) / 4 for _ in range(events.num_events)])

    return Times(
        transfer_VM=random.choice([0.0, 0.25, 0.5, 1.0, 2.0, 4.0, LONGER_THAN_A_LAYER_MS]) * size_M[None],
        read_VM=random.choice([0.0, 0.25, 0.5, 1.0]) * size_M[None],
        token_step_N=quarters(0, 4, 20),
        layer_step_N=quarters(0, 4, 20, 60),
        dense_N=quarters(0, 4, 12, 40),
    )


@pytest.mark.parametrize("ranks", [sorted(slow_clock.RANKS), ["anticipate"]], ids=["past", "predicted"])
@given(data=st.data(), random=RANDOMS)
@settings(max_examples=1200, deadline=None)
def test_drawn_requests_equal_the_slow_reference(ranks, data, random):
    events, keep_warm = data.draw(replays())
    budget, rank = data.draw(budgets(events.metadata)), data.draw(st.sampled_from(ranks))
    bypass, overrun = data.draw(st.booleans()), data.draw(st.booleans())
    lookahead = data.draw(st.integers(0, events.metadata.num_layers))
    policy = draw_policy(rank, events, random, bypass=bypass)
    prepared = prepare(events, policy, keep_warm=keep_warm)
    drawn, times = draw_requests(events, random), draw_times(events, random)

    requests = slow_clock.within(list(map(in_order, drawn)), lookahead)
    expected = slow_clock.replay(
        Case(
            events, budget, RANKS[rank], requests, keep_warm, policy.scores_SM(events).tolist(), bypass, overrun, times
        )
    )

    prefetches = prefetches_of(events, drawn).within(events, lookahead)
    assert_same(expected, records_of(events, run(events_apart(prepared), prefetches, budget, times, overrun=overrun)))
    counted = run(prepared, prefetches, budget, times, overrun=overrun).replay.counts_PFC.reshape(-1, NUM_COUNTERS)
    np.testing.assert_array_equal(counts_of(expected, events)[:, COUNTED], counted[:, COUNTED])


# rules that few drawn cases reach


def test_a_request_protects_its_expert_also_after_a_prefetch_that_was_cancelled():
    # three layers of one event each, and a cache of one slot
    trace = make_trace(0, num_layers=3, num_experts=2, top_k=1, lengths=(1,), prefill=(0,))
    events = events_of(trace)
    wanted = int(events.members_A[2])
    other = 4 + 5 - wanted
    # a prefetch of `wanted` is under way when the second event's expert takes the slot; ahead of the third one it comes
    # again, and `other` must not take its place
    requests = [Request(1, 2, [wanted], [1.0]), Request(2, 2, [wanted, other], [1.0, 1.0])]
    times = Times(np.full((1, 6), 2.0), np.zeros((1, 6)), np.array([0.0, 1, 0]), np.zeros(3), np.array([0.0, 0, 10]))
    prepared, budget = prepare(events, Lru(), keep_warm=True), Budget.slots(trace.metadata, 1)
    expected = slow_clock.replay(Case(events, budget, RANKS["lru"], requests, times=times))
    assert expected[2].outcomes == [slow_clock.PREFETCHED]
    prefetches = prefetches_of(events, requests)
    assert_same(expected, records_of(events, run(events_apart(prepared), prefetches, budget, times)))
