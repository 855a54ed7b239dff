"""Sets chosen for whole prompts: two tasks, one of which uses experts 0 to 2, the other 3 to 5."""

import numpy as np

from moe_beyond.simulator.policies.prompt_sets import EMoe, PreMoe
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.policies.literal import literal, misses

FIRST, SECOND = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0], [3, 4, 5, 3, 4, 5, 3, 4, 5, 3]


def prompts(*tasks):
    return literal([page for task in tasks for page in task], num_experts=6, lengths=(10,) * len(tasks))


def test_emoe():
    policy = EMoe.fit(prompts(*[FIRST] * 12, *[SECOND] * 10))
    trace = prompts(*[SECOND] * 9)
    sets_SM = policy.scores_SM(events_of(trace))
    # four prompts by what all training prompts use, then by the ten nearest to the four before
    assert (sets_SM[:40, :3] > sets_SM[:40, 3:]).all()
    assert (sets_SM[40:, :3] == 0).all()
    assert (sets_SM[40:, 3:] > 0.2).all()
    # from then on the set is loaded at its first use and stays
    assert sum(misses(policy, trace, 3)[43:]) == 0
    assert sum(misses(policy, trace, 3)[:40]) > 0


def test_pre_moe():
    policy = PreMoe.fit(prompts(*[FIRST] * 12, *[SECOND] * 8))
    scores_SM = policy.scores_SM(events_of(prompts(SECOND, FIRST)))
    # popularity until eight tokens have been routed, then the pattern of the prompt's own task
    np.testing.assert_array_equal(scores_SM[:8], np.tile(policy.popularity_M, (8, 1)))
    assert (scores_SM[8:10, 3:] > scores_SM[8:10, :3]).all()
    np.testing.assert_array_equal(scores_SM[10:18], np.tile(policy.popularity_M, (8, 1)))
    assert (scores_SM[18:, :3] > scores_SM[18:, 3:]).all()
