"""The advice is measured on prompts that took no part in choosing it, and its numbers are those of plain replays."""

import json
from dataclasses import replace

import numpy as np
import pytest

from moe_beyond.advisor.advice import document
from moe_beyond.advisor.advisor import LEAST_PROMPTS, USUAL, Advisor, Question, advise
from moe_beyond.advisor.plans import Fetch, Plan, Room
from moe_beyond.devices.device import load_device
from moe_beyond.devices.workload import Workload
from moe_beyond.errors import InputError
from moe_beyond.intervals import Interval
from moe_beyond.simulator.engine.timing import timed_replay
from moe_beyond.simulator.policies.on_demand import LayerLru, Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import make_trace
from tests.simulator.study.cases import Knows

PROMPTS = 16
TRACE = make_trace(
    5,
    num_layers=4,
    num_experts=12,
    top_k=2,
    lengths=(24,) * PROMPTS,
    prefill=(4,) * PROMPTS,
    expert_bytes=(4_000_000,) * 4,
)
QUESTION = Question(load_device("laptop_nvme"), Room(14), token_step_ms=0.01, layer_step_ms=0.001, samples=200)

WORKLOAD = Workload.of(TRACE.metadata, QUESTION.lookahead)


@pytest.fixture(scope="module")
def advice():
    return advise(TRACE, QUESTION)


def test_the_halves_share_no_prompt_and_the_quarters_neither():
    advisor = Advisor(TRACE, QUESTION)
    ids = [set(trace.prompt_ids) for trace in (advisor.learn, advisor.choose.trace, advisor.confirm.trace)]
    assert [len(part) for part in ids] == [4, 4, 8]
    assert set().union(*ids) == set(TRACE.prompt_ids)
    assert set(advisor.half.prompt_ids) == ids[0] | ids[1]
    thinned = Advisor(TRACE, replace(QUESTION, max_tokens=200))
    parts = (thinned.learn, thinned.choose.trace, thinned.confirm.trace)
    assert sum(part.num_prompts for part in parts) == LEAST_PROMPTS, "long traces are thinned by whole prompts"


def test_the_fastest_where_it_is_chosen_is_what_is_confirmed_elsewhere(advice):
    assert advice.best.plan == advice.tried[0].plan
    times = [measured.ms_per_token for measured in advice.tried]
    assert times == sorted(times)
    assert advice.runner_up.plan.policy != advice.best.plan.policy
    assert not {measured.plan.policy for measured in advice.tried} & {"belady", "belady_forced"}
    assert len(advice.best.timed.tokens_P) == advice.num_prompts[2] == 8
    assert advice.interval.low <= advice.best.ms_per_token <= advice.interval.high
    assert advice.saved.value == pytest.approx(advice.today.ms_per_token - advice.best.ms_per_token)
    assert advice.saved.low <= advice.saved.value <= advice.saved.high
    assert advice.today.plan in USUAL
    # what engines do today, by a plain replay of the second half
    second_half = TRACE.select(np.arange(1, PROMPTS, 2))
    usual = [
        timed_replay(events_of(second_half), policy, policy.budget(TRACE.metadata, 14), QUESTION.device, workload)
        for policy, workload in ((Lru(), WORKLOAD), (LayerLru(), WORKLOAD))
    ]
    assert advice.today.ms_per_token == pytest.approx(min(timed.ms_per_token for timed in usual))
    # and nothing beats the bound, or all in memory
    assert advice.resident_ms <= advice.bound_ms <= min(advice.best.ms_per_token, advice.runner_up.ms_per_token)
    assert 0 < advice.share_of_bound <= 1


def test_more_memory_never_slows_it_down_much_and_all_of_it_leaves_no_stall(advice):
    assert [more.room.total for more in advice.more_memory] == [round(14 * 1.25), 21, 28, 42]
    assert advice.more_memory[-1].measured.ms_per_token < advice.best.ms_per_token
    (everything,) = advise(TRACE, replace(QUESTION, room=Room(47))).more_memory
    assert everything.room.total == 48


def test_a_predictor_that_knows_wins_and_one_that_is_wrong_is_not_advised():
    knows = advise(TRACE, QUESTION, Knows(1.0))
    assert knows.best.plan.predicts
    assert knows.best.timed.replay.total.hit_rate > 0.9
    # told apart from today's engines by the same prompts
    assert knows.saved.low > 0
    wrong = advise(TRACE, replace(QUESTION, token_step_ms=30.0), Knows(0.0, ahead_right=0.0))
    assert not wrong.best.plan.predicts


