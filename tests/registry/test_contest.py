from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from moe_beyond.devices.device import load_device
from moe_beyond.errors import InputError
from moe_beyond.predictor.latency import Latency
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.registry.contest import Contestant, latencies, score
from moe_beyond.registry.settings import PublishSettings
from moe_beyond.simulator.study.settings import SimulateSettings
from tests.simulator.strategies import truth_TLE
from tests.traces_of_chance import chance_trace

SETTINGS = PublishSettings(capacity=0.25, latency_repeats=10)
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
