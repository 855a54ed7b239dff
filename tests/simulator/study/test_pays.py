"""Does prefetching pay? Three devices for the three results, and counts against dictionaries and loops."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from moe_beyond.devices.device import Device, dump_device
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy_inputs import prepare
from moe_beyond.simulator.engine.timing import timed_replay, timed_run
from moe_beyond.simulator.engine.usage import MISSED, PREFETCHED
from moe_beyond.simulator.policies.on_demand import Lfu, Lru
from moe_beyond.simulator.study.pays import by_bandwidth_table, pays_tables
from moe_beyond.simulator.study.study import Charged, replay_splits
from tests.simulator.engine import slow_clock
from tests.simulator.strategies import members
from tests.simulator.study.cases import SETTINGS, PartlyRight, drawn

SLOTS, K, EXPERT_BYTES = 12, 2, 8.25 * 2**20
DEVICES = {
    # link and memory in GB/s: all can be hidden behind computing; there is little to hide behind; nothing
    "hides": (8.0, 5.0),
    "crowded": (1.0, 20.0),
    "saturated": (0.005, 1000.0),
}
ANSWERS = {"hides": "yes", "crowded": "only with more bandwidth", "saturated": "no"}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder, shared = tmp_path_factory.mktemp("devices"), {"setup_us": 10, "lanes": 4, "layer_overhead_us": 1}
    for name, (link, memory) in DEVICES.items():
        bandwidths = {"link_gb_per_s": link, "memory_gb_per_s": memory, "predictor_slowdown": 2}
        device = Device(name=name, about="made for one result", **bandwidths, **shared)
        (folder / f"{name}.yaml").write_text(dump_device(device))
    change = {"devices": tuple(str(folder / f"{name}.yaml") for name in DEVICES), "policies": ("lru", "lfu")}
    change |= {"headline_device": str(folder / "crowded.yaml"), "capacities": (0.5, 0.75), "timed_capacities": None}
    predictors = [Charged(PartlyRight(0.8, ahead_right=0.9), 0.01, 0.001)]
    return replay_splits({"test": drawn(2)}, drawn(3), drawn(4), predictors, SETTINGS.model_copy(update=change))[0]


@pytest.fixture(scope="module")
def tables(split):
    return pays_tables([split], seed=7)


@pytest.fixture(scope="module")
def rows(split, tables):
    """By device at the headline capacity."""
    assert tables[0].height == len(split.places)
    others = tables[0].filter(pl.col("capacity_experts") != SLOTS)
    assert others["break_even_width"].null_count() == others["break_even_token_step_ms"].null_count() == len(DEVICES)
    return {row["device"]: row for row in tables[0].iter_rows(named=True) if row["capacity_experts"] == SLOTS}


@pytest.fixture(scope="module")
def policies(split, rows):
    """How ours prefetches on each device, as the table says."""
    named = {policy.name: policy for policy in split.predictions[0].policies(K, 0.0)}
    return {device: named[row["policy"]] for device, row in rows.items()}


def profile(split, device):
    return next(one for one in split.case.devices if one.name == device)


def timed(split, policy, device):
    case = split.case
    return timed_replay(case.events, policy, Budget.slots(split.metadata, SLOTS), device, case.workload)


@pytest.mark.parametrize("device", DEVICES)
def test_the_answer_depends_on_what_can_be_hidden(rows, device):
    row = rows[device]
    assert row["answer"] == ANSWERS[device]
    assert (row["difference_ms_high"] < 0) == (row["answer"] == "yes")
    assert (row["pays_from_gb_per_s"] is not None) == (row["answer"] == "only with more bandwidth")
    assert row["difference_ms"] == pytest.approx(row["ms_per_token"] - row["against_ms_per_token"])
    # recall is that of the same predictor everywhere: it does not decide
    assert row["recall_on_lru_misses"] > 0.75


def test_with_the_bandwidth_that_it_names_it_pays_and_with_less_it_does_not(split, rows, policies):
    """Ours and the rival replayed on each link; the table works the rival's time out."""
    row, policy = rows["crowded"], policies["crowded"]
    device, rival = profile(split, "crowded"), {"lru": Lru(), "lfu": Lfu()}[row["against"]]
    draws = np.random.default_rng(7).multinomial(3, [1 / 3] * 3, 200)
    for factor in (1, 2, 4, 16):
        link = device.model_copy(update={"link_gb_per_s": device.link_gb_per_s * factor})
        times = [timed(split, one, link).time for one in (policy, rival)]
        ours, theirs = (draws @ time.numerator_P / (draws @ time.denominator_P) for time in times)
        pays = np.percentile(ours - theirs, 97.5) < 0
        assert pays == (link.link_gb_per_s >= row["pays_from_gb_per_s"])