def test_widths_and_thresholds_are_searched_for_both_steps_and_each_plan_pays_for_what_it_uses():
    tried = advise(TRACE, QUESTION, Knows(0.8, ahead_right=0.8)).tried
    plans = {measured.plan for measured in tried}
    fetches = {plan.fetch for plan in plans if plan.fetch is not None}
    assert {fetch.layers for fetch in fetches} == {False, True}
    assert {fetch.width for fetch in fetches} >= {1, 2, 3, 4, 6}
    assert {fetch.threshold for fetch in fetches} >= {0.0, 0.3, 0.7}
    assert Plan("anticipate", "fitted") in plans
    assert any(isinstance(plan.fetch, Fetch) and plan.policy == "anticipate" for plan in plans)
    slowdown = QUESTION.device.predictor_slowdown
    for measured in tried:
        layers = measured.plan.fetch is not None and measured.plan.fetch.layers
        assert measured.timed.token_step_ms == pytest.approx(0.01 * slowdown * measured.plan.predicts)
        assert measured.timed.layer_step_ms == pytest.approx(0.001 * slowdown * layers)


def test_policies_that_give_something_up_are_tried_only_when_wanted(advice):
    assert all(measured.timed.replay.total.mass_given_up == 0 for measured in advice.tried)
    lossy = advise(TRACE, replace(QUESTION, lossy=True))
    assert any(measured.timed.replay.total.mass_given_up > 0 for measured in lossy.tried)
    assert {m.plan for m in advice.tried} < {m.plan for m in lossy.tried}
    without = replace(TRACE, weights_TLK=None)
    refused = advise(without, replace(QUESTION, lossy=True)).refused
    assert "router weights" in refused["drop_cold"]


def test_prompts_that_run_together_are_advised_together():
    together = advise(TRACE, replace(QUESTION, batch=3))
    assert together.best.timed.tokens_P.sum() == 8 * 20
    # three tokens share the reading of dense parts
    assert together.resident_ms < advise(TRACE, QUESTION).resident_ms


def test_a_trace_of_prefill_alone_is_replayed_token_by_token():
    prefill_only = replace(TRACE, num_prefill_P=np.full(PROMPTS, 24, np.int32))
    advice = advise(prefill_only, QUESTION)
    assert advice.prefill == "token_by_token"
    assert "prefill alone" in " ".join(document(advice, 5.0)["notes"])


def test_too_few_prompts_and_too_little_memory_are_refused():
    with pytest.raises(InputError, match="trace: 7 prompts with decoded tokens; 8 are the least"):
        advise(TRACE.select(np.arange(7)), QUESTION)
    with pytest.raises(InputError, match="the largest expert of toy has 4000000"):
        advise(TRACE, replace(QUESTION, room=Room(3_999_999, in_bytes=True)))


@pytest.mark.parametrize(
    ("room", "target", "device", "answer"),
    [
        (Room(14), 1.0, {}, "yes"),
        (Room(14), 1e9, {}, "no"),
        (Room(48), 1e9, {}, "not needed"),
        (Room(48), 1.0, {"memory_gib": 0.1}, "no"),
    ],
)
def test_the_verdict_follows_speed_and_memory(room, target, device, answer):
    question = replace(QUESTION, room=room, device=QUESTION.device.model_copy(update=device))
    assert document(advise(TRACE, question), target)["verdict"]["answer"] == answer


def test_between_the_speeds_of_two_budgets_more_memory_is_the_answer(advice):
    faster = 1000 / advice.more_memory[-1].measured.ms_per_token
    found = document(advice, 0.5 * (faster + 1000 / advice.best.ms_per_token))
    assert found["verdict"]["answer"] == "with more memory"
    assert "experts give" in found["verdict"]["reason"]


@pytest.mark.parametrize(
    ("interval", "note"),
    [
        (Interval(2.0, 1.0, 3.0), ""),
        (Interval(0.5, -1.0, 2.0), "take the simpler one"),
        (Interval(-2.0, -3.0, -1.0), "The runner-up is faster on the prompts that confirm"),
    ],
)
def test_a_runner_up_that_is_no_slower_is_said(advice, interval, note):
    notes = " ".join(document(replace(advice, ahead=interval), 5.0)["notes"])
    assert ("runner-up" in notes) == bool(note)
    assert note in notes


def test_the_document_is_json_and_adds_up(advice):
    found = json.loads(json.dumps(document(advice, 5.0), allow_nan=False))
    best = found["best"]
    assert best["tokens_per_second"] == pytest.approx(1000 / best["ms_per_token"])
    assert found["prompts"] == {"learned_on": 4, "chosen_on": 4, "confirmed_on": 8}
    assert found["memory"]["capacity_experts"] == 14
    assert found["memory"]["cache_mib"] == pytest.approx(14 * 4_000_000 / 2**20)
    assert found["memory"]["dense_mib"] == pytest.approx(4 * 2 * 4_000_000 / 2**20)
    assert len(found["tried"]) == len(advice.tried)
    if best["split"] != "shared":
        assert sum(best["slots_per_layer"]) == 14
