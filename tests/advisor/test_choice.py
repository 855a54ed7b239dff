"""The advice is measured on prompts that took no part in choosing it, and its numbers are those of plain replays."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moe_beyond.advisor.choice import LEAST_PROMPTS, USUAL, AdviceSettings, Advisor, advise
from moe_beyond.advisor.document import document
from moe_beyond.advisor.plans import CacheSize, Plan
from moe_beyond.devices.device import load_device
from moe_beyond.devices.workload import Workload
from moe_beyond.errors import InputError
from moe_beyond.intervals import Interval
from moe_beyond.simulator.engine.timing import timed_replay
from moe_beyond.simulator.policies.on_demand import LayerLru, Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import make_trace
from tests.simulator.study.cases import PartlyRight

PROMPTS = 16
TOKENS: dict[str, Any] = {"lengths": (24,) * PROMPTS, "prefill": (4,) * PROMPTS}
TRACE = make_trace(5, num_layers=4, num_experts=12, expert_bytes=(4_000_000,) * 4, **TOKENS)
LAPTOP = load_device("laptop_nvme")
SETTINGS = AdviceSettings(LAPTOP, CacheSize(14), token_step_ms=0.01, layer_step_ms=0.001, samples=200)
WORKLOAD = Workload.of(TRACE.metadata, SETTINGS.lookahead)


@pytest.fixture(scope="module")
def advice():
    return advise(TRACE, SETTINGS)


def test_the_halves_share_no_prompt_and_the_quarters_neither():
    advisor = Advisor(TRACE, SETTINGS)
    ids = [set(trace.prompt_ids) for trace in (advisor.fit, advisor.choose.trace, advisor.confirm.trace)]
    assert [len(part) for part in ids] == [4, 4, 8]
    assert set().union(*ids) == set(TRACE.prompt_ids)
    assert set(advisor.half.prompt_ids) == ids[0] | ids[1]
    thinned = Advisor(TRACE, replace(SETTINGS, max_tokens=200))
    parts = (thinned.fit, thinned.choose.trace, thinned.confirm.trace)
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
        timed_replay(events_of(second_half), policy, policy.budget(TRACE.metadata, 14), SETTINGS.device, WORKLOAD)
        for policy in (Lru(), LayerLru())
    ]
    assert advice.today.ms_per_token == pytest.approx(min(timed.ms_per_token for timed in usual))
    # and nothing beats the bound, or all in memory
    fastest = min(advice.best.ms_per_token, advice.runner_up.ms_per_token)
    assert advice.bound.compute_ms_per_token <= advice.bound.ms_per_token <= fastest
    assert 0 < advice.share_of_bound <= 1


def test_more_memory_is_faster_and_never_more_than_the_model(advice):
    assert [size.total for size in advice.more_memory] == [round(14 * 1.25), 21, 28, 42]
    assert list(advice.more_memory.values())[-1].ms_per_token < advice.best.ms_per_token
    assert [*advise(TRACE, replace(SETTINGS, size=CacheSize(47))).more_memory] == [CacheSize(48)]


def test_a_predictor_that_is_right_wins_and_one_that_is_wrong_is_not_advised():
    right = advise(TRACE, SETTINGS, PartlyRight(1.0))
    assert right.best.plan.predicts
    assert right.best.timed.replay.total.hit_rate > 0.9
    # told apart from today's engines by the same prompts
    assert right.saved.low > 0
    wrong = advise(TRACE, replace(SETTINGS, token_step_ms=30.0), PartlyRight(0.0, ahead_right=0.0))
    assert not wrong.best.plan.predicts


def test_widths_and_thresholds_are_searched_for_both_steps_and_each_plan_pays_for_what_it_uses():
    tried = advise(TRACE, SETTINGS, PartlyRight(0.8, ahead_right=0.8)).tried
    plans = {measured.plan for measured in tried}
    fetches = [plan.fetch for plan in plans if plan.fetch is not None]
    tried_of = {name: {getattr(fetch, name) for fetch in fetches} for name in ("layers", "width", "threshold")}
    assert tried_of["layers"] == {False, True}
    assert tried_of["width"] >= {1, 2, 3, 4, 6}
    assert tried_of["threshold"] >= {0.0, 0.3, 0.7}
    assert Plan("anticipate", "fitted") in plans
    assert any(plan.fetch is not None and plan.policy == "anticipate" for plan in plans)
    slowdown = SETTINGS.device.predictor_slowdown
    for measured in tried:
        layers = measured.plan.fetch is not None and measured.plan.fetch.layers
        assert measured.timed.token_step_ms == pytest.approx(0.01 * slowdown * measured.plan.predicts)
        assert measured.timed.layer_step_ms == pytest.approx(0.001 * slowdown * layers)


def test_plans_that_change_the_outputs_are_tried_only_where_that_is_allowed(advice):
    lossy = advise(TRACE, replace(SETTINGS, lossy=True))
    assert {m.plan for m in advice.tried} < {m.plan for m in lossy.tried}
    for name, changes in {
        "pre_gated": lambda measured: measured.needs_another_router,
        "drop_cold": lambda measured: measured.timed.replay.total.mass_given_up > 0,
    }.items():
        assert not any(map(changes, advice.tried))
        assert name in {measured.plan.policy for measured in lossy.tried if changes(measured)}
        plan = next(measured for measured in lossy.tried if measured.plan.policy == name)
        (note,) = [note for note in document(replace(lossy, best=plan), 5.0)["notes"] if "The best plan" in note][:1]
        assert ("choose its experts a layer earlier" in note) == (name == "pre_gated")
        assert ("loses router weight" in note) == (name == "drop_cold")
    without = replace(TRACE, weights_TLK=None)
    assert "router weights" in advise(without, replace(SETTINGS, lossy=True)).not_tried["drop_cold"]


def test_prompts_that_run_together_are_advised_together(advice):
    together = advise(TRACE, replace(SETTINGS, batch=3))
    assert together.best.timed.tokens_P.sum() == 8 * 20
    # three tokens share the reading of dense parts
    assert together.bound.compute_ms_per_token < advice.bound.compute_ms_per_token


def test_a_trace_of_prefill_alone_is_replayed_token_by_token():
    prefill_only = replace(TRACE, num_prefill_P=np.full(PROMPTS, 24, np.int32))
    advice = advise(prefill_only, SETTINGS)
    assert advice.prefill == "token_by_token"
    assert "prefill alone" in " ".join(document(advice, 5.0)["notes"])


def test_too_few_prompts_and_too_little_memory_are_refused():
    with pytest.raises(InputError, match=r"^7 prompts with decoded tokens; 8 are the least"):
        advise(TRACE.select(np.arange(7)), SETTINGS)
    with pytest.raises(InputError, match="the largest expert of toy has 4000000"):
        advise(TRACE, replace(SETTINGS, size=CacheSize(3_999_999, in_bytes=True)))


@pytest.mark.parametrize(
    ("size", "target", "device", "answer"),
    [
        (CacheSize(14), 1.0, {}, "yes"),
        (CacheSize(14), 1e9, {}, "no"),
        (CacheSize(48), 1e9, {}, "not needed"),
        (CacheSize(48), 1.0, {"memory_gib": 0.1}, "no"),
    ],
)
def test_the_verdict_follows_speed_and_memory(size, target, device, answer):
    settings = replace(SETTINGS, size=size, device=SETTINGS.device.model_copy(update=device))
    assert document(advise(TRACE, settings), target)["verdict"]["answer"] == answer


def test_between_the_speeds_of_two_budgets_more_memory_is_the_answer(advice):
    faster = 1000 / list(advice.more_memory.values())[-1].ms_per_token
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


def test_plans_keep_their_budget_unless_told_otherwise(advice):
    assert not any("are held" in note for note in document(advice, 5.0)["notes"])
    overrun = advise(TRACE, replace(SETTINGS, overrun=True))
    split = next(one for one in overrun.tried if one.plan == Plan("layer_lru", "even"))
    plain = next(one for one in advice.tried if one.plan == split.plan)
    assert split.timed.replay.total.hits > plain.timed.replay.total.hits
    assert overrun.best.ms_per_token >= overrun.bound.ms_per_token
    assert document(overrun, 5.0)["settings"]["overrun"]


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


def test_each_plan_is_told_of_as_it_is_timed():
    told: list[str] = []
    found = advise(TRACE, replace(SETTINGS, samples=100), tell=told.append)
    assert len([words for words in told if words.endswith(" the last")]) >= len(found.tried)
    assert "0 plans timed, lru is fitted" in told
