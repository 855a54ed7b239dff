"""Baselines on hidden states beside the same thing written out, token by token."""

from dataclasses import replace

import numpy as np
import pytest

from moe_beyond.errors import InputError
from moe_beyond.predictor.descent import descend, softmax
from moe_beyond.predictor.from_hidden import LEAST, likely_NE, recall_ahead
from moe_beyond.predictor.hidden_baselines import HiddenRidge, PreAttention, fit_from_hidden
from moe_beyond.predictor.next_gate import DefaultVectors, NextGate, SharedAdapter
from tests.hidden_traces import WIDTH, hidden_trace, without_some

GROUPED = {"scoring": "sigmoid", "choice_bias_LE": True, "num_groups": 4, "top_groups": 2, "group_score": "two_best"}


@pytest.fixture(scope="module")
def fitted():
    train, validation = hidden_trace(1, (300,), (0,)), hidden_trace(2, (90,), (0,))
    return {one.name: one for one in fit_from_hidden(train, validation, seed=7)}


def top(scores_E, count):
    return sorted(range(len(scores_E)), key=lambda expert: (-scores_E[expert], expert))[:count]


@pytest.mark.parametrize("router", [{}, GROUPED])
@pytest.mark.parametrize("kept", [lambda trace: trace, without_some])
def test_the_next_gate_is_the_later_router_on_what_this_one_read(router, kept):
    trace = kept(hidden_trace(3, **router))
    hidden, gate = trace.hidden, NextGate.fit(trace)
    for ahead in (1, 2):
        scores_TLE, known_TL = gate.scores_ahead(trace, ahead)
        named_TLW = gate.named_TLW(trace, ahead, 3)
        for token in range(trace.num_tokens):
            for layer in range(3):
                row = hidden.rows_T[token]
                there = layer >= ahead and layer - ahead in hidden.layers and row >= 0
                assert known_TL[token, layer] == there
                if not there:
                    assert not scores_TLE[token, layer].any()
                    assert (named_TLW[token, layer] == -1).all()
                    continue
                inputs_1D = hidden.gate_inputs_SYD[row, hidden.layers.index(layer - ahead)].astype(np.float32)[None]
                assert named_TLW[token, layer].tolist() == hidden.routers.choose(layer, inputs_1D, 3)[0].tolist()


def test_no_prediction_is_zero_and_every_other_one_is_not():
    trace = without_some(hidden_trace(4, num_layers=4))
    gate = NextGate.fit(trace)
    chances_HTLE = gate.layer_probabilities_HTLE(trace)
    assert chances_HTLE.shape == (4, trace.num_tokens, 4, 8)
    assert not gate.probabilities_TLE(trace).any()
    for ahead in range(1, 5):
        _, known_TL = gate.scores_ahead(trace, ahead)
        assert (chances_HTLE[ahead - 1][~known_TL] == 0).all()
        assert (chances_HTLE[ahead - 1][known_TL] >= LEAST).all()
        assert ((chances_HTLE[ahead - 1][known_TL] > 0.5).sum(axis=1) == 2).all()


def test_experts_out_of_the_chosen_groups_are_never_named():
    trace = hidden_trace(5, **GROUPED)
    gate = NextGate.fit(trace)
    # two groups of two are all that can be chosen
    named_TLW = gate.named_TLW(trace, 1, 8)
    assert ((named_TLW[:, 1:] >= 0).sum(axis=2) == 4).all()
    assert ((gate.layer_probabilities_HTLE(trace)[0, :, 1:] > 0).sum(axis=2) == 4).all()


def test_likely_keeps_the_order_and_parts_the_best():
    scores_NE = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    likely = likely_NE(scores_NE, 3)
    np.testing.assert_array_equal(np.argsort(likely), np.argsort(scores_NE))
    assert ((likely > 0.5).sum(axis=1) == 3).all()
    assert (likely_NE(scores_NE, 8) == 1).all()


