"""What must hold of every policy that has a name."""

import inspect
import re
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_beyond.errors import InputError
from moe_beyond.simulator.bounds.belady import Belady
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.cache import ACCESSES, HITS
from moe_beyond.simulator.engine.policy_inputs import prepare
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies import catalogue
from moe_beyond.simulator.policies.settings import PolicySettings
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import make_trace

SMALL = PolicySettings(matrices=4, maps=8, speculative_loads=1)
of_one_shape = partial(make_trace, num_layers=3, num_experts=8, top_k=3)
NAMES = [*sorted(catalogue.known()), "pinned_lru_2", "swap_2", "warm_lru_2"]
SEVERAL_SIZES = ("hobbit", "mc", "mote")


def trace_of(seed, lengths=(9, 1, 12), prefill=(4, 0, 0)):
    return of_one_shape(seed, lengths=lengths, prefill=prefill)


@pytest.fixture(scope="module")
def policies():
    training = of_one_shape(100, lengths=(30, 20, 25, 3), prefill=(10, 0, 25, 1))
    return {name: catalogue.build(name, training, SMALL) for name in NAMES}


def is_lossy(policy, events):
    return policy.demand is not None or policy.changed_demand(events) is not None


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_bears_the_name_that_it_is_known_by_and_says_where_it_comes_from(policies, name):
    assert policies[name].name == name
    kind = type(policies[name])
    documentation = f"{inspect.getdoc(kind)} {inspect.getdoc(inspect.getmodule(kind))}"
    published = re.search(r"arXiv \d{4}\.\d{5}|issue \d+|github\.com/|Journal|MoTE|MC#", documentation)
    textbook = {"lru", "layer_lru", "lfu", "layer_lfu", "lfu_resident", "fifo", "random"}
    assert published or name in textbook or kind.__module__.endswith(".engines")


def test_every_policy_has_a_test_or_a_case_of_its_name():
    written = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert not [name for name in NAMES if not re.search(rf'^def test_{name}\(|^    "{name}": \(', written, re.M)]


def test_every_policy_is_described():
    described = (Path(__file__).parents[3] / "docs" / "policies.md").read_text()
    heads = " ".join(re.findall(r"^\*\*(.+?)\*\*", described, re.M))
    assert not [name for name in NAMES if f"`{name}`" not in heads]


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**16), capacity=st.integers(3, 24), keep_warm=st.booleans())
@settings(max_examples=8)
def test_a_replay_counts_every_access_once_the_same_each_time_and_moves_no_less_than_belady(
    policies, name, seed, capacity, keep_warm
):
    policy, trace = policies[name], trace_of(seed)
    events, budget = events_of(trace), policy.budget(trace.metadata, capacity)
    first, again = (replay(events, policy, budget, keep_warm=keep_warm) for _ in range(2))
    np.testing.assert_array_equal(first.counts_PFC, again.counts_PFC)
    np.testing.assert_array_equal(first.weight_lost_PFW, again.weight_lost_PFW)
    total = first.total
    assert total.accesses == events.num_accesses
    assert total.hits + total.misses + total.skipped + total.substituted == total.accesses
    assert total.misses == first.misses_N.sum()
    # nothing is evicted that was not kept first
    assert total.evictions <= total.loads
    assert (first.counts_PFC[..., HITS] <= first.counts_PFC[..., ACCESSES]).all()
    assert total.bytes_moved <= total.loads * max(trace.metadata.expert_bytes)
    if is_lossy(policy, events):
        return
    # what keeps the model's outputs moves no less than Belady
    assert first.weight_lost_PFW.sum() == 0
    bound = replay(events, Belady(), Budget.slots(trace.metadata, capacity), keep_warm=keep_warm).total
    assert total.loads >= bound.loads
    assert total.hits <= bound.hits or total.prefetches


# pre_gated does not use the whole cache, and hobbit loads an expert again at another precision
@pytest.mark.parametrize("name", sorted({*NAMES} - {"pre_gated", "hobbit"}))
def test_in_a_cache_that_holds_the_model_each_expert_is_loaded_once(policies, name):
    policy, trace = policies[name], trace_of(7)
    total = replay(events_of(trace), policy, policy.budget(trace.metadata, 24)).total
    assert total.evictions == 0
    assert total.loads <= 24


