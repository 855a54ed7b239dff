"""The gate: what a contestant costs and hits, and who becomes champion."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.devices.device import load_device
from moe_beyond.errors import InputError
from moe_beyond.intervals import Ratio
from moe_beyond.predictor.latency import Latency
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.registry.gate import improvement, judge, metrics, table
from moe_beyond.registry.gate_replays import Contestant, Score, latencies, score
from moe_beyond.registry.settings import PublishSettings
from moe_beyond.simulator.study.settings import SimulateSettings
from tests.simulator.strategies import truth_TLE
from tests.traces_of_chance import chance_trace

SETTINGS = PublishSettings(capacity=0.25, latency_repeats=10, bootstrap_samples=200)
AT_ONCE = Latency(0.0, 0.0, 0.0)
SPLITS = {"gate_in_domain": chance_trace(8, seed=5)}


def fixed(predicted, **layer_step):
    """Predicts what a function of the trace gives."""
    return SimpleNamespace(name="fixed", probabilities_TLE=predicted, **layer_step)


def nothing_TLE(trace):
    return 0 * truth_TLE(trace)


def scored(predictor, latency=AT_ONCE, splits=SPLITS, **simulate):
    settings = SimulateSettings().model_copy(update=simulate)
    return score(Contestant("challenger", None, predictor, latency), splits, SETTINGS, settings)


def ms(found):
    return found.pooled("ms_per_token").value


def test_foresight_beats_ignorance_and_is_charged_for_its_time_on_the_device():
    foresight, slow = (scored(fixed(truth_TLE), latency) for latency in (AT_ONCE, Latency(2.0, 0.0, 0.0)))
    ignorant = scored(fixed(lambda trace: 1 - truth_TLE(trace)))
    assert ms(foresight) < ms(ignorant)
    assert foresight.pooled("recall_at_k").value == 1
    assert foresight.pooled("hit_rate").value > ignorant.pooled("hit_rate").value
    charged_ms = 2.0 * load_device(SETTINGS.device).predictor_slowdown
    assert slow.latency == Latency(charged_ms, 0.0, 0.0)
    # while the predictor works its prefetches have not begun: no more than its own time is lost
    assert 0 < ms(slow) - ms(foresight) <= charged_ms + 1e-9


def test_the_layer_step_is_judged_too_and_charged_for_every_layer():
    token_step = fixed(nothing_TLE)
    both_steps = fixed(nothing_TLE, layer_probabilities_HTLE=lambda trace: truth_TLE(trace)[None])
    token_alone, both, slow = (
        # experts as small as traced arrive within a layer's time
        scored(predictor, Latency(0.0, layer_step_ms, 0.0), prefetch_threshold=0.5, timed_expert_mib=None)
        for predictor, layer_step_ms in ((token_step, 0.0), (both_steps, 0.0), (both_steps, 0.5))
    )
    assert both.pooled("hit_rate").value > token_alone.pooled("hit_rate").value
    assert ms(both) < min(ms(token_alone), ms(slow))
    assert both.pooled("recall_at_k").value == token_alone.pooled("recall_at_k").value
    assert both.pooled("layer_recall_at_k").value == 1


def test_tokens_of_all_prompts_are_counted_once_in_batches_too():
    (trace,) = SPLITS.values()
    decoded = trace.num_tokens - trace.num_prefill_P.sum()
    found, together = (scored(fixed(truth_TLE), splits={"a": trace, "b": trace}, batch=batch) for batch in (1, 4))
    for one in (found, together):
        assert one.pooled("ms_per_token").denominator_P.sum() == 2 * decoded
    # what several tokens of a step share is loaded once
    assert ms(together) != ms(found)
    assert ms(found) == pytest.approx(found.splits["a"]["ms_per_token"].value)
    assert found.worst_domain[0] == "a"


def test_prefill_alone_has_no_decoded_tokens_to_time():
    trace = chance_trace(4)
    prefill = replace(trace, num_prefill_P=np.diff(trace.prompt_offsets).astype(np.int32))
    with pytest.raises(InputError, match=r"set simulate\.prefill to token_by_token"):
        scored(fixed(truth_TLE), splits={"a": prefill})


def test_each_is_charged_what_its_bundle_says_or_what_it_takes_here_where_that_is_more(exported, monkeypatch):
    predictors = [OnnxPredictor(exported[0]) for _ in range(2)]
    charge = predictors[0].charge
    # measured alternately, three rounds: the fastest counts
    times = iter([9.0, 3.0, 7.0, 2.0, 8.0, 1e-6])
    monkeypatch.setattr(OnnxPredictor, "token_step_ms", lambda self, repeats: next(times))
    monkeypatch.setattr(OnnxPredictor, "layer_step_ms", lambda self, repeats: charge.layer_step_ms / 2)
    assert [one.token_step_ms for one in latencies(predictors, 10)] == [7.0, charge.token_step_ms]
    times = iter([1.0] * 6)
    assert {one.layer_step_ms for one in latencies(predictors, 10)} == {charge.layer_step_ms}


def drawn_score(name="challenger", *, faster=0.0, hits=0.5, latency_ms=0.1, worse_abroad=0.0, prompts=40, seed=3):
    """Milliseconds vary by prompt, the same for every contestant of a seed, and `faster` takes a share of them off."""
    splits = {}
    for number, split in enumerate(("gate_in_domain", "gate_out_of_domain")):
        rng = np.random.default_rng(seed + number)
        tokens_P = rng.integers(5, 30, prompts).astype(float)
        rates = {"hit_rate": hits - worse_abroad * number, "recall_at_k": 0.8, "layer_recall_at_k": 0.85}
        splits[split] = {name: Ratio(rate * tokens_P, tokens_P) for name, rate in rates.items()}
        splits[split]["ms_per_token"] = Ratio(tokens_P * rng.normal(10, 2, prompts) * (1 - faster), tokens_P)
    return Score(name, None, Latency(latency_ms, latency_ms / 20, 0.01), splits)


def test_without_a_champion_the_first_becomes_it_unless_it_is_too_slow():
    assert judge(drawn_score(), None, SETTINGS, 1).outcome == "first"
    slow = judge(drawn_score(latency_ms=6.0), None, SETTINGS, 1)
    assert (slow.outcome, slow.moves_champion) == ("refused", False)
    assert slow.reasons[0] == "fails: a token step takes at most 5 ms (found 6, limit 5)"


def test_a_faster_challenger_wins_and_the_interval_is_paired():
    verdict = judge(drawn_score(faster=0.02), drawn_score("champion"), SETTINGS, 1)
    assert verdict.outcome == "promoted"
    # every prompt is faster by the same share: paired, no doubt remains, though prompts differ by tens of per cent
    assert [verdict.improvement.low, verdict.improvement.high] == pytest.approx([0.02, 0.02])


def test_each_rule_alone_refuses_and_names_itself():
    champion = drawn_score("champion")
    for challenger, words in [
        (drawn_score(faster=0.004), "ms_per_token improves by more than 0.50%"),
        (drawn_score(faster=0.02, worse_abroad=0.02), "worst domain (gate_out_of_domain) loses at most 1.0%"),
        (drawn_score(faster=0.02, latency_ms=5.1), "a token step takes at most 5 ms"),
    ]:
        verdict = judge(challenger, champion, SETTINGS, 1)
        assert (verdict.outcome, [check.passed for check in verdict.checks].count(False)) == ("refused", 1)
        (failed,) = [reason for reason in verdict.reasons if reason.startswith("fails: ")]
        assert words in failed


def test_a_gain_that_some_prompts_do_not_share_must_outweigh_its_doubt():
    champion, noisy = drawn_score("champion", prompts=10), drawn_score(prompts=10)
    rng = np.random.default_rng(0)
    for split in noisy.splits.values():
        ratio = split["ms_per_token"]
        split["ms_per_token"] = Ratio(ratio.numerator_P * rng.normal(0.98, 0.3, 10), ratio.denominator_P)
    verdict = judge(noisy, champion, SETTINGS, 1)
    assert verdict.improvement.low < SETTINGS.margin < verdict.improvement.high
    assert verdict.outcome == "refused"


@given(faster=st.floats(-0.5, 0.5), metric=st.sampled_from(["ms_per_token", "recall_at_k", "hit_rate"]))
def test_improvement_is_none_against_itself_and_of_the_sign_of_the_gain(faster, metric):
    settings = PublishSettings(bootstrap_samples=100, metric=metric)
    mine, theirs = drawn_score(faster=faster, hits=0.5 * (1 + faster)), drawn_score("champion")
    same = improvement(theirs, theirs, settings, 1)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    expected = 0.0 if metric == "recall_at_k" else faster
    assert improvement(mine, theirs, settings, 1).value == pytest.approx(expected, abs=1e-12)


def test_a_champion_without_a_single_hit_gives_no_share_to_gain():
    settings = PublishSettings(bootstrap_samples=100, metric="hit_rate")
    with pytest.raises(InputError, match="the champion's hit_rate is 0"):
        judge(drawn_score(hits=0.1), drawn_score("champion", hits=0.0), settings, 1)


def test_the_table_and_the_metrics_hold_both_sides_and_every_split():
    scores = [drawn_score(faster=0.02), drawn_score("champion")]
    rows = table(scores, SETTINGS, 1)
    assert rows.group_by("contestant").len()["len"].to_list() == [14, 14]
    all_rows = rows.filter(split="all", metric="ms_per_token")
    assert (all_rows["low"] < all_rows["value"]).all()
    found = metrics(judge(*scores, SETTINGS, 1), scores)
    assert found["moves_champion"] == 1
    assert found["challenger"]["ms_per_token"] == pytest.approx(0.98 * found["champion"]["ms_per_token"])
    assert found["champion"]["worst_domain_hit_rate"] == 0.5
