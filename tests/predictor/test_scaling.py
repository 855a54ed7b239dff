import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.calibration import reliability
from moe_beyond.predictor.scaling import Scaling, ScalingFit


def drawn(seed, tokens, scale_L, shift_L, experts=8):
    """Logits, and true experts drawn one a token and layer; the truth is a scaled and shifted logit's."""
    rng = np.random.default_rng(seed)
    true_logits = rng.normal(-2, 2, (tokens, len(scale_L), experts))
    chosen = rng.random(true_logits.shape) < 1 / (1 + np.exp(-true_logits))
    stated = (true_logits - np.array(shift_L)[:, None]) / np.array(scale_L)[:, None]
    return stated.astype(np.float32), chosen


def fit_on(logits, chosen, coverages=(0.9,)):
    """Fit on elements one by one: a token a chosen expert, padded by none, needs a fixed number of true experts."""
    fit = ScalingFit(logits.shape[1])
    fit.add(logits, np.zeros((*logits.shape[:2], 0), np.uint8))
    for layer in range(logits.shape[1]):
        true = logits[:, layer][chosen[:, layer]]
        place = np.clip((true / 64 + 0.5) * 4096, 0, 4095).astype(int)
        fit.true_LB[layer] += np.bincount(place, minlength=4096)
    return fit


def test_the_scale_and_shift_that_made_the_truth_are_found_for_each_layer():
    logits, chosen = drawn(0, 20_000, [0.5, 2.0], [1.0, -1.0])
    fitted = fit_on(logits, chosen)
    fitted.true_logits = [np.zeros((10, 2, 1), np.float32)]
    scaling = fitted.fit(())
    assert scaling.scale_L == pytest.approx([0.5, 2.0], rel=0.03)
    assert scaling.shift_L == pytest.approx([1.0, -1.0], abs=0.05)


def test_a_layer_without_data_keeps_its_logits():
    fit = ScalingFit(1)
    fit.true_logits = [np.zeros((1, 1, 1), np.float32)]
    scaling = fit.fit(())
    assert scaling.scale_L.tolist() == [1]
    assert scaling.shift_L.tolist() == [0]


def routed(seed, *, tokens=3000, layers=2, experts=12, top_k=3, boast=4.0):
    """Logits that boast, and the experts that a router with noise of its own chose."""
    rng = np.random.default_rng(seed)
    score = rng.normal(0, 1, (tokens, layers, experts))
    ids = np.argsort(-(score + rng.gumbel(size=score.shape)), axis=2)[..., :top_k]
    return (boast * score).astype(np.float32), ids.astype(np.uint8)


def test_scaling_mends_what_boasts_and_keeps_every_order():
    logits, ids = routed(0)
    fit = ScalingFit(2)
    fit.add(logits[:1000], ids[:1000])
    fit.add(logits[1000:], ids[1000:])
    scaling = fit.fit((0.9,))
    unseen, truth = routed(1)
    before = reliability(Scaling.identity(2).probabilities(unseen), truth).calibration_error
    after = reliability(scaling.probabilities(unseen), truth).calibration_error
    assert before > 0.2
    assert after < 0.02
    order = np.argsort(-unseen, axis=2, kind="stable")[..., :3]
    assert np.array_equal(np.argsort(-scaling.probabilities(unseen), axis=2, kind="stable")[..., :3], order)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.95])
def test_a_prefetch_set_covers_new_true_experts_as_stated(coverage):
    fit = ScalingFit(2)
    fit.add(*routed(2))
    threshold_L = (scaling := fit.fit((coverage,))).thresholds_L[coverage]
    unseen, truth = routed(3)
    true = np.take_along_axis(scaling.probabilities(unseen), truth.astype(int), axis=2)
    assert (true >= threshold_L[:, None]).mean(axis=(0, 2)) == pytest.approx([coverage] * 2, abs=0.02)


@given(number=st.integers(1, 200), coverage=st.sampled_from([0.5, 0.8, 0.9, 0.99]))
def test_the_threshold_is_low_enough_for_one_more_draw(number: int, coverage: float):
    logits = np.random.default_rng(number).normal(size=(number, 1, 1)).astype(np.float32)
    fit = ScalingFit(1)
    fit.add(logits, np.zeros((number, 1, 1), np.uint8))
    scaling = fit.fit((coverage,))
    below = (scaling.probabilities(logits) < scaling.thresholds_L[coverage]).sum()
    # of number + 1 exchangeable draws, at most this share may fall below
    assert (below + 1) / (number + 1) <= 1 - coverage + 1e-9 or scaling.thresholds_L[coverage].item() == 0


def test_it_comes_back_from_metadata():
    fit = ScalingFit(2)
    fit.add(*routed(2))
    scaling = fit.fit((0.8, 0.9))
    back = Scaling.from_dict(scaling.as_dict())
    logits, _ = routed(4)
    assert np.array_equal(back.probabilities(logits), scaling.probabilities(logits))
    assert {c: v.tolist() for c, v in back.thresholds_L.items()} == {
        c: v.tolist() for c, v in scaling.thresholds_L.items()
    }
