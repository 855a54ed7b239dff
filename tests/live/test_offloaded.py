"""A model with its experts on disk computes what it computes in memory; its cache does what the simulator's does."""

import numpy as np
import pytest
import torch

from moe_beyond.errors import InputError
from moe_beyond.live.decoding import decode
from moe_beyond.live.session import offloaded
from moe_beyond.simulator.engine.policy_inputs import prepare
from moe_beyond.simulator.engine.timed_loop import Times, just_in_time, run
from moe_beyond.simulator.policies.catalogue import build
from moe_beyond.simulator.policies.settings import PolicySettings
from moe_beyond.simulator.schedule.events import events_of
from tests.capture.tiny_models import ARCHITECTURES, tiny_model
from tests.live.live_case import SEED, SETTINGS, LiveCase

ON_DEMAND = ["lru", "layer_lru", "lfu", "fifo", "least_stale", "static_popularity"]
CLOSE = 1e-5


def simulated(trace, policy, budget):
    """The replay of a policy that loads on demand, with the outcome of every access."""
    prepared = prepare(events_of(trace), policy, keep_warm=True)
    return run(prepared, just_in_time(prepared), budget, Times.none(prepared))


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_event_is_that_of_the_simulator(name, tmp_path):
    case = LiveCase.of(name, tmp_path, "eager" if len(name) % 2 else "grouped_mm")
    meta = case.trace.metadata
    for place, policy_name in enumerate(ON_DEMAND):
        policy = build(policy_name, case.trace, PolicySettings())
        # from one that a prefill exceeds by far to one that holds nearly all
        capacity = [meta.top_k * meta.num_layers, meta.num_model_experts - 3][place % 2]
        live, experts = case.run(policy, capacity, teacher_forced=False)
        expected = simulated(case.trace, policy, policy.budget(meta, capacity))
        assert np.array_equal(np.concatenate(experts.outcomes), expected.outcome_A), policy_name
        assert np.array_equal(experts.cache.result().counts_PFC, expected.replay.counts_PFC), policy_name
        assert case.difference(live) < CLOSE
        loaded = sum(time.read_bytes for time in experts.times)
        assert loaded == expected.replay.total.misses * case.store.stride


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return LiveCase.of("qwen3_moe", tmp_path_factory.mktemp("live"))


@pytest.mark.parametrize("name", ["mixtral_offloading", "fate"])
@pytest.mark.parametrize("link", [None, 0.002])
def test_prefetching_changes_no_output(name, link, case):
    policy = build(name, case.trace, PolicySettings())
    live, experts = case.run(policy, 9, gb_per_s=link, lanes=2)
    counted = experts.cache.result().total
    assert counted.prefetches > 0
    assert counted.accesses == case.trace.experts_TLK.size - _shared_in_prefill(case.trace)
    assert case.difference(live) < CLOSE
    # what was loaded is what was counted, but for prefetches that were given up
    loaded = sum(time.read_bytes for time in experts.times) / case.store.stride
    assert counted.misses <= loaded <= counted.misses + counted.prefetches


def _shared_in_prefill(trace):
    """Accesses that a batched prefill has fewer, because tokens share experts."""
    return trace.experts_TLK.size - events_of(trace).num_accesses


def test_experts_in_host_memory_are_copied_to_slots(case):
    policy = build("mixtral_offloading", case.trace, PolicySettings())
    live, experts = case.run(policy, 9, in_memory=True)
    assert experts.cache.result().total.prefetches > 0
    assert case.difference(live) < CLOSE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch sees none")
def test_an_accelerator_computes_the_same(case):
    policy = build("lru", case.trace, PolicySettings())
    budget = policy.budget(case.trace.metadata, 9)
    model = case.make().to("cuda")
    with offloaded(model, case.store, policy, budget, len(case.prompts)) as experts:
        live = decode(model, case.tokenizer, case.prompts, experts, SETTINGS, seed=SEED, keep_logits=True)
    assert case.difference(live) < 1e-3


def test_a_slowed_link_takes_its_time(case):
    policy = build("lru", case.trace, PolicySettings())
    _, experts = case.run(policy, 6, gb_per_s=0.004)
    for time in experts.times:
        # to the resolution of a sleep
        assert time.stall_ms >= 0.95 * time.read_bytes / 0.004e6
        assert time.wall_ms >= time.stall_ms + time.dense_ms + time.experts_ms


def test_a_damaged_record_is_named_before_it_is_used(tmp_path):
    case = LiveCase.of("mixtral", tmp_path)
    with (tmp_path / "store" / "experts.bin").open("r+b") as file:
        # some byte of every record
        for expert in range(case.store.num_model_experts):
            file.seek(expert * case.store.stride + 100)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
    with pytest.raises(InputError, match=r"experts\.bin: layer 0, expert \d+ was changed or damaged"):
        case.run(build("lru", case.trace, PolicySettings()), 8)


def test_a_budget_below_one_token_in_a_layer_is_refused(case):
    policy = build("lru", case.trace, PolicySettings())
    with pytest.raises(InputError, match="budget: holds 1 experts, a token of qwen3_moe uses 2"):
        case.run(policy, 1)


def test_a_store_of_another_model_is_refused(case):
    model = tiny_model("deepseek_v2")
    policy = build("lru", case.trace, PolicySettings())
    budget = policy.budget(case.trace.metadata, 6)
    with pytest.raises(InputError, match="holds 8 experts of layers"), offloaded(model, case.store, policy, budget, 1):
        pass


def test_the_model_is_as_before_afterwards(case):
    model = case.make()
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    policy = build("lru", case.trace, PolicySettings())
    with offloaded(model, case.store, policy, policy.budget(case.trace.metadata, 6), 1):
        assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} != before
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before
