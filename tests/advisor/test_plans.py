from dataclasses import replace

import numpy as np
import pytest

from moe_beyond.advisor.one_replay import Setup, replay_one
from moe_beyond.advisor.plans import ANTICIPATE, CacheSize, Fetch, Plan, TrainingData, parse_plan
from moe_beyond.errors import InputError
from moe_beyond.simulator.bounds.split import fit_split, layer_curves_LD
from moe_beyond.simulator.policies.anticipate import Anticipate
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.policies.predictions import Predictions
from moe_beyond.simulator.policies.settings import PolicySettings
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import make_trace
from tests.simulator.study.cases import PartlyRight

TRACE = make_trace(3, num_layers=3, num_experts=6, lengths=(9, 8, 7, 6), prefill=(3, 0, 2, 0))
DATA = TrainingData(make_trace(4, num_layers=3, num_experts=6, lengths=(20, 20), prefill=(0, 0)))
META = TRACE.metadata
FETCH = Fetch(2, 0.25)


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("lru", Plan("lru")),
        ("predictor_anticipate", Plan(ANTICIPATE)),
        ("prefetch_layer_lru", Plan("layer_lru", fetch=FETCH)),
        ("predictor_layer_prefetch_anticipate", Plan(ANTICIPATE, fetch=Fetch(2, 0.25, layers=True))),
        ("next_token_prefetch_lru", Plan("lru", fetch=replace(FETCH, next_token=True))),
        (
            "predictor_next_token_layer_prefetch_anticipate",
            Plan(ANTICIPATE, fetch=Fetch(2, 0.25, layers=True, next_token=True)),
        ),
        ("layer_lru", Plan("layer_lru")),  # a policy of a single layer is no layer step
    ],
)
def test_a_name_stands_for_a_plan(name, plan):
    assert parse_plan(name, FETCH, None) == plan


@pytest.mark.parametrize("name", ["lruu", "prefetch_", "", "prefetch_prefetch_lru"])
def test_an_unknown_name_lists_all_of_them(name):
    message = r"is not known; choose one of belady, .*lru.*anticipate, or prefetch_"
    with pytest.raises(InputError, match=message) as error:
        parse_plan(name, FETCH, None)
    assert len(str(error.value).splitlines()) == 1


def test_what_prefetches_for_the_next_token_prefetches():
    with pytest.raises(InputError, match="'next_token_lru': next_token_ stands before prefetch_ or layer_prefetch_"):
        parse_plan("next_token_lru", FETCH, None)


def test_nothing_is_prefetched_for_the_next_token_by_a_predictor_that_says_nothing_of_it():
    predictions = Predictions(PartlyRight(1.0, name="by chance"), TRACE, events_of(TRACE))
    with pytest.raises(InputError, match="by_chance: says nothing of later tokens"):
        DATA.policy(Plan("lru", fetch=replace(FETCH, next_token=True)), predictions)


def test_the_predictor_predicts_only_what_a_plan_needs(monkeypatch):
    calls = []
    for step in ("probabilities_TLE", "layer_probabilities_HTLE"):
        called = getattr(PartlyRight, step)
        monkeypatch.setattr(PartlyRight, step, lambda *given, s=step, c=called: (calls.append(s), c(*given))[1])
    predictions = Predictions(PartlyRight(1.0, name="by chance"), TRACE, events_of(TRACE), 0.3, 0.05)
    expected = {
        Plan("lru"): ("lru", 0, 0, 0),
        Plan("lru", fetch=FETCH): ("by_chance_prefetch_lru", 0.3, 0, 1),
        Plan(ANTICIPATE): ("by_chance_anticipate", 0.3, 0, 1),
        Plan("lru", fetch=Fetch(2, layers=True)): ("by_chance_layer_prefetch_lru", 0.3, 0.05, 2),
    }
    for plan, facts in expected.items():
        policy = DATA.policy(plan, predictions)
        assert (policy.name, policy.token_step_ms, policy.layer_step_ms, len(calls)) == facts
        if isinstance(policy, Anticipate):
            np.testing.assert_array_equal(policy.popularity_LE, DATA.popularity_LE)


def test_a_plan_without_its_predictor_or_training_data_is_refused():
    for plan in (Plan(ANTICIPATE), Plan("lru", fetch=FETCH)):
        with pytest.raises(InputError, match="need a predictor; name its directory"):
            DATA.policy(plan, None)
    for name in ("static_popularity", "learned_eviction", "moe_infinity"):
        with pytest.raises(InputError, match=f"policy '{name}' learns from other prompts; name a trace of them"):
            TrainingData.none(name, PolicySettings()).policy(Plan(name), None)
    with pytest.raises(InputError, match="learns from other prompts"):
        TrainingData.none("lru", PolicySettings()).budget(Plan("lru", "fitted"), Lru(), META, CacheSize(6))


def test_budgets_follow_the_split():
    def budget_G(split, *size, policy="lru"):
        plan = Plan(policy, split)
        return DATA.budget(plan, DATA.policy(plan, None), META, CacheSize(*size)).budget_G

    assert len(budget_G("shared", 7)) == 1
    assert budget_G("even", 7).tolist() == [3, 2, 2]
    hits_LD = layer_curves_LD(events_of(DATA.trace))
    assert (budget_G("fitted", 7) >= fit_split(META, hits_LD, 7)).all()
    in_bytes = budget_G("fitted", 7500, True)
    assert in_bytes.sum() == 7500
    assert (in_bytes // 1000 >= fit_split(META, hits_LD, 7500, in_bytes=True)).all()
    # a policy that divides the cache its own way keeps it
    assert budget_G("even", 9, policy="fate").tolist() == DATA.fitted("fate").budget(META, 9).budget_G.tolist()
    for size in ((0,), (19,), (999, True)):
        for split in ("shared", "even", "fitted"):
            with pytest.raises(InputError, match=r"capacity|budget"):
                budget_G(split, *size)


def test_one_seed_decides_policies_and_intervals():
    def found(seed):
        return replay_one(TRACE, Setup("random", CacheSize(6), seed=seed))

    assert found(2**24 + 5) == found(2**24 + 5)
    assert found(1)["hits"] != found(2)["hits"]
