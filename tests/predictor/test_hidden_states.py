"""A predictor that reads hidden states, with them and without."""

from dataclasses import replace

import numpy as np
import pytest

from moe_beyond.network.export import export_predictor
from moe_beyond.network.onnx import torch_logits
from moe_beyond.network.settings import ExportSettings
from moe_beyond.predictor.base import sigmoid
from moe_beyond.predictor.recall import hits_at_k
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.simulator.engine.online import Routing, Step
from moe_beyond.simulator.policies.online_prediction import OnlinePrediction
from moe_beyond.traces.hidden import HiddenStates
from tests.traces.refusals import refused
from tests.training.test_fit import small_fit

WIDTH = 12


def with_hidden(trace, kept=1.0, width=WIDTH):
    """What the next layer will use, noisily, in what each layer's router reads: worth reading."""
    meta, draw = trace.metadata, np.random.default_rng(3)
    code_EZ = np.random.default_rng(4).standard_normal((meta.num_experts, width))
    next_TLK = np.roll(np.asarray(trace.experts_TLK), -1, axis=1)
    gates_TLZ = code_EZ[next_TLK].sum(axis=2) + 0.3 * draw.standard_normal((*next_TLK.shape[:2], width))
    keeps_T = draw.random(trace.num_tokens) < kept
    rows_T = np.where(keeps_T, np.cumsum(keeps_T) - 1, -1)
    return replace(
        trace, hidden=HiddenStates(rows_T, tuple(range(meta.num_layers)), gates_TLZ[keeps_T].astype(np.float16))
    )


