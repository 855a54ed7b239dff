from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies.pre_gated import PreGated
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import make_trace


def test_pre_gated():
    trace = make_trace(1, num_layers=4, num_experts=6, lengths=(20,), prefill=(0,))
    policy, events = PreGated(), events_of(trace)
    total = replay(events, policy, policy.budget(trace.metadata, 24)).total
    # the first layer of each token is loaded on demand, all else is foreseen, and nothing is kept: k experts a layer
    assert total.misses == 2 * 20
    assert total.prefetches_useless == 0
    assert total.loads == events.num_accesses
    assert "Changes the model" in (PreGated.__doc__ or "")


def test_a_batched_prefill_is_loaded_on_demand():
    trace = make_trace(2, num_layers=3, num_experts=6, lengths=(9,), prefill=(8,))
    policy, events = PreGated(), events_of(trace)
    replayed = replay(events, policy, policy.budget(trace.metadata, 18))
    assert replayed.prefill.prefetches == 0
    assert replayed.decode.prefetches == 2 * 2