def test_default_vectors_are_least_squares_of_what_the_gate_input_gains(fitted):
    train, trace = hidden_trace(1, (300,), (0,)), hidden_trace(6)
    one = fitted["default vectors"]
    inputs_TLD = train.hidden.gate_inputs_SYD.astype(np.float64)
    weights_TE = np.zeros((300, 8))
    for token in range(300):
        weights_TE[token, train.experts_TLK[token, 0]] = train.weights_TLK[token, 0]
    possible = [
        np.linalg.lstsq(
            np.vstack([weights_TE, np.sqrt(ridge) * np.eye(8)]),
            np.vstack([inputs_TLD[:, 2] - inputs_TLD[:, 0], np.zeros((8, WIDTH))]),
            rcond=None,
        )[0]
        for ridge in (1, 10, 100, 1000)
    ]
    found = one.vectors_LHED[0, 1]
    assert min(np.abs(found - expected).max() for expected in possible) < 1e-4
    scores_TLE, _ = one.scores_ahead(trace, 1)
    for token in range(trace.num_tokens):
        moved_D = trace.hidden.gate_inputs_SYD[token, 1].astype(np.float32)
        for expert, weight in zip(trace.experts_TLK[token, 1], trace.weights_TLK[token, 1], strict=True):
            moved_D = moved_D + np.float32(weight) * one.vectors_LHED[1, 0, expert]
        np.testing.assert_allclose(scores_TLE[token, 2], one.routers.weights_LED[2] @ moved_D, rtol=1e-4, atol=1e-4)


def test_ridge_is_what_numpy_says(fitted):
    train, one = hidden_trace(1, (300,), (0,)), fitted["ridge"]
    inputs_TD = train.hidden.gate_inputs_SYD[:, 0].astype(np.float64)
    scale = np.sqrt((inputs_TD**2).mean())
    marks_TE, target_TE = np.zeros((300, 8)), np.zeros((300, 8))
    for token in range(300):
        marks_TE[token, train.experts_TLK[token, 0]] = 1
        target_TE[token, train.experts_TLK[token, 1]] = 1
    x_TX = np.hstack([inputs_TD / scale, marks_TE])
    centred = x_TX - x_TX.mean(axis=0)
    predicted = one.scores_ahead(train, 1)[0][:, 1]
    differences = []
    for ridge in (1, 10, 100, 1000, 10_000):
        system = np.vstack([centred, np.sqrt(ridge) * np.eye(x_TX.shape[1])])
        goal = np.vstack([target_TE - target_TE.mean(axis=0), np.zeros((x_TX.shape[1], 8))])
        weights_XE = np.linalg.lstsq(system, goal, rcond=None)[0]
        differences.append(np.abs(centred @ weights_XE + target_TE.mean(axis=0) - predicted).max())
    assert min(differences) < 1e-3


def test_one_token_gets_what_it_gets_among_many(fitted):
    trace = hidden_trace(8)
    for one in fitted.values():
        ahead = one.first_ahead
        scores_TLE, known_TL = one.scores_ahead(trace, ahead)
        for token in range(trace.num_tokens):
            # a trace of one token takes the ways that serve single tokens
            alone = replace(
                trace,
                prompt_ids=("one",),
                domains=("toy",),
                held_out_P=np.zeros(1, bool),
                prompt_offsets=np.array([0, 1]),
                num_prefill_P=np.zeros(1, np.int32),
                experts_TLK=trace.experts_TLK[[token]],
                weights_TLK=trace.weights_TLK[[token]],
                hidden=trace.hidden.take(np.array([token])),
            )
            single_TLE, single_TL = one.scores_ahead(alone, ahead)
            np.testing.assert_array_equal(single_TL[0], known_TL[token])
            np.testing.assert_allclose(single_TLE[0], scores_TLE[token], rtol=1e-4, atol=1e-4)


def test_what_is_learned_beats_the_plain_gate_where_layers_turn_what_they_read(fitted):
    # here the gate inputs drift by chance, so that nothing can be learned: no worse is all that can be asked
    trace = hidden_trace(9, (200,), (0,))
    plain = recall_ahead(fitted["next gate"], trace, 1)
    assert plain > 0.6
    assert recall_ahead(fitted["shared adapter"], trace, 1) > plain - 0.05
    assert recall_ahead(fitted["default vectors"], trace, 1) > plain - 0.05