@pytest.mark.parametrize("name", NAMES)
def test_what_a_policy_requests_is_known_by_then_and_is_of_the_event_s_layer(policies, name):
    events = events_of(trace_of(3))
    requests = prepare(events, policies[name], keep_warm=True).prefetches
    assert (np.diff(requests.known_Q) >= 0).all()
    assert (requests.known_Q <= 2 * requests.target_Q).all()
    assert (events.step_N[requests.known_Q // 2] == events.step_N[requests.target_Q]).all()
    target_X = np.repeat(requests.target_Q, np.diff(requests.offsets_Q))
    np.testing.assert_array_equal(requests.experts_X // 8, events.layer_N[target_X])
    for start, end in pairwise(requests.offsets_Q):
        assert len(set(requests.experts_X[start:end].tolist())) == end - start
        assert (np.diff(requests.priorities_X[start:end]) <= 0).all()


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(("belady", "pre_gated"))])
@given(seed=st.integers(0, 2**16), cut=st.integers(1, 12))
@settings(max_examples=6)
def test_no_policy_depends_on_what_comes_after(policies, name, seed, cut):
    """The last `cut` tokens of the last prompt are routed otherwise: nothing known before them may change."""
    policy, trace = policies[name], trace_of(seed)
    changed = trace.experts_TLK.copy()
    changed[-cut:] = trace_of(seed + 1).experts_TLK[-cut:]
    other = events_of(replace(trace, experts_TLK=changed))
    events = events_of(trace)
    first = events.num_events - cut * 3
    requests, others = (prepare(e, policy, keep_warm=True).prefetches for e in (events, other))
    # until the first changed layer has been routed
    upto, upto_other = (int(np.searchsorted(a.known_Q, 2 * first, side="right")) for a in (requests, others))
    assert upto == upto_other
    np.testing.assert_array_equal(requests.target_Q[:upto], others.target_Q[:upto])
    last = requests.offsets_Q[upto]
    np.testing.assert_array_equal(requests.experts_X[:last], others.experts_X[:last])
    scores_SM, other_SM = policy.scores_SM(events), policy.scores_SM(other)
    steps = slice(0, events.num_steps - cut + 1) if len(scores_SM) > 1 else slice(None)
    np.testing.assert_array_equal(scores_SM[steps], other_SM[steps])
    budget = policy.budget(trace.metadata, 6)
    misses_N, other_N = (replay(e, policy, budget).misses_N for e in (events, other))
    np.testing.assert_array_equal(misses_N[:first], other_N[:first])


@pytest.mark.parametrize("name", NAMES)
def test_lossy_policies_need_weights_and_say_what_they_gave_up(policies, name):
    policy, trace = policies[name], trace_of(11)
    events = events_of(trace)
    if not is_lossy(policy, events):
        assert not policy.needs_weights
        return
    replayed = replay(events, policy, policy.budget(trace.metadata, 12))
    assert 0 < replayed.decode.mass_given_up <= 1 + 1e-9
    if name not in ("seer_moe", "mc", "mote"):
        # those change the model itself; all others give a batched prefill what its router wants
        assert replayed.prefill.mass_given_up == 0
    without = events_of(replace(trace, weights_TLK=None))
    with pytest.raises(InputError, match=rf"policy {name}: needs router weights, the trace of toy has none"):
        replay(without, policy, Budget.slots(trace.metadata, 6))


@pytest.mark.parametrize("name", NAMES)
def test_several_prompts_at_once_and_single_accesses_are_counted_too(policies, name):
    """Steps of several tokens, and the sequential mode, are the same to a policy in another shape."""
    policy, trace = policies[name], trace_of(13)
    blocks = events_of(trace, block=3, accepted_share=0.7)
    batches = events_of(trace, batch=2), events_of(trace, batch=3, waves=True)
    for events in (*batches, blocks, events_of(trace).one_by_one()):
        by_token = policy.demand is not None or policy.decides_by_token
        skips = events.in_blocks and policy.changed_demand(events) is not None and name not in ("mc", "mote")
        if skips or (policy.needs_weights and (by_token or events.schedule is None)):
            with pytest.raises(InputError, match=rf"policy {name}: decides"):
                replay(events, policy, policy.budget(trace.metadata, 9))
            continue
        total = replay(events, policy, policy.budget(trace.metadata, 9), keep_warm=False).total
        assert total.accesses == events.num_accesses
        assert total.hits + total.misses + total.skipped + total.substituted == total.accesses
        assert total.prefetches == total.prefetches_useful + total.prefetches_useless


def test_an_unknown_policy_and_one_that_would_learn_from_missing_weights_are_refused():
    with pytest.raises(InputError, match=r"policy 'lur' is not known; choose one of belady, .*lru.*"):
        catalogue.build("lur", trace_of(0), SMALL)
    with pytest.raises(InputError, match="policy mobile: needs router weights, the training trace of toy has none"):
        catalogue.build("mobile", replace(trace_of(0), weights_TLK=None), SMALL)


def test_random_policies_follow_the_runs_seed_unless_they_have_their_own():
    for chosen, seed in ((PolicySettings(), 7), (PolicySettings(seed=3), 3)):
        assert catalogue.build("random", trace_of(0), chosen.of_seed(7)).seed == seed
