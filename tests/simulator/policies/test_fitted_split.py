from moe_beyond.simulator.policies.fitted_split import LayerLruFitted
from moe_beyond.simulator.policies.on_demand import LayerLru
from tests.simulator.policies.literal import literal, misses


def test_layer_lru_fitted():
    # the first layer never uses an expert twice in a row of eight, the second alternates between two
    tokens = [[token % 8, token % 2] for token in range(16)]
    trace = literal(tokens, num_experts=8)
    policy = LayerLruFitted.fit(trace)
    assert policy.budget(trace.metadata, 4).budget_G[1] >= 2
    # a split by halves serves the second layer just as well, a single slot of it does not
    assert sum(misses(policy, trace, 3)) == 16 + 2
    assert sum(misses(LayerLru(), trace, 3)) == 16 + 16
