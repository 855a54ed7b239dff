from dataclasses import replace

import numpy as np
import pytest

from moe_beyond.devices.device import load_device
from moe_beyond.errors import InputError
from moe_beyond.predictor.latency import Latency
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.registry.contest import Contestant, latencies, score
from moe_beyond.registry.settings import PublishSettings
from moe_beyond.simulator.study.settings import SimulateSettings
from tests.traces_of_chance import chance_trace

SETTINGS = PublishSettings(capacity=0.25, latency_repeats=10)
SIMULATE = SimulateSettings()
AT_ONCE = Latency(0.0, 0.0, 0.0)


class Fixed:
    """Predicts what it is told to."""

    name = "fixed"

    def __init__(self, told):
        self.probabilities_TLE = told


def knowing(trace):
    probabilities = np.zeros((trace.num_tokens, trace.metadata.num_layers, trace.metadata.num_experts), np.float32)
    np.put_along_axis(probabilities, trace.experts_TLK.astype(np.int64), 1.0, axis=2)
    return probabilities


def test_foresight_beats_ignorance_and_is_charged_for_its_time():
    splits = {"gate_in_domain": chance_trace(8, seed=5)}
    foresight = score(Contestant("challenger", None, Fixed(knowing), AT_ONCE), splits, SETTINGS, SIMULATE)
    slow = score(Contestant("challenger", None, Fixed(knowing), Latency(2.0, 0.0, 0.0)), splits, SETTINGS, SIMULATE)
    ignorant = score(Contestant("champion", "1", Fixed(lambda t: 1 - knowing(t)), AT_ONCE), splits, SETTINGS, SIMULATE)
    ms = [s.pooled("ms_per_token").value for s in (foresight, ignorant, slow)]
    assert ms[0] < ms[1]
    assert foresight.pooled("recall_at_k").value == 1
    assert foresight.pooled("hit_rate").value > ignorant.pooled("hit_rate").value
    # while the predictor works, its prefetches have not begun: no more than its own time on the device is lost
    assert slow.latency.token_step_ms == 2.0 * load_device(SETTINGS.device).predictor_slowdown
    assert 0 < ms[2] - ms[0] <= slow.latency.token_step_ms + 1e-9


def nothing(trace):
    return np.zeros_like(knowing(trace))


class Layered(Fixed):
    """Predicts nothing ahead of a token, and of the layers after each router what it is told."""

    def __init__(self, told):
        super().__init__(nothing)
        self.layer_probabilities_HTLE = lambda trace: told(trace)[None]


def test_the_layer_step_is_judged_too_and_charged_for_every_layer():
    splits = {"gate_in_domain": chance_trace(8, seed=5)}
    # experts as small as traced arrive within a layer's time
    only_probable = SIMULATE.model_copy(update={"prefetch_threshold": 0.5, "timed_expert_mib": None})
    token_alone, both, slow = (
        score(Contestant("challenger", None, predictor, latency), splits, SETTINGS, only_probable)
        for predictor, latency in (
            (Fixed(nothing), AT_ONCE),
            (Layered(knowing), AT_ONCE),
            (Layered(knowing), Latency(0.0, 0.5, 0.0)),
        )
    )
    assert both.pooled("hit_rate").value > token_alone.pooled("hit_rate").value
    assert both.pooled("ms_per_token").value < min(
        token_alone.pooled("ms_per_token").value, slow.pooled("ms_per_token").value
    )
    assert both.pooled("recall_at_k").value == token_alone.pooled("recall_at_k").value
    assert both.pooled("layer_recall_at_k").value == 1


def test_several_prompts_at_once_are_replayed_as_in_the_simulate_stage():
    splits = {"gate_in_domain": chance_trace(8, seed=5)}
    foresight = Contestant("challenger", None, Layered(knowing), AT_ONCE)
    alone, together = (
        score(foresight, splits, SETTINGS, SIMULATE.model_copy(update={"batch": batch})) for batch in (1, 4)
    )
    # what several tokens of a step share is loaded once
    assert together.pooled("ms_per_token").value != alone.pooled("ms_per_token").value
    assert together.pooled("ms_per_token").denominator_P.sum() == alone.pooled("ms_per_token").denominator_P.sum()


def test_tokens_of_all_prompts_are_counted_once():
    trace = chance_trace(8, seed=5)
    found = score(Contestant("challenger", None, Fixed(knowing), AT_ONCE), {"a": trace, "b": trace}, SETTINGS, SIMULATE)
    decoded = trace.num_tokens - trace.num_prefill_P.sum()
    assert found.pooled("ms_per_token").denominator_P.sum() == 2 * decoded
    assert found.pooled("ms_per_token").value == pytest.approx(found.splits["a"]["ms_per_token"].value)
    assert found.worst_domain[0] == "a"


def test_prefill_alone_has_no_decoded_tokens_to_time():
    trace = chance_trace(4)
    prefill = replace(trace, num_prefill_P=np.diff(trace.prompt_offsets).astype(np.int32))
    with pytest.raises(InputError, match=r"set simulate\.prefill to token_by_token"):
        score(Contestant("challenger", None, Fixed(knowing), AT_ONCE), {"a": prefill}, SETTINGS, SIMULATE)


def test_what_is_charged_is_never_below_what_the_bundle_says(exported):
    predictor = OnnxPredictor(exported[0])
    times = latencies([predictor, predictor], 10)
    assert len(times) == 2
    for time in times:
        assert predictor.charge.token_step_ms <= time.token_step_ms < 50
        assert predictor.charge.layer_step_ms <= time.layer_step_ms < time.token_step_ms
