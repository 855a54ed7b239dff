import numpy as np
import pytest

from moe_beyond.simulator.policies.learned_eviction import LearnedEviction, training_rows
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.policies.literal import literal, misses


def rows_of(trace, horizon):
    events, meta = events_of(trace), trace.metadata
    sizes = (events.num_steps, meta.num_layers, meta.num_model_experts)
    return training_rows(events.members_A, events.offsets_N, events.step_N, *sizes, horizon)


def test_a_row_is_age_and_frequency_and_the_distance_that_came():
    features, distance = rows_of(literal([0, 0, 1, 0, 1, 1], num_experts=3), 2)
    # a row for each expert that was used before, after each token but the last two
    expected = [
        (1, 1, 0.5),  # 0 after the first token: it comes next
        (1, 1, 1.0),  # 0 after the second: it comes after two
        (1 / 2, 1, 0.5),  # 0 after the third
        (1, 1 / 2, 1.0),  # 1
        (1, 1, 1.0),  # 0 after the fourth never comes again
        (1 / 2, 1 / 3, 0.5),  # 1
    ]
    np.testing.assert_allclose(np.column_stack([features, distance]), np.array(expected, np.float32), rtol=1e-6)


def test_learned_eviction():
    # expert 0 comes every second token, the others seldom
    pages = np.where(np.arange(400) % 2 == 0, 0, 1 + np.random.default_rng(0).integers(0, 7, 400))
    trace = literal(pages.tolist(), num_experts=8)
    policy = LearnedEviction.fit(trace, seed=3)
    assert policy.distance_AB[0, -1] < policy.distance_AB[0, 4], "what is used often comes sooner than what is not"
    np.testing.assert_array_equal(LearnedEviction.fit(trace, seed=3).distance_AB, policy.distance_AB)
    # so 0 stays, whatever passes through
    assert sum(misses(policy, trace, 2)[::2]) == 1


def test_the_largest_predicted_distance_is_evicted():
    # by age alone, the older the sooner: the most recent one is evicted
    table = np.tile(np.array([[0.9], [0.5], [0.1]], np.float32), (1, 65))
    trace = literal([0, 1, 2, 0, 1], num_experts=3)
    assert misses(LearnedEviction(table), trace, 2) == [1, 1, 1, 0, 1]
    # and the other way round it is LRU
    assert misses(LearnedEviction(1 - table), trace, 2) == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("seed", range(3))
def test_the_scores_are_what_the_table_says_of_the_past(seed):
    pages = np.random.default_rng(seed).integers(0, 4, 30)
    table = np.random.default_rng(seed).random((9, 65)).astype(np.float32)
    scores_SM = LearnedEviction(table).scores_SM(events_of(literal(pages.tolist(), num_experts=4)))
    for step in range(30):
        count = np.bincount(pages[:step], minlength=4)
        for expert in range(4):
            uses = np.nonzero(pages[:step] == expert)[0]
            most = max(1, count.max())
            if len(uses):
                age = step + 1 - int(uses[-1])
                frequency = int(count[expert] / most * 64 + 0.5)
                assert scores_SM[step, expert] == table[min(age, 9) - 1, frequency]
            used = int(min(1.0, (count[expert] + 1) / most) * 64 + 0.5)
            assert scores_SM[step, 4 + expert] == table[0, used]