def test_the_adapter_is_one_pair_of_matrices_for_all_layers(fitted):
    one, trace = fitted["shared adapter"], hidden_trace(10)
    scores_TLE, _ = one.scores_ahead(trace, 1)
    for layer in (1, 2):
        x_TD = trace.hidden.gate_inputs_SYD[:, layer - 1].astype(np.float32)
        moved_TD = x_TD + x_TD @ (one.up_HDR[0] @ one.down_HRD[0]).T
        expected = moved_TD @ one.routers.weights_LED[layer].T
        np.testing.assert_allclose(scores_TLE[:, layer], expected, rtol=1e-4, atol=1e-4)
    assert one.num_parameters == 4 * 2 * 16 * WIDTH


def test_the_pre_attention_head_reads_the_layer_itself_and_predicts_the_first_one_too(fitted):
    one, trace = fitted["pre-attention head"], hidden_trace(11, (200,), (0,))
    scores_TLE, known_TL = one.scores_ahead(trace, 0)
    assert known_TL.all()
    read_TD = trace.hidden.layer_inputs_SYD[:, 0].astype(np.float32)
    normed_TD = read_TD / np.sqrt((read_TD**2).mean(axis=1, keepdims=True) + 1e-6)
    expected = normed_TD @ one.weights_LDE[0] + one.bias_LE[0]
    np.testing.assert_allclose(scores_TLE[:, 0], expected, rtol=1e-4, atol=1e-4)
    assert recall_ahead(one, trace, 0) > 0.5
    assert not one.scores_ahead(trace, 1)[1].any()


def test_descent_finds_the_least_of_a_square():
    matrix, goal = np.zeros((2, 3), np.float32), np.arange(6, dtype=np.float32).reshape(2, 3) / 100
    descend([matrix], lambda _, batch: [matrix - goal], [1024 * 200], decay=0.0, draw=np.random.default_rng(0))
    np.testing.assert_allclose(matrix, goal, atol=1e-3)
    np.testing.assert_allclose(softmax(np.zeros((1, 4), np.float32)), 0.25)


def test_a_seed_fits_the_same_again(fitted):
    train, validation = hidden_trace(1, (300,), (0,)), hidden_trace(2, (90,), (0,))
    again = {one.name: one for one in fit_from_hidden(train, validation, seed=7)}
    np.testing.assert_array_equal(again["shared adapter"].up_HDR, fitted["shared adapter"].up_HDR)
    np.testing.assert_array_equal(again["pre-attention head"].weights_LDE, fitted["pre-attention head"].weights_LDE)


def test_only_what_the_traces_allow_is_fitted():
    train, validation = hidden_trace(1, (60,), (0,)), hidden_trace(2, (30,), (0,))
    assert fit_from_hidden(replace(train, hidden=None), validation, 7) == []
    bare = replace(train.hidden, routers=None, layer_inputs_SYD=None)
    assert [one.name for one in fit_from_hidden(replace(train, hidden=bare), validation, 7)] == ["ridge"]
    with pytest.raises(InputError, match="no routers"):
        NextGate.fit(replace(train, hidden=bare))
    with pytest.raises(InputError, match="no router weights"):
        DefaultVectors.fit(replace(train, weights_TLK=None), validation)
    with pytest.raises(InputError, match="no hidden states"):
        HiddenRidge.fit(replace(train, hidden=None), validation)
    with pytest.raises(InputError, match="no layer inputs"):
        PreAttention.fit(replace(train, hidden=bare), validation, 7)
    with pytest.raises(InputError, match="no routers"):
        SharedAdapter.fit(replace(train, hidden=bare), validation, 7)


def test_a_charge_is_never_below_what_was_measured(fitted):
    trace = hidden_trace(1)
    for one in fitted.values():
        measured = one.step_ms(trace.metadata, WIDTH, repeats=5)
        assert measured > 0
        assert one.charged_ms(measured) >= measured
        assert one.charged_ms(5.01) == 5.1
        assert 0 < one.charged_ms() < 1
