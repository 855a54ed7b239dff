import numpy as np
import pytest

from moe_beyond.devices.device import Device
from moe_beyond.devices.expected import Shape, expected_ms
from moe_beyond.devices.workload import Workload
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.engine.timing import timed_replay
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import make_trace

BASE = {"link_gb_per_s": 2, "setup_us": 100, "lanes": 2, "memory_gb_per_s": 20, "layer_overhead_us": 50}
LOADING = {"miss_layer_us": 700, "admit_gb_per_s": 8}


@pytest.mark.parametrize(
    "terms",
    [
        {},
        LOADING,
        {**LOADING, "overlap": True},
        {"fault_gb_per_s": 0.5, "token_overhead_us": 2000},
        {"miss": "compute", "cpu_gb_per_s": 4, "link_gb_per_s": 50},
        {"miss": "sooner", "cpu_gb_per_s": 2, "link_gb_per_s": 4, "overlap": True},
    ],
)
def test_it_is_the_mean_time_of_a_replay_that_misses_as_much(terms):
    """Routing by chance, as it assumes; three percent is what the chance of single layers leaves."""
    trace = make_trace(
        3, num_layers=6, num_experts=24, top_k=4, lengths=(404,), prefill=(4,), expert_bytes=(3_000_000,) * 6
    )
    meta = trace.metadata.model_copy(update={"dense_bytes": (9_000_000,) * 6})
    events, workload, budget = events_of(trace), Workload.of(meta, 0), Budget.slots(meta, 80)
    device = Device.model_validate({**BASE, **terms, "name": "any", "about": "-"})
    timed = timed_replay(events, Lru(), budget, device, workload)
    misses_S = np.bincount(events.step_N, replay(events, Lru(), budget).misses_N)[events.is_decode_S]
    told_S = expected_ms(device, Shape(6, 4, 3_000_000, 54_000_000), misses_S)
    assert told_S.mean() == pytest.approx(timed.ms_per_token, rel=0.03)
