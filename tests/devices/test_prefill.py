"""Prompts: that the formula is the replay, and that a fit gives back what prompts were made with."""

import re

import numpy as np
import polars as pl
import pytest

from benchmarks.golden.prompt_errors import misses_of_prompt
from moe_beyond.devices.device import Device
from moe_beyond.devices.expected import Prompts, Shape, expected_prompt_ms
from moe_beyond.devices.prefill import fit_prefill, read_prompts
from moe_beyond.devices.workload import Workload
from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.timing import timed_replay
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.phone_traces import recording
from tests.simulator.strategies import make_trace

BASE = {"link_gb_per_s": 2, "setup_us": 100, "lanes": 2, "memory_gb_per_s": 20, "layer_overhead_us": 50}
SHAPE = Shape(6, 4, 3_000_000, 54_000_000)


def device_of(**terms):
    return Device.model_validate({**BASE, **terms, "name": "any", "about": "-"})


@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"prefill_tokens_per_s": 40, "prompt_overhead_ms": 70},
        {"prefill_tokens_per_s": 40, "overlap": True, "miss_layer_us": 700, "admit_gb_per_s": 8},
        {"prefill_tokens_per_s": 40, "miss": "compute", "cpu_gb_per_s": 0.2},
    ],
)
def test_it_is_what_a_replay_takes_for_the_prefill_of_an_empty_cache(terms):
    """Experts that the prompt uses in each layer differ, which the formula spreads evenly."""
    trace = make_trace(
        3, num_layers=6, num_experts=24, top_k=4, lengths=(12,), prefill=(9,), expert_bytes=(3_000_000,) * 6
    )
    meta = trace.metadata.model_copy(update={"dense_bytes": (9_000_000,) * 6})
    device, events = device_of(**terms), events_of(trace)
    everything = Budget.slots(meta, meta.num_model_experts)
    timed = timed_replay(events, Lru(), everything, device, Workload.of(meta, 0))
    misses = float(len(events.members_A[~events.is_decode_A]))
    told = expected_prompt_ms(device, SHAPE, Prompts(np.array([9.0]), np.zeros(1), np.array([misses])))
    assert told[0] == pytest.approx(timed.first_token.value, rel=0.02)


def test_prompts_of_two_lengths_give_back_rate_and_overhead():
    made = device_of(prefill_tokens_per_s=200, prompt_overhead_ms=300)
    tokens_S, misses_S = np.array([500.0, 900.0, 4000.0]), np.full(3, 100.0)
    wall_S = expected_prompt_ms(made, SHAPE, Prompts(tokens_S, tokens_S, misses_S))
    found = fit_prefill(device_of(), SHAPE, Prompts(tokens_S, wall_S, misses_S), "here")
    assert (found.prefill_tokens_per_s, found.prompt_overhead_ms) == pytest.approx((200, 300), rel=1e-3)


def test_prompts_of_one_length_give_back_the_rate_beside_their_loads():
    made = device_of(prefill_tokens_per_s=50)
    tokens_S, misses_S = np.array([100.0, 100.0]), np.array([40.0, 80.0])
    wall_S = expected_prompt_ms(made, SHAPE, Prompts(tokens_S, tokens_S, misses_S))
    found = fit_prefill(device_of(), SHAPE, Prompts(tokens_S, wall_S, misses_S), "here")
    assert found.prefill_tokens_per_s == pytest.approx(50, rel=1e-3)
    assert found.prompt_overhead_ms == 0


@pytest.mark.parametrize(
    ("tokens", "wall", "said"),
    [
        ([100, 200], [900, 400], "longer prompts take no longer (-5 ms a token); check both columns"),
        ([100, 100], [10, 12], "loading alone takes longer than the 11 ms of these prompts"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(tokens, wall, said):
    prompts = Prompts(*(np.array(column, float) for column in (tokens, wall, [100, 100])))
    with pytest.raises(InputError, match=re.escape(f"here: {said}")):
        fit_prefill(device_of(), SHAPE, prompts, "here")


def test_a_table_gives_times_or_speeds(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("# of a desktop\nprompt_tokens,prefill_tok_s\n100,50\n400,80\n")
    prompts = read_prompts(path)
    assert prompts.wall_S.tolist() == [2000, 5000]
    path.write_text("prompt_tokens,prefill_ms,misses\n100,700,30\n")
    assert [column.tolist() for column in vars(read_prompts(path)).values()] == [[100], [700], [30]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt_tokens\n100\n", "expected rows with prompt_tokens, and prefill_ms or prefill_tok_s"),
        ("prefill_ms\n100\n", "expected numbers in column 'prompt_tokens'"),
        ("prompt_tokens,prefill_ms\n100,0\n", "row 1: prefill_ms is 0; remove the row or correct it"),
        ("prompt_tokens,prefill_ms\n100,7\n0,7\n", "row 2: prompt_tokens is 0; remove the row or correct it"),
    ],
)
def test_a_table_that_does_not_say_it_ends_in_one_line(tmp_path, text, said):
    path = tmp_path / "prompts.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(f"{path}: {said}")):
        read_prompts(path)


def test_what_a_start_takes_is_the_models_bytes_over_its_rate():
    assert device_of(start_gb_per_s=0.5).start_ms(10**10) == 20_000
    assert device_of().start_ms(10**10) is None


def test_a_prompts_misses_follow_from_a_hit_counter_that_counts_them():
    """Experts are 0.8 % larger than the shape says, and the counter is printed to a hundredth of a point."""
    random = np.random.default_rng(4)
    accesses, hits = 700, 90
    misses_S = random.integers(0, 24, 200)
    used_S = 24 * np.arange(1, 201)
    counter_S = np.round(100 * (hits + used_S - np.cumsum(misses_S)) / (accesses + used_S), 2)
    tokens = pl.DataFrame({"cache_hit_pct": counter_S, "read_bytes": misses_S * 3_024_000})
    assert misses_of_prompt(tokens, SHAPE) == pytest.approx(accesses - hits, abs=3)


@pytest.mark.parametrize(
    ("name", "shape"), [("qwen", Shape(48, 6, 2.736 * 2**20, 0)), ("gptoss", Shape(36, 2, 13_219_200, 0))]
)
def test_recorded_prompts_missed_all_that_their_routing_says(name, shape):
    run = recording(name)
    used = np.sum(~run.events.is_decode_A)
    assert misses_of_prompt(run.metrics, shape) == pytest.approx(used, rel=0.003)
