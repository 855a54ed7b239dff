import numpy as np
import pytest

from moe_beyond.advisor.plans import ANTICIPATE, Fetch, Lessons, Plan, Room, budget_of, parse_plan, policy_of
from moe_beyond.errors import InputError
from moe_beyond.simulator.bounds.split import fit_split, layer_curves_LD
from moe_beyond.simulator.policies.anticipate import Anticipate
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.policies.predictions import Predictions
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import make_trace

TRACE = make_trace(3, num_layers=3, num_experts=6, lengths=(9, 8, 7, 6), prefill=(3, 0, 2, 0))
TRAINING = make_trace(4, num_layers=3, num_experts=6, lengths=(20, 20), prefill=(0, 0))
META = TRACE.metadata
FETCH = Fetch(2, 0.25)


class Drawn:
    """A predictor that draws its predictions and counts its calls."""

    name = "drawn by lot"
    horizon = 2

    def __init__(self):
        self.calls = []

    def probabilities_TLE(self, trace):
        self.calls.append("token")
        return np.random.default_rng(0).random((trace.num_tokens, 3, 6), np.float32)

    def layer_probabilities_HTLE(self, trace):
        self.calls.append("layer")
        return np.random.default_rng(1).random((2, trace.num_tokens, 3, 6), np.float32)


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("lru", Plan("lru")),
        ("anticipate", Plan(ANTICIPATE)),
        ("predictor_anticipate", Plan(ANTICIPATE)),
        ("prefetch_layer_lru", Plan("layer_lru", fetch=FETCH)),
        ("predictor_layer_prefetch_anticipate", Plan(ANTICIPATE, fetch=Fetch(2, 0.25, layers=True))),
        # a policy of a single layer is no layer step
        ("layer_lru", Plan("layer_lru")),
    ],
)
def test_a_name_stands_for_a_plan(name, plan):
    assert parse_plan(name, FETCH, None) == plan


@pytest.mark.parametrize("name", ["lruu", "prefetch_", "", "prefetch_prefetch_lru"])
def test_an_unknown_name_lists_all_of_them(name):
    with pytest.raises(
        InputError, match=r"is not known; choose one of belady, .*lru.*anticipate, or prefetch_"
    ) as error:
        parse_plan(name, FETCH, None)
    assert len(str(error.value).splitlines()) == 1


def test_the_predictor_predicts_only_what_a_plan_needs():
    predictor = Drawn()
    predictions = Predictions(predictor, TRACE, events_of(TRACE), 0.3, 0.05)
    lessons = Lessons(TRAINING)
    assert isinstance(policy_of(Plan("lru"), lessons, predictions), Lru)
    assert predictor.calls == []
    policy = policy_of(Plan("lru", fetch=FETCH), lessons, predictions)
    assert policy.name == "drawn_by_lot_prefetch_lru"
    assert predictor.calls == ["token"]
    assert (policy.token_step_ms, policy.layer_step_ms) == (0.3, 0)
    both = policy_of(Plan("lru", fetch=Fetch(2, layers=True)), lessons, predictions)
    assert (both.token_step_ms, both.layer_step_ms) == (0.3, 0.05)
    assert predictor.calls == ["token", "layer"]
    evicts = policy_of(Plan(ANTICIPATE), lessons, predictions)
    assert (evicts.token_step_ms, evicts.layer_step_ms) == (0.3, 0)
    assert isinstance(evicts, Anticipate)
    np.testing.assert_array_equal(evicts.popularity_LE, lessons.popularity_LE)


def test_a_plan_without_its_predictor_is_refused():
    for plan in (Plan(ANTICIPATE), Plan("lru", fetch=FETCH)):
        with pytest.raises(InputError, match="need a predictor; name its directory"):
            policy_of(plan, Lessons(TRAINING), None)


@pytest.mark.parametrize("name", ["static_popularity", "learned_eviction", "moe_infinity"])
def test_what_learns_needs_training_prompts(name):
    with pytest.raises(InputError, match=f"policy '{name}' learns from other prompts; name a trace of them"):
        policy_of(Plan(name), Lessons.none(name), None)
    with pytest.raises(InputError, match="learns from other prompts"):
        budget_of(Plan("lru", "fitted"), Lru(), Lessons.none("lru"), META, Room(6))


def test_budgets_follow_the_split():
    lessons = Lessons(TRAINING)
    assert len(budget_of(Plan("lru"), Lru(), lessons, META, Room(7)).budget_G) == 1
    assert budget_of(Plan("lru", "even"), Lru(), lessons, META, Room(7)).budget_G.tolist() == [3, 2, 2]
    fitted = budget_of(Plan("lru", "fitted"), Lru(), lessons, META, Room(7)).budget_G
    assert (fitted >= fit_split(META, layer_curves_LD(events_of(TRAINING)), 7)).all()
    in_bytes = budget_of(Plan("lru", "fitted"), Lru(), lessons, META, Room(7500, in_bytes=True)).budget_G
    assert in_bytes.sum() == 7500
    assert (in_bytes // 1000 >= fit_split(META, layer_curves_LD(events_of(TRAINING)), 7500, in_bytes=True)).all()
    for room in (Room(0), Room(19), Room(999, in_bytes=True)):
        for split in ("shared", "even", "fitted"):
            with pytest.raises(InputError, match=r"capacity|budget"):
                budget_of(Plan("lru", split), Lru(), lessons, META, room)


def test_a_policy_that_deals_its_own_shares_keeps_them():
    lessons = Lessons(TRAINING)
    plan = Plan("fate", "even")
    shares_L = budget_of(plan, policy_of(plan, lessons, None), lessons, META, Room(9)).budget_G
    assert shares_L.tolist() == policy_of(plan, lessons, None).budget(META, 9).budget_G.tolist()
    assert shares_L[0] > shares_L[2]
