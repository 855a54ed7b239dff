"""What is charged for a predictor's steps is never below what was measured, nor below the arithmetic."""

import itertools
import json
import math
from dataclasses import astuple, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.predictor import latency
from moe_beyond.predictor.contents import Contents
from moe_beyond.predictor.latency import FILE, Latency, modelled, read_charge
from tests.predictor.small import SHAPE
from tests.traces.refusals import refused

SIZES = dict.fromkeys(("num_layers", "top_k", "horizon", "reach", "window", "depth"), (1, 64))
SIZES["hidden_horizon"] = (1, 64)
SIZES |= dict.fromkeys(("num_experts", "width", "embedding_width", "layer_width", "layer_hidden"), (1, 4096))
SIZES |= dict.fromkeys(("hidden_size", "hidden_rank", "hidden_units"), (1, 4096))
SHAPES = st.builds(replace, st.just(SHAPE), **{name: st.integers(*limits) for name, limits in SIZES.items()})
MS = st.one_of(st.just(0.0), st.floats(1e-6, 1e4), st.integers(1, 999).map(lambda n: n * 0.1), st.just(1.1000000000001))
MEASURED = st.builds(Latency, MS, MS, MS, MS)


@given(SHAPES, MEASURED)
def test_what_is_charged_is_what_was_measured_or_modelled_at_least_and_little_more(shape, measured):
    line, charge = modelled(shape), latency.charged(shape, measured)
    for charge_ms, line_ms, measured_ms in zip(astuple(charge), astuple(line), astuple(measured), strict=True):
        assert charge_ms >= measured_ms
        assert charge_ms >= line_ms > 0
        # two digits: never a tenth more than the larger of both
        assert charge_ms <= max(line_ms, 1.1 * measured_ms)
        assert float(f"{charge_ms:.2g}") == charge_ms


def test_the_line_is_the_sum_of_its_terms_raised():
    token, layer = latency.token_step_terms(SHAPE), latency.layer_step_terms(SHAPE)
    # 3 layers of 8 experts, width 16, depth 2, window 6, embedding 10, layer step 12 wide; 2 of 8 chosen, reach 2
    weights = 4 * 24 * 16 + 16 * (10 + 12) + 12 * 2 * 16**2
    assert token == (1, 2, weights / 1e6, 0, 2 * 2 * 6 * 16 / 1e6)
    assert layer == (1, (2 * 12 * 20 + 12 * 2 * 8) / 1e6, 3 * (12 + 2 * 8) / 1e6)
    # hidden states of 10, rank 4, 6 units, 3 layers ahead
    reading = replace(SHAPE, hidden_size=10, hidden_rank=4, hidden_units=6, hidden_horizon=3)
    weights = 2 * 12 * 20 + 4 * (10 + 12) + (12 + 4) * 6 + (12 + 4 + 6) * 3 * 8 + 10 * 4 * 8
    assert latency.hidden_step_terms(reading) == (1, weights / 1e6, 3 * (12 + (3 + 3) * 8) / 1e6)
    assert (modelled(SHAPE).hidden_step_ms, modelled(reading).layer_step_ms) == (0, modelled(SHAPE).layer_step_ms)
    assert modelled(reading).with_hidden().layer_step_ms == modelled(reading).hidden_step_ms > 0
    # constants and blocks decide at this size
    assert modelled(SHAPE).token_step_ms == pytest.approx(latency.RAISED * (0.0299 + 2 * 0.0172), rel=0.1)
    assert modelled(SHAPE).layer_step_ms == pytest.approx(latency.RAISED * 0.0158, rel=0.1)
    large = replace(SHAPE, width=512, depth=2, num_layers=26, num_experts=64)
    in_caches, beyond = latency.token_step_terms(large)[2:4]
    assert beyond == pytest.approx(in_caches - 4), "what does not fit the caches counts once more"


@given(SHAPES, st.sampled_from(["width", "depth", "num_experts", "window", "layer_width"]))
def test_a_larger_predictor_is_charged_no_less(shape, name):
    larger = replace(shape, **{name: 2 * getattr(shape, name)})
    for before, after in zip(astuple(modelled(shape)), astuple(modelled(larger)), strict=True):
        assert after >= before


def test_times_scale_and_the_quietest_round_counts_of_each():
    assert Latency(1.0, 0.5, 0.25).times(3) == Latency(3.0, 1.5, 0.75)
    rounds = iter([Latency(3, 1, 2), Latency(1, 2, 3), Latency(2, 3, 1)])
    assert latency.quietest(lambda: next(rounds)) == Latency(1, 1, 1)


def test_the_median_is_of_the_calls_after_warm_up(monkeypatch):
    # each call takes as many seconds as calls came before it: ten of warm-up, then 10, 11 and 12
    now, calls = [0], itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    assert latency.median_ms(lambda: now.append(now.pop() + next(calls)), 3) == 11_000


GOOD = {"token_step_ms": 1, "layer_step_ms": 1, "table_ms": 1}
DAMAGED = [
    (None, "no such file; run the export stage first"),
    ("[1]", "not a predictor's latency"),
    (json.dumps(GOOD | {"more": 1}), "not a predictor's latency"),
    (json.dumps(GOOD | {"layer_step_ms": "1"}), "layer_step_ms: expected milliseconds, found '1'"),
    (json.dumps(GOOD | {"table_ms": math.inf}), "table_ms: expected milliseconds, found inf"),
]


@pytest.mark.parametrize(("content", "message"), DAMAGED)
def test_a_charge_comes_back_and_a_missing_or_damaged_one_is_named(tmp_path, content, message):
    latency.write_charge(tmp_path, Latency(0.3, 0.05, 0.0015))
    files = Contents(tmp_path, finished=False)
    assert read_charge(files) == Latency(0.3, 0.05, 0.0015)
    (tmp_path / FILE).unlink()
    if content is not None:
        (tmp_path / FILE).write_text(content)
    refused(rf"{FILE}: .*{message}", read_charge, files)
