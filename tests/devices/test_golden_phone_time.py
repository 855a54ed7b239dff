"""Bytes and time of every token on the phone; that its time is predicted to ten percent, `make golden` checks."""

import numpy as np
import polars as pl
import pytest

from benchmarks.golden.checks import PHONES, missed_bytes_S
from benchmarks.golden.device_errors import QWEN
from moe_beyond.devices.calibrate import calibrate
from moe_beyond.devices.device import load_device
from moe_beyond.devices.fit import Known, fit
from moe_beyond.devices.recordings import read_recording
from moe_beyond.devices.workload import Workload
from moe_beyond.formats import importers
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.engine.results import MIB
from moe_beyond.simulator.engine.timing import timed_replay
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.phone_traces import recording, shared


def recorded(name):
    """What was recorded, and the bytes that the replay says each decoded token missed."""
    run = recording(name)
    budget_mib, _ = PHONES[name]
    result = replay(run.events, Lru(), Budget.bytes(run.events.metadata, budget_mib * MIB), overrun=True)
    return run, missed_bytes_S(run, result.misses_N)


@pytest.mark.parametrize("name", PHONES)
def test_the_bytes_of_every_token_are_those_the_phone_read(name):
    run, missed_S = recorded(name)
    # the phone reads whole pages around an expert
    read_S = run.metrics["read_bytes"].to_numpy()
    assert (read_S >= missed_S).all()
    assert np.corrcoef(read_S, missed_S)[0, 1] > 0.999999


@pytest.mark.parametrize(
    ("name", "budget_mib", "file"),
    [
        ("qwen", 4000, ("bigmoe-on-edge", "qwen.metrics")),
        # the routing is that of another prompt
        ("gptoss", 2000, ("..", "recordings", "bigmoe-on-edge", "2026-07-20-cache-replay", "lanes8_k2.csv")),
    ],
)
def test_a_device_fitted_on_one_half_replays_the_other_within_ten_percent(tmp_path, name, budget_mib, file):
    table = pl.read_csv(shared(*file), comment_prefix="#").with_row_index()
    trace = importers.read("bigmoe-route", shared("bigmoe-on-edge", f"{name}.route.csv.gz"))
    meta, workload = trace.metadata, Workload.of(trace.metadata, 0)
    budget = Budget.bytes(meta, budget_mib * MIB)
    first = pl.col("index") < table.height // 2
    for fitted_on, other in ((first, ~first), (~first, first)):
        table.filter(fitted_on).write_csv(tmp_path / "half.csv")
        device = calibrate(tmp_path / "half.csv", workload.resident_bytes(meta.top_k), "half").device
        timed = timed_replay(events_of(trace), Lru(), budget, device, workload, overrun=True)
        assert timed.ms_per_token == pytest.approx(table.filter(other)["wall_ms"].mean(), rel=0.1)


def test_the_packages_phone_is_the_fitted_one():
    folder = ("..", "recordings", "bigmoe-on-edge", "2026-07-12")
    recorded = [
        read_recording(shared(*folder, f"qwen_{name}.csv"), lanes) for name, lanes in (("c2000_l2", 2), ("c4000_l4", 4))
    ]
    device, fitted = load_device("phone_oneplus_15r"), fit(recorded, QWEN, Known(overlap=True), "phone").device
    for name in ("link_gb_per_s", "miss_layer_us", "admit_gb_per_s", "memory_gb_per_s", "fit_error"):
        assert getattr(device, name) == pytest.approx(getattr(fitted, name), rel=0.01), name
    assert (device.lanes, device.overlap) == (fitted.lanes, fitted.overlap)
