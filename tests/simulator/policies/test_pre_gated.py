from moe_beyond.simulator.policies.pre_gated import PreGated
from tests.simulator.policies.literal import replayed
from tests.simulator.strategies import make_trace


def test_pre_gated():
    trace = make_trace(1, num_layers=4, num_experts=6, lengths=(20,), prefill=(0,))
    total = replayed(PreGated(), trace, 24).total
    # the first layer of each token is loaded on demand, all else is foreseen, and nothing is kept: k experts a layer
    assert total.misses == 2 * 20
    assert total.prefetches_useless == 0
    assert total.loads == total.accesses
    # a batched prefill is loaded on demand
    mixed = replayed(PreGated(), make_trace(2, num_layers=3, num_experts=6, lengths=(9,), prefill=(8,)), 18)
    assert (mixed.prefill.prefetches, mixed.decode.prefetches) == (0, 2 * 2)