@pytest.fixture(scope="module")
def fitted_hidden(train_trace, validation_trace, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    return small_fit(with_hidden(train_trace), with_hidden(validation_trace), scratch, epochs=10, hidden_rank=8)


@pytest.fixture(scope="module")
def directory(fitted_hidden, train_trace, validation_trace, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "predictor"
    settings = ExportSettings(parity_tokens=60, latency_repeats=10)
    traces = {"train": with_hidden(train_trace), "validation": with_hidden(validation_trace)}
    found = export_predictor(fitted_hidden.checkpoint, path, traces, settings)
    assert found.metrics["hidden_step_parity_error"] < 1e-4
    assert found.metrics["hidden_step_bytes"] == (path / "hidden_step.onnx").stat().st_size
    assert found.charged.hidden_step_ms >= found.measured.hidden_step_ms > 0
    return path


def test_hidden_states_help_where_they_say_something(directory, fitted_hidden, validation_trace):
    trace = with_hidden(validation_trace)
    plain = OnnxPredictor(directory)
    reading = plain.reading(trace)
    recalls = [hits_at_k(one.both_logits(trace)[1][0], trace.experts_TLK).mean() / 2 for one in (plain, reading)]
    assert recalls[1] > recalls[0] + 0.02
    best = max(fitted_hidden.history, key=lambda row: row["validation_score"])
    assert best["validation_recall_at_k_hidden_1"] == pytest.approx(recalls[1], abs=0.02)


def test_batch_and_stream_equal_pytorch(directory, fitted_hidden, validation_trace):
    prompt = with_hidden(validation_trace).select(np.array([3]))
    predictor = OnnxPredictor(directory).reading(prompt)
    expected_TLE, expected_HTLE = map(sigmoid, torch_logits(fitted_hidden.checkpoint, prompt, prompt.hidden))
    assert predictor.horizon == len(expected_HTLE) == 4
    assert np.allclose(predictor.layer_probabilities_HTLE(prompt), expected_HTLE, atol=1e-5)
    gates_LTZ = prompt.hidden.gates_LND(slice(None), 3)
    stream, previous = predictor.stream(), None
    for t, text in enumerate(prompt.token_texts.decode()):
        assert np.allclose(stream.step(text, previous), expected_TLE[t], atol=1e-5)
        previous = prompt.experts_TLK[t]
        for layer in range(2):
            ahead_HE = stream.layer_step(layer, previous[layer], gates_LTZ[layer, t])
            for h in range(2 - layer):
                assert np.allclose(ahead_HE[h], expected_HTLE[h, t, layer + 1 + h], atol=1e-5)
            assert not ahead_HE[2 - layer :].any()


def test_no_layer_sees_its_own_gate_input_or_that_of_a_layer_within_its_horizon(directory, validation_trace):
    trace = with_hidden(validation_trace)
    gates = np.array(trace.hidden.gate_inputs_SYD)
    gates[-1, 1] += 1
    traces = trace, replace(trace, hidden=replace(trace.hidden, gate_inputs_SYD=gates))
    predictor = OnnxPredictor(directory).reading(trace)
    before, after = map(predictor.layer_probabilities_HTLE, traces)
    # only layer 2 of the last token, one layer ahead, may depend on what the router of layer 1 read
    last = trace.num_tokens - 1
    assert np.argwhere((before != after).any(axis=-1)).tolist() == [[0, last, 2]]


def test_without_hidden_states_the_same_files_answer_from_strings_and_routing(directory, validation_trace):
    plain = OnnxPredictor(directory)
    assert plain.reading(validation_trace) is plain
    assert (plain.uses_hidden, plain.beside_a_model().uses_hidden) == (False, True)
    some = with_hidden(validation_trace, kept=0.5)
    reading = plain.reading(some)
    (token, layers), (token_too, mixed) = plain.both_logits(some), reading.both_logits(some)
    assert np.array_equal(token, token_too)
    kept_T = some.hidden.rows_T >= 0
    assert 0.2 < kept_T.mean() < 0.8
    np.testing.assert_allclose(mixed[: plain.horizon, ~kept_T], layers[:, ~kept_T], atol=1e-5)
    assert not np.isclose(mixed[0, kept_T, 1:], layers[0, kept_T, 1:], atol=1e-3).all()
    # farther than the step without hidden states looks, the token step answers
    np.testing.assert_array_equal(mixed[plain.horizon :, ~kept_T], np.stack([token[~kept_T]] * 2))
    assert (reading.charge.layer_step_ms, plain.charge.hidden_step_ms) == (plain.charge.hidden_step_ms,) * 2


def test_a_horizon_beyond_the_reach_is_exported_and_runs(train_trace, validation_trace, tmp_path):
    traces = {"train": with_hidden(train_trace), "validation": with_hidden(validation_trace)}
    fitted = small_fit(*traces.values(), tmp_path / "scratch", reach=2, hidden_horizon=4)
    assert fitted.checkpoint.network.shape.reach == 4
    path = tmp_path / "predictor"
    export_predictor(fitted.checkpoint, path, traces, ExportSettings(parity_tokens=20, latency_repeats=10))
    predictor = OnnxPredictor(path).reading(traces["validation"])
    assert len(predictor.layer_probabilities_HTLE(traces["validation"])) == 4


def test_gate_inputs_that_do_not_fit_are_refused(directory, exported, validation_trace):
    trace = with_hidden(validation_trace, width=5)
    refused("reads hidden states of 12 numbers, the trace has 5", OnnxPredictor(directory).reading, trace)
    stream, experts = OnnxPredictor(directory).stream(), validation_trace.experts_TLK[0]
    stream.step("a", None)
    for wrong in (np.zeros(5), np.full(WIDTH, np.nan)):
        refused("gate input of layer 0: .* expected 12 finite numbers", stream.layer_step, 0, experts[0], wrong)
    stream.layer_step(0, experts[0], np.zeros(WIDTH))
    refused("layer 1: give gate inputs for all layers of a token, or for none", stream.layer_step, 1, experts[1])
    assert not OnnxPredictor(exported[0]).beside_a_model().uses_hidden
    reads_none = OnnxPredictor(exported[0]).stream()
    reads_none.step("a", None)
    refused("expected 0 finite numbers", reads_none.layer_step, 0, experts[0], np.zeros(WIDTH))


def test_beside_a_model_what_each_router_reads_decides_what_is_fetched(directory, validation_trace):
    prompt = with_hidden(validation_trace).select(np.array([3]))
    predictor = OnnxPredictor(directory).beside_a_model()
    tokens, experts_TLK = prompt.token_texts.decode(), prompt.experts_TLK.astype(np.int64)
    gates_LTZ = prompt.hidden.gates_LND(slice(None), 3)
    online = OnlinePrediction(predictor, 2, 0.0, layers=True, popularity_M=None)
    expected = predictor.stream()
    expected.prefill(tokens[:2], experts_TLK[:2])
    online.begin(Step(0, 0, decodes=False, starts_prompt=True, tokens=tuple(tokens[:2])))
    online.end(Step(0, 0, decodes=False, starts_prompt=True, tokens=tuple(tokens[:2])), experts_TLK[:2])
    step = Step(3, 0, decodes=True, starts_prompt=False, tokens=(tokens[2],))
    online.begin(step)
    expected.step(tokens[2], experts_TLK[1])
    for layer in range(2):
        routed = {"members_I": np.zeros(0, np.int32), "shares_I": np.zeros(0, np.float32)}
        routing = Routing(3 + layer, layer, decodes=True, experts_TK=experts_TLK[2:3, layer], **routed)
        with_gate = replace(routing, gate_input=lambda layer=layer: gates_LTZ[layer, 2])
        requests = online.routed(with_gate)
        ahead_HE = expected.layer_step(layer, experts_TLK[2, layer], gates_LTZ[layer, 2])
        for h, request in enumerate(requests):
            best = np.argsort(-ahead_HE[h], kind="stable")[:2] + (layer + 1 + h) * predictor.num_experts
            assert (request.target, request.experts_W.tolist()) == (3 + layer + 1 + h, best.tolist())
    refused("reads hidden states, which are not there", online.routed, replace(routing, layer=0))
