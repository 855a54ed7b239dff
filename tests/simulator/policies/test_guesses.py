"""The model's own gates in a replay, and prefetching by what readers of hidden states name."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from moe_beyond.predictor.hidden_baselines import PreAttention
from moe_beyond.predictor.next_gate import NextGate
from moe_beyond.simulator.engine.policy_inputs import prepare
from moe_beyond.simulator.policies.guesses import Guesses, GuessPrefetch
from moe_beyond.simulator.policies.hobbit import Hobbit
from moe_beyond.simulator.policies.next_layer import Fate, MixtralOffloading, NextLayerMap
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.simulator.schedule.prefetches import before, when_routed
from tests.hidden_traces import hidden_trace, without_some
from tests.simulator.policies.literal import replayed

POLICIES = [MixtralOffloading, Fate, Hobbit]


@pytest.fixture(scope="module")
def gate():
    return NextLayerMap.fit(hidden_trace(1, (40,), (0,)))


def listed(requests):
    """Each request as its moment, its event and its experts."""
    return [
        (int(known), int(target), requests.experts_X[a:b].tolist())
        for known, target, (a, b) in zip(requests.known_Q, requests.target_Q, pairwise(requests.offsets_Q), strict=True)
    ]


@pytest.mark.parametrize("kept", [lambda trace: trace, without_some])
@pytest.mark.parametrize("change", [{}, {"batch": 2}])
def test_requests_are_what_the_tokens_of_a_step_name(kept, change):
    trace = kept(hidden_trace(2, (6, 5), (2, 0), num_layers=4))
    guesses = Guesses.of(NextGate.fit(trace), trace, 2)
    assert (guesses.horizon, guesses.experts_HTLW.shape) == (3, (3, trace.num_tokens, 4, 2))
    events = events_of(trace, **change)
    _, tokens_I, offsets_S = events.routed()
    expected = []
    for event in range(events.num_events):
        step, layer = events.step_N[event], int(events.layer_N[event])
        if not events.is_decode_S[step]:
            continue
        tokens = tokens_I[offsets_S[step] : offsets_S[step + 1]]
        for ahead in range(1, 4 - layer):
            named = []
            for place in range(2):
                for token in tokens:
                    expert = int(guesses.experts_HTLW[ahead - 1, token, layer + ahead, place])
                    if expert >= 0 and expert + 8 * (layer + ahead) not in named:
                        named.append(expert + 8 * (layer + ahead))
            if named:
                expected.append((int(when_routed(event)), event + ahead, named))
    assert sorted(listed(guesses.requests(events, 2))) == sorted(expected)


def test_single_accesses_ask_when_all_of_the_layer_is_known():
    trace = hidden_trace(2, (5,), (0,))
    guesses = Guesses.of(NextGate.fit(trace), trace, 2, horizon=1)
    whole, single = (guesses.requests(events, 2) for events in (events_of(trace), events_of(trace).one_by_one()))
    np.testing.assert_array_equal(single.experts_X, whole.experts_X)
    # two accesses a layer: known with the second, for the event that opens the next layer
    np.testing.assert_array_equal(single.known_Q, when_routed(2 * (whole.known_Q // 2) + 1))
    np.testing.assert_array_equal(single.target_Q, 2 * whole.target_Q)


def test_a_pre_attention_head_asks_for_the_layer_itself_ahead_of_it():
    train, trace = hidden_trace(1, (60,), (0,)), hidden_trace(2, (5,), (2,))
    guesses = Guesses.of(PreAttention.fit(train, train, 7), trace, 2)
    requests = guesses.requests(events_of(trace), 2)
    decoded = range(3, 3 + 3 * 3)
    assert requests.target_Q.tolist() == [*decoded]
    assert requests.known_Q.tolist() == [int(before(event)) for event in decoded]


@pytest.mark.parametrize("kind", POLICIES)
def test_a_real_gate_foresees_what_the_routers_choose_where_the_state_does_not_change(kind, gate):
    trace = hidden_trace(3, (30,), (0,), drift=0.0)
    policy = kind(gate)
    total = replayed(policy, trace, 24).total
    # all but the first layer; in a cache of all experts each is fetched once at most
    assert replayed(policy.beside(trace), trace, 6 if kind is not Hobbit else 24).total.prefetches > 0
    real = prepare(events_of(trace), policy, keep_warm=True)
    assert real.policy.gate_kind == "real gate"
    nearest = [one for one in listed(real.prefetches) if one[0] == int(when_routed(one[1] - 1))]
    assert len(nearest) == 2 * 30
    for _, event, experts in nearest:
        token, layer = divmod(event, 3)
        assert sorted(experts) == sorted(8 * layer + trace.experts_TLK[token, layer].astype(int))
    assert total.misses <= 8 * 3


@pytest.mark.parametrize("kind", POLICIES)
def test_the_stand_in_is_used_where_hidden_states_are_missing_and_is_called_so(kind, gate):
    trace = hidden_trace(4, (20, 9), (3, 0), num_layers=3)
    policy, events = kind(gate), events_of(replace(trace, hidden=None))
    bare = prepare(events, policy, keep_warm=True)
    assert bare.policy.gate is gate
    assert policy.gate_kind == "stand-in gate"
    assert policy.beside(replace(trace, hidden=replace(trace.hidden, routers=None))).gate is gate
    some = without_some(trace)
    mixed = prepare(events_of(some), policy, keep_warm=True)
    real = policy.beside(trace).prefetches(events)
    chosen = {(known, target): experts for known, target, experts in listed(mixed.prefetches)}
    whole = {(known, target): experts for known, target, experts in listed(real)}
    stand_in = {(known, target): experts for known, target, experts in listed(bare.prefetches)}
    for (known, target), experts in chosen.items():
        token = events.token_S[events.step_N[target]]
        kept = some.hidden.rows_T[token] >= 0 and events.layer_N[known // 2] in some.hidden.layers
        assert experts == (whole if kept else stand_in)[known, target]
    assert set(stand_in) <= {*chosen}
    assert mixed.policy.gate_kind.startswith("real gate for ")
    assert mixed.policy.gate_kind.endswith(" of layers, else stand-in gate")


def test_hobbit_goes_on_for_as_many_layers_as_its_real_gates_say(gate):
    trace = hidden_trace(5, (9,), (0,), num_layers=6)
    policy = Hobbit(NextLayerMap.fit(trace))
    assert policy.lookahead == 1
    real = policy.beside(trace)
    assert real.lookahead == 4
    requests = real.prefetches(events_of(trace))
    assert {*(requests.target_Q - requests.known_Q // 2).tolist()} == {1, 2, 3, 4}
    assert Hobbit(gate).beside(hidden_trace(5)).lookahead == 2, "three layers have two ahead"


def test_what_is_guessed_does_not_depend_on_what_comes_after(gate):
    trace = hidden_trace(6, (12,), (0,))
    later = trace.hidden.gate_inputs_SYD.copy()
    later[8:] = hidden_trace(7, (12,), (0,)).hidden.gate_inputs_SYD[8:]
    other = replace(trace, hidden=replace(trace.hidden, gate_inputs_SYD=later))
    for policy in (kind(gate) for kind in POLICIES):
        first, second = (listed(policy.beside(one).prefetches(events_of(one))) for one in (trace, other))
        known = [one for one in first if one[0] < before(8 * 3)]
        assert known
        assert known == [one for one in second if one[0] < before(8 * 3)]


def test_prefetching_by_guesses_is_charged_with_what_it_evicts_by():
    trace = hidden_trace(8, (20,), (0,), drift=0.0)
    guesses = Guesses.of(NextGate.fit(trace), trace, 2)
    policy = GuessPrefetch.over(Lru(), "next_gate", guesses, 2, token_ms=0.1, layer_ms=0.02)
    assert (policy.name, policy.predictor, policy.evicted_by) == ("next_gate_prefetch_lru", "next_gate", None)
    assert policy.title == "Next gate: prefetch ahead of each layer, LRU"
    assert (policy.token_step_ms, policy.layer_step_ms) == (0.1, 0.02)
    # the state stays as it is, so that all but the first layer is foreseen
    assert replayed(policy, trace, 6).total.misses <= 2 * 20

    class Ours(Lru):
        name, predictor, token_step_ms = "ours_anticipate", "ours", 0.5

    over_ours = GuessPrefetch.over(Ours(), "next_gate", guesses, 2, token_ms=0.0, layer_ms=0.02)
    assert (over_ours.token_step_ms, over_ours.evicted_by) == (0.5, "ours")
    assert over_ours.title == "Next gate: prefetch ahead of each layer, eviction by the ours"