@pytest.mark.parametrize("device", DEVICES)
def test_counts_equal_dictionaries_and_loops(split, rows, policies, device):
    row, policy, events = rows[device], policies[device], split.case.events
    case = slow_clock.Case(events, Budget.slots(split.metadata, SLOTS), slow_clock.RANKS["lru"])
    wanted = slow_clock.last_of_each(events, slow_clock.predicted(events, policy))
    decoded_N = events.is_decode_S[events.step_N].tolist()
    found = [
        expert in requested
        for decodes, experts, requested, lru in zip(
            decoded_N, members(events), wanted, slow_clock.replay(case), strict=True
        )
        for expert, outcome in zip(experts, lru.outcomes, strict=True)
        if decodes and outcome == MISSED
    ]
    missed = len(found)
    assert row["recall_on_lru_misses"] == pytest.approx(sum(found) / missed)
    prepared, link = prepare(events, policy, keep_warm=True), profile(split, device)
    run = timed_run(prepared, Budget.slots(split.metadata, SLOTS), link, split.case.workload)
    total = run.replay.total
    in_time = sum(outcome == PREFETCHED for outcome in run.outcome_A)
    assert row["prefetches_in_time"] == pytest.approx(in_time / total.prefetches)
    own_loads = run.replay.misses_N[decoded_N].sum()
    assert row["bytes_read_per_byte_saved"] == pytest.approx(total.prefetches / (missed - own_loads))
    # what the link carries, over the decoding time, under LRU and under ours
    load_ms = EXPERT_BYTES / link.link_gb_per_s / 1e6 + 10 / 4 / 1e3
    busy = (total.prefetches + own_loads) * load_ms / run.time_N[decoded_N].sum()
    assert row["link_idle_share"] == pytest.approx(max(0, 1 - busy), abs=1e-9)
    on_demand = split.timed_at((device, SLOTS))["lru"]
    computing = sum((on_demand.step_ms_S - on_demand.stall_ms_S)[events.is_decode_S])
    assert row["link_idle_share_on_demand"] == pytest.approx(computing / (computing + missed * load_ms))


def test_below_the_break_even_latency_it_wins_and_above_it_loses(split, rows, policies):
    row, policy = rows["hides"], policies["hides"]
    device = profile(split, "hides")
    for factor, wins in ((0.99, True), (1.0, True), (1.1, False)):
        slower = row["break_even_token_step_ms"] / row["token_step_ms"] * factor
        steps_ms = {name: getattr(policy, name) * slower for name in ("token_step_ms", "layer_step_ms")}
        found = timed(split, replace(policy, **steps_ms), device)
        assert found.token_step_ms == pytest.approx(row["break_even_token_step_ms"] * factor)
        assert (found.ms_per_token < row["against_ms_per_token"]) == wins
    for device in ("crowded", "saturated"):
        assert rows[device]["break_even_token_step_ms"] is None, "it loses as it is"


@pytest.mark.parametrize("device", DEVICES)
def test_up_to_the_break_even_width_it_wins(split, tables, rows, policies, device):
    link = profile(split, device)
    tried = {width: timed(split, replace(policies[device], width=width), link) for width in (1, 2, 4)}
    faster = [width for width, one in tried.items() if one.ms_per_token < rows[device]["against_ms_per_token"]]
    assert rows[device]["break_even_width"] == max(faster, default=0)
    found = tables[1].filter(device=device)
    assert found["width"].to_list() == list(tried)
    for row in found.iter_rows(named=True):
        one = tried[row["width"]]
        expected = (one.ms_per_token, one.moved.value, one.hits.value)
        assert (row["ms_per_token"], row["mib_per_token"], row["hit_rate"]) == expected


def test_other_links_are_timed_for_plain_policies_and_those_of_predictors(split):
    table = by_bandwidth_table([split])
    assert set(table["policy"]) == {"lru", "lfu", *(name for name in split.facts if name.startswith("ours"))}
    assert set(table["bandwidth_gb_per_s"]) == set(SETTINGS.bandwidths_gb_per_s)
    assert table.height == len(DEVICES) * 7 * 3
    row = table.filter((table["policy"] == "ours_prefetch_lru") & (table["device"] == "hides")).row(1, named=True)
    device = profile(split, "hides").model_copy(update={"link_gb_per_s": 8.0})
    policy = next(one for one in split.predictions[0].policies(K, 0.0) if one.name == "ours_prefetch_lru")
    assert row["bandwidth_gb_per_s"] == 8.0
    assert row["ms_per_token"] == timed(split, policy, device).ms_per_token
