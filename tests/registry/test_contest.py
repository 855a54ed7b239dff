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


def scored(predictor, latency=AT_ONCE, simulate=SIMULATE, trace=None):
    splits = {"gate_in_domain": trace or chance_trace(8, seed=5)}
    return score(Contestant("challenger", None, predictor, latency), splits, SETTINGS, simulate)


def value(found, metric):
    return found.pooled(metric).value


def test_foresight_beats_ignorance_and_is_charged_for_its_time():
    foresight, ignorant = scored(Fixed(knowing)), scored(Fixed(lambda trace: 1 - knowing(trace)))
    slow = scored(Fixed(knowing), Latency(2.0, 0.0, 0.0))
    assert value(foresight, "ms_per_token") < value(ignorant, "ms_per_token")
    assert value(foresight, "recall_at_k") == 1
    assert value(foresight, "hit_rate") > value(ignorant, "hit_rate")
    # while the predictor works, its prefetches have not begun: no more than its own time on the device is lost
    assert slow.latency.token_step_ms == 2.0 * load_device(SETTINGS.device).predictor_slowdown
    assert 0 < value(slow, "ms_per_token") - value(foresight, "ms_per_token") <= slow.latency.token_step_ms + 1e-9


def nothing(trace):
    return np.zeros_like(knowing(trace))


class Layered(Fixed):
    """Predicts nothing ahead of a token, and of the layers after each router what it is told."""

    def __init__(self, told):
        super().__init__(nothing)
        self.layer_probabilities_HTLE = lambda trace: told(trace)[None]


def test_the_layer_step_is_judged_too_and_charged_for_every_layer():
    # experts as small as traced arrive within a layer's time
    only_probable = SIMULATE.model_copy(update={"prefetch_threshold": 0.5, "timed_expert_mib": None})
    token_alone, both = (scored(predictor, simulate=only_probable) for predictor in (Fixed(nothing), Layered(knowing)))
    slow = scored(Layered(knowing), Latency(0.0, 0.5, 0.0), only_probable)
    assert value(both, "hit_rate") > value(token_alone, "hit_rate")
    assert value(both, "ms_per_token") < min(value(token_alone, "ms_per_token"), value(slow, "ms_per_token"))
    assert value(both, "recall_at_k") == value(token_alone, "recall_at_k")
    assert value(both, "layer_recall_at_k") == 1


def test_decoded_tokens_of_all_prompts_are_counted_once_also_where_several_run_at_once():
    trace = chance_trace(8, seed=5)
    contestant = Contestant("challenger", None, Layered(knowing), AT_ONCE)
    alone, together = (
        score(contestant, {"a": trace, "b": trace}, SETTINGS, SIMULATE.model_copy(update={"batch": batch}))
        for batch in (1, 4)
    )
    # what several tokens of a step share is loaded once
    assert value(together, "ms_per_token") != value(alone, "ms_per_token")
    for found in (alone, together):
        decoded = trace.num_tokens - trace.num_prefill_P.sum()
        assert found.pooled("ms_per_token").denominator_P.sum() == 2 * decoded
        assert value(found, "ms_per_token") == pytest.approx(found.splits["a"]["ms_per_token"].value)
    assert alone.worst_domain[0] == "a"


def test_prefill_alone_has_no_decoded_tokens_to_time():
    trace = chance_trace(4)
    prefill = replace(trace, num_prefill_P=np.diff(trace.prompt_offsets).astype(np.int32))
    with pytest.raises(InputError, match=r"set simulate\.prefill to token_by_token"):
        scored(Fixed(knowing), trace=prefill)


def test_what_is_charged_is_never_below_what_the_bundle_says(exported):
    predictor = OnnxPredictor(exported[0])
    times = latencies([predictor, predictor], 10)
    assert len(times) == 2
    for time in times:
        assert predictor.charge.token_step_ms <= time.token_step_ms < 50
        assert predictor.charge.layer_step_ms <= time.layer_step_ms < time.token_step_ms
