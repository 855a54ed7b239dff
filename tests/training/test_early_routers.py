from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from moe_beyond.training.early_routers import early_routers, log_odds_slope
from tests.hidden_traces import WIDTH, hidden_trace, without_some
from tests.training.test_fit import small_fit

EXPERTS = 8


def test_the_slope_is_that_of_a_logistic_regression():
    draw = np.random.default_rng(3)
    above = draw.normal(-0.3, 0.4, 3000)
    chosen = draw.random(3000) < 1 / (1 + np.exp(-5 * above))
    expected = LogisticRegression(C=1e3, tol=1e-8, fit_intercept=False).fit(above.reshape(-1, 1), chosen)
    assert log_odds_slope(above, chosen) == pytest.approx(expected.coef_.item(), rel=0.01)


def test_a_sign_that_decides_alone_has_a_steep_slope_and_an_end():
    above = np.array([-0.2, -0.1, 0.1, 0.3])
    assert 20 < log_odds_slope(above, above > 0) < 1000


def test_what_experts_put_out_moves_later_logits_by_as_much_as_it_does():
    """Gate inputs to which each layer adds what its chosen experts put out, in shares, and nothing else."""
    trace = hidden_trace(5, (700, 500), num_layers=4, num_experts=EXPERTS)
    routers, draw = trace.hidden.routers, np.random.default_rng(1)
    outputs_LED = 0.5 * draw.standard_normal((4, EXPERTS, WIDTH))
    reads_TD = trace.hidden.gate_inputs_SYD[:, 0].astype(float)
    reads, chosen = [], []
    for layer in range(4):
        reads.append(reads_TD)
        logits_TE = reads_TD @ routers.weights_LED[layer].T
        chosen.append(np.argsort(-logits_TE, axis=1)[:, :2])
        best_T2 = np.take_along_axis(logits_TE, chosen[-1], axis=1)
        share_T2 = 2 * np.exp(best_T2) / np.exp(best_T2).sum(axis=1, keepdims=True)
        reads_TD = reads_TD + sum(share_T2[:, [slot]] * outputs_LED[layer, chosen[-1][:, slot]] for slot in range(2))
    hidden = replace(trace.hidden, gate_inputs_SYD=np.stack(reads, axis=1).astype(np.float16))
    trace = replace(trace, hidden=hidden, experts_TLK=np.stack(chosen, axis=1).astype(np.uint8))
    found = early_routers(trace, hidden, routers, horizon=2)
    for layer in range(3):
        expected_EE = outputs_LED[layer] @ routers.weights_LED[layer + 1].T
        usual = np.bincount(chosen[layer].ravel(), minlength=EXPERTS) > 100
        difference_EE = found.moved_LEHE[layer, usual, 0] - expected_EE[usual]
        assert np.linalg.norm(difference_EE) < 0.1 * np.linalg.norm(expected_EE[usual])
    assert (found.slope_LH[:3, 0] > 1).all()
    # beyond the last layer there is nothing
    assert not found.moved_LEHE[3].any()
    assert not found.moved_LEHE[2, :, 1].any()
    assert (found.slope_LH[3], found.slope_LH[2, 1]) == (pytest.approx([0, 0]), 0)


def test_a_bias_is_shared_among_the_chosen():
    trace = hidden_trace(6, (60, 50), num_layers=4, num_experts=EXPERTS)
    bias_LE = np.random.default_rng(2).standard_normal((4, EXPERTS)).astype(np.float32)
    biased = replace(trace.hidden.routers, logit_bias_LE=bias_LE)
    without, found = (early_routers(trace, trace.hidden, each, horizon=1) for each in (trace.hidden.routers, biased))
    for layer in range(3):
        added_EE = found.moved_LEHE[layer, :, 0] - without.moved_LEHE[layer, :, 0]
        assert added_EE == pytest.approx(np.tile(bias_LE[layer + 1] / 2, (EXPERTS, 1)), abs=1e-4)


def test_only_tokens_and_layers_with_states_count():
    trace = without_some(hidden_trace(6, (60, 50), num_layers=4, num_experts=EXPERTS))
    found = early_routers(trace, trace.hidden, trace.hidden.routers, horizon=1)
    assert found.slope_LH[1] == 0
    assert (found.slope_LH[[0, 2]] > 0).all()
    assert not found.moved_LEHE[0].any()  # of the second layer nothing is known
    assert found.moved_LEHE[2].any()


def test_what_the_next_router_says_is_not_lost_by_training(tmp_path):
    """Where the next gate reads almost what this one read, few prompts suffice."""
    whole = hidden_trace(1, (40,) * 24, (0,) * 24, num_layers=4, drift=0.02)
    train, validation = whole.select(np.arange(12)), whole.select(np.arange(12, 24))
    history = small_fit(train, validation, tmp_path, epochs=2, hidden_rank=8, hidden_horizon=2).history
    recall = max(row["validation_recall_at_k_hidden_1"] for row in history)
    # of the first layer the token step speaks, which can know nothing here: a quarter is chance
    assert recall > (0.25 + 3 * 0.9) / 4
