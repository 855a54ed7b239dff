from dataclasses import replace

import numpy as np
import pytest

from moe_beyond.devices.device import load_device
from moe_beyond.predictor.latency import Latency
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.tuning.time_per_token import bench_of
from tests.simulator.study.cases import PartlyRight
from tests.traces.refusals import refused
from tests.traces_of_chance import chance_trace
from tests.tuning.case import tune_settings

FREE, SLOW = Latency(0.0, 0.0, 0.0), Latency(3.0, 100.0, 0.0)


def test_time_per_token_falls_with_recall_and_rises_with_its_own_time():
    bench = bench_of(chance_trace(6, seed=4), tune_settings(capacity=0.4), SimulateSettings(lookahead_layers=2))
    good, bad = (bench.payoff(PartlyRight(right, ahead_right=right), FREE) for right in (1.0, 0.0))
    assert good.ms_per_token < bench.on_demand_ms() < bad.ms_per_token
    slow = bench.payoff(PartlyRight(1.0), SLOW)
    charged_ms = 3.0 * load_device(bench.device).predictor_slowdown
    assert slow.ms_per_token == pytest.approx(good.ms_per_token + charged_ms, abs=0.5)
    assert slow.use == "token_step"


def test_prompts_without_decode_have_no_time_per_token():
    trace = chance_trace(6, seed=4)
    prefill_only = replace(trace, num_prefill_P=np.diff(trace.prompt_offsets).astype(np.int32))
    message = r"simulate.prefill: batched, .*; set it to token_by_token"
    refused(message, bench_of, prefill_only, tune_settings(), SimulateSettings())
    bench = bench_of(prefill_only, tune_settings(), SimulateSettings(prefill="token_by_token"))
    assert bench.on_demand_ms() > 0
    refused("device 'abacus' is unknown", bench_of, trace, tune_settings(device="abacus"), SimulateSettings())


def test_no_more_tokens_than_the_parameter_allows_are_replayed():
    bench = bench_of(chance_trace(40, seed=4), tune_settings(replay_tokens=100), SimulateSettings())
    assert 100 <= bench.trace.num_tokens < 140
