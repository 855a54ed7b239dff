"""The compiled loops against the slow reference, event by event; with a clock and without."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_beyond.simulator.bounds.belady import Belady, BeladyForced
from moe_beyond.simulator.engine import cache
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.cache import NUM_COUNTERS
from moe_beyond.simulator.engine.policy import Prefetches
from moe_beyond.simulator.engine.policy_inputs import prepare
from moe_beyond.simulator.engine.replay import sweep_prepared
from moe_beyond.simulator.engine.timed_loop import Misses, Pages, Times, just_in_time, run
from moe_beyond.simulator.engine.usage import MISSED, NUM_LOSSES, PREFETCHED
from moe_beyond.simulator.policies.anticipate import MEMORY, PERSISTENCE, Anticipate
from moe_beyond.simulator.policies.on_demand import Fifo, LeastStale, Lfru, Lfu, LfuResident, Lru
from moe_beyond.simulator.policies.static import StaticPopularity
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.engine import slow_clock
from tests.simulator.engine.slow_clock import Case, Record, Request
from tests.simulator.strategies import make_trace, traces

PREDICTED = {
    "anticipate": slow_clock.anticipate(PERSISTENCE, MEMORY, rarest=1e-3),
    "anticipate_later": slow_clock.anticipate_later,
}
RANKS = {**slow_clock.RANKS, **PREDICTED}
POLICIES = {policy.name: policy for policy in (Lru, Lfu, LfuResident, Lfru, Fifo, LeastStale, Belady, BeladyForced)}
OF_ACCESSES = [cache.ACCESSES, cache.HITS, cache.DEMAND_BYTES]
OF_PREFETCHES = [cache.PREFETCHES, cache.PREFETCH_BYTES, cache.USEFUL, cache.USELESS]
COUNTED = [*OF_ACCESSES, cache.EVICTIONS, *OF_PREFETCHES]
LONGER_THAN_A_LAYER_MS = 100.0
RANDOMS = st.randoms(use_true_random=True)


# the two sides of the comparison


def events_apart(prepared):
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


def records_of(events, result):
    """What the compiled loop says of each event, in the words of the reference."""
    counts_NC = result.replay.counts_PFC.reshape(-1, NUM_COUNTERS)
    for n in range(events.num_events):
        outcome_I = result.outcome_A[events.offsets_N[n] : events.offsets_N[n + 1]]
        assert counts_NC[n, cache.EVICTIONS] == result.evictions_N[n]
        assert counts_NC[n, cache.HITS] == (outcome_I < MISSED).sum()
        assert result.replay.misses_N[n] == (outcome_I == MISSED).sum()
        counts = counts_NC[n, [cache.DEMAND_BYTES, *OF_PREFETCHES]].tolist()
        times, evicted = (result.time_N[n], result.stall_N[n]), (result.evictions_N[n], result.wasted_N[n])
        yield Record(outcome_I.tolist(), *times, *evicted, *counts)


def counts_of(records, events):
    """Sums of the reference's counts by prompt and phase: an access is its prompt's, all else that of its event."""
    counts_RC = np.zeros((2 * events.num_prompts, NUM_COUNTERS), np.int64)
    row_A = iter(events.row_A.tolist())
    for n, (record, row) in enumerate(zip(records, events.row_N.tolist(), strict=True)):
        size = events.metadata.expert_bytes[int(events.layer_N[n])]
        for outcome in record.outcomes:
            missed = outcome == MISSED
            counts_RC[next(row_A), OF_ACCESSES] += np.array([1, not missed, size * missed])
        found = (record.evictions, record.prefetches, record.prefetch_bytes, record.useful, record.useless)
        counts_RC[row, [cache.EVICTIONS, *OF_PREFETCHES]] += np.array(found)
    return counts_RC


def assert_counted(expected, events, *replays):
    for found in replays:
        counts_RC = found.counts_PFC.reshape(-1, NUM_COUNTERS)
        np.testing.assert_array_equal(counts_of(expected, events)[:, COUNTED], counts_RC[:, COUNTED])


def assert_same(expected, actual):
    for event, (slow, fast) in enumerate(zip(expected, actual, strict=True)):
        for name in ("time_ms", "stall_ms"):
            assert math.isclose(getattr(slow, name), getattr(fast, name), rel_tol=1e-9, abs_tol=1e-12), (event, name)
        assert replace(slow, time_ms=0, stall_ms=0) == replace(fast, time_ms=0, stall_ms=0), event


# what is drawn


@st.composite
def cases(draw, ranks):
    """A replay without requests and times, of one prompt or of several at once; and its policy."""
    events = events_of(
        draw(traces()),
        prefill=draw(st.sampled_from(["batched", "token_by_token"])),
        batch=draw(st.sampled_from([1, 1, 2, 3])),
        waves=draw(st.booleans()),
    )
    keep_warm, bypass, overrun = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    name = draw(st.sampled_from(ranks))
    policy = draw_policy(name, events, draw(RANDOMS), bypass=bypass)
    belady = slow_clock.belady(events, keep_warm=keep_warm)
    case = Case(events, draw(budgets(events.metadata)), RANKS.get(name, belady), (), keep_warm)
    ahead = [] if policy.ahead_HTLE is None else policy.ahead_HTLE.tolist()
    scores = policy.scores_SM(events).tolist()
    return replace(case, scores=scores, scores_ahead=ahead, bypass=bypass, overrun=overrun), policy


@st.composite
def budgets(draw, meta):
    """Of the whole model or of each layer, in slots or bytes; more often small than large."""
    per_layer, share = draw(st.booleans()), draw(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.8]))
    if draw(st.booleans()):
        return Budget.slots(meta, max(1, round(share * meta.num_model_experts)), per_layer=per_layer)
    total, least = sum(meta.expert_bytes) * meta.num_experts, max(meta.expert_bytes)
    return Budget.bytes(meta, max(least, int(share * total)), per_layer=per_layer)


def draw_policy(rank, events, random, *, bypass):
    """A policy that evicts by the rank of this name."""
    meta, draw = events.metadata, np.random.default_rng(random.randrange(2**32))
    if rank in PREDICTED:
        popularity_LE = draw.uniform(0, 0.9, (meta.num_layers, meta.num_experts)).astype(np.float32)
        # eighths: some are equal, and their products are exact
        eighths = draw.integers(0, 9, (int(events.prompt_tokens_PF.sum()), meta.num_layers, meta.num_experts))
        later_TLE = events.by_step((eighths[::-1] / 8).astype(np.float32)) if rank == "anticipate_later" else None
        ahead_HTLE = np.stack([np.roll(eighths, 1, axis=2), np.roll(eighths, 3, axis=0)]) / 8
        policy = Anticipate(
            "drawn",
            events.by_step((eighths / 8).astype(np.float32)),
            popularity_LE,
            later_TLE=later_TLE,
            ahead_HTLE=events.by_step(ahead_HTLE.astype(np.float32), axis=1) if random.random() < 0.5 else None,
        )
    elif rank == "static":
        # few values, so that some are equal
        policy = StaticPopularity(draw.integers(0, 3, meta.num_model_experts).astype(np.float32))
    else:
        policy = POLICIES[rank]()
    object.__setattr__(policy, "bypass", bypass)  # some are frozen
    return policy


# requests of any kind, and times that add up without rounding


def draw_requests(events, random):
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


def prefetches_of(events, requests):
    """What the compiled loop takes."""
    if not requests:
        return Prefetches.none()
    known, event = (np.array([getattr(request, name) for request in requests]) for name in ("known", "event"))
    counts = np.array([len(request.experts) for request in requests])
    experts = np.array([expert for request in requests for expert in request.experts], np.int64)
    priorities = np.array([priority for request in requests for priority in request.priorities], np.float32)
    return Prefetches.from_requests(events, known, event, counts, experts, priorities_X=priorities)


def draw_times(events, random):
    """Quarters of a millisecond; some times are 0, some longer than a layer."""
    meta = events.metadata
    size_M = np.repeat(meta.expert_bytes, meta.num_experts) / 100

    def quarters(*most):
        limit = random.choice(most)
        return np.array([random.randint(0, limit) / 4 for _ in range(events.num_events)])

    transfer_VM = random.choice([0.0, 0.25, 0.5, 1.0, 2.0, 4.0, LONGER_THAN_A_LAYER_MS]) * size_M[None]
    misses = Misses(
        load_VM=random.choice([transfer_VM, transfer_VM / 2, np.full_like(transfer_VM, np.inf)]),
        cpu_VM=random.choice([0.25, 1.0, 4.0]) * size_M[None],
        admit_VM=random.choice([0.0, 0.25]) * size_M[None],
        layer_ms=random.choice([0.0, 1.5]),
        overlap=random.random() < 0.5,
    )
    page_bytes_VM = np.rint(size_M[None] * 100).astype(np.int64)
    # a read from the page cache takes half, a quarter or none of the time; the cache keeps nothing, some, or all
    saves_VM = random.choice([0.5, 0.75, 1.0]) * np.minimum(transfer_VM, transfer_VM / 2)
    pages = Pages(saves_VM, page_bytes_VM, int(random.choice([0, 0.2, 0.5, 1]) * page_bytes_VM.sum()))
    only_load = misses._replace(load_VM=transfer_VM, cpu_VM=np.full_like(transfer_VM, np.inf))
    return Times(
        transfer_VM=transfer_VM,
        misses=random.choice([None, None, only_load, misses]),
        read_VM=random.choice([0.0, 0.25, 0.5, 1.0]) * size_M[None],
        token_step_N=quarters(0, 4, 20),
        layer_step_N=quarters(0, 4, 20, 60),
        dense_N=quarters(0, 4, 12, 40),
        tokens_N=random.choice([None, quarters(0, 4, 20)]),
        pages=random.choice([None, pages]),
    )


@pytest.mark.parametrize("ranks", [sorted(slow_clock.RANKS), sorted(PREDICTED)], ids=["past", "predicted"])
@given(data=st.data(), random=RANDOMS)
@settings(max_examples=1200, deadline=None)
def test_drawn_requests_equal_the_slow_reference(ranks, data, random):
    case, policy = data.draw(cases(ranks))
    events, budget, prepared = case.events, case.budget, prepare(case.events, policy, keep_warm=case.keep_warm)
    lookahead = data.draw(st.integers(0, events.metadata.num_layers))
    drawn, times = draw_requests(events, random), draw_times(events, random)
    requests = slow_clock.within(list(map(in_order, drawn)), lookahead)
    expected = slow_clock.replay(replace(case, requests=requests, times=times))
    prefetches, rules = prefetches_of(events, drawn).within(events, lookahead), {"overrun": case.overrun}
    assert_same(expected, records_of(events, run(events_apart(prepared), prefetches, budget, times, **rules)))
    assert_counted(expected, events, run(prepared, prefetches, budget, times, **rules).replay)


@pytest.mark.parametrize("ranks", [["belady", "belady_forced"], [*RANKS]], ids=["future", "others"])
@given(data=st.data(), random=RANDOMS)
@settings(max_examples=400, deadline=None)
def test_without_a_clock_the_last_requests_hold_as_in_the_slow_reference(ranks, data, random):
    """By the loop without a clock, and by the one with a clock where loading takes no time."""
    case, policy = data.draw(cases(ranks))
    events = case.events
    drawn = [] if isinstance(policy, Belady | BeladyForced) else draw_requests(events, random)
    requests = slow_clock.ahead_of_each(slow_clock.last_of_each(events, map(in_order, drawn)))
    expected = slow_clock.replay(replace(case, requests=requests))
    prepared = prepare(events, policy, keep_warm=case.keep_warm)
    prepared = replace(prepared, prefetches=prefetches_of(events, drawn))
    (plain,) = sweep_prepared(prepared, [case.budget], overrun=case.overrun)
    general = run(prepared, just_in_time(prepared), case.budget, Times.none(prepared), overrun=case.overrun).replay
    assert_counted(expected, events, plain, general)
    assert plain.misses_N.tolist() == general.misses_N.tolist() == [one.outcomes.count(MISSED) for one in expected]


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
    assert expected[2].outcomes == [PREFETCHED]
    prefetches = prefetches_of(events, requests)
    assert_same(expected, records_of(events, run(events_apart(prepared), prefetches, budget, times)))
