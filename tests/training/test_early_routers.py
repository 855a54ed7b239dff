import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from moe_beyond.training.early_routers import log_odds
from tests.hidden_traces import hidden_trace, without_some
from tests.training.test_fit import small_fit

EXPERTS = 8


def test_log_odds_are_those_of_a_logistic_regression_on_the_later_routers_logits():
    trace = hidden_trace(5, (60, 50), num_layers=4, num_experts=EXPERTS)
    hidden = trace.hidden
    slope_LH, offset_LH = log_odds(trace, hidden, hidden.routers, horizon=2)
    for layer in range(4):
        for ahead in (1, 2):
            later, place = layer + ahead, (layer, ahead - 1)
            if later > 3:
                assert (slope_LH[place], offset_LH[place]) == (0, 0)
                continue
            logits = hidden.gate_inputs_SYD[:, layer].astype(float) @ hidden.routers.weights_LED[later].T
            chosen = [[e in experts for e in range(EXPERTS)] for experts in trace.experts_TLK[:, later].tolist()]
            expected = LogisticRegression(C=1e3, tol=1e-8).fit(logits.reshape(-1, 1), np.ravel(chosen))
            assert slope_LH[place] == pytest.approx(expected.coef_.item(), rel=0.01)
            assert offset_LH[place] == pytest.approx(expected.intercept_.item(), rel=0.01)


def test_only_tokens_and_layers_with_states_count():
    trace = without_some(hidden_trace(6, (60, 50), num_layers=4, num_experts=EXPERTS))
    slope_LH, offset_LH = log_odds(trace, trace.hidden, trace.hidden.routers, horizon=1)
    assert (slope_LH[1], offset_LH[1]) == (0, 0)
    assert (slope_LH[[0, 2]] > 0).all()
    kept = trace.select(np.arange(1))
    assert (log_odds(kept, kept.hidden, kept.hidden.routers, horizon=1)[0] != slope_LH)[[0, 2]].all()


def test_what_the_next_router_says_is_not_lost_by_training(tmp_path):
    """Where the next gate reads almost what this one read, few prompts suffice."""
    whole = hidden_trace(1, (40,) * 24, (0,) * 24, num_layers=4, drift=0.02)
    train, validation = whole.select(np.arange(12)), whole.select(np.arange(12, 24))
    history = small_fit(train, validation, tmp_path, epochs=2, hidden_rank=8, hidden_horizon=2).history
    recall = max(row["validation_recall_at_k_hidden_1"] for row in history)
    # of the first layer the token step speaks, which can know nothing here: a quarter is chance
    assert recall > (0.25 + 3 * 0.9) / 4
