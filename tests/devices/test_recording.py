from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.devices.calibrate import calibrate, fit_token_time
from moe_beyond.devices.device import dump_device, known_devices, load_device
from moe_beyond.devices.workload import Workload, dense_size
from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.engine.timing import timed_replay
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.phone_traces import shared
from tests.simulator.strategies import make_trace


def record(path, *, link_gb_per_s=2.0, computing_ms=50.0, tokens=60, noise_ms=0.0):
    draw = np.random.default_rng(0)
    read = draw.integers(0, 10**9, tokens)
    wall = computing_ms + read / 1e9 / link_gb_per_s * 1e3 + draw.normal(0, noise_ms, tokens)
    pl.DataFrame({"step": np.arange(tokens), "read_bytes": read, "wall_ms": wall}).write_csv(path)
    return path


@given(computing=st.floats(1, 100), per_gb=st.floats(1, 1000), seed=st.integers(0, 99))
def test_a_line_with_a_few_wild_steps_is_found(computing, per_gb, seed):
    draw = np.random.default_rng(seed)
    missed = draw.integers(0, 10**9, 60)
    wall = computing + per_gb * missed / 1e9
    wall[draw.choice(60, 6, replace=False)] += 5000
    fitted = fit_token_time(missed, wall)
    assert fitted.computing_ms == pytest.approx(computing, rel=0.02, abs=0.5)
    assert fitted.ms_per_gb == pytest.approx(per_gb, rel=0.02, abs=1)
    assert fitted.link_gb_per_s == pytest.approx(1e3 / fitted.ms_per_gb)


def test_a_recorded_device_is_found_again(tmp_path):
    fitted = calibrate(record(tmp_path / "run.csv"), 10**9, "mine")
    assert fitted.device.link_gb_per_s == pytest.approx(2.0, rel=1e-3)
    # a gigabyte of resident weights in 50 ms
    assert fitted.device.memory_gb_per_s == pytest.approx(20.0, rel=1e-3)
    assert fitted.median_error < 0.001
    noisy = calibrate(record(tmp_path / "noisy.csv", noise_ms=80.0), 10**9, "mine")
    assert noisy.median_error > 0.02


@pytest.mark.parametrize(("noise_ms", "pause_ms"), [(0.0, 0.0), (1.0, 300.0)])
def test_a_device_fitted_to_a_run_replays_it_within_its_stated_error(tmp_path, noise_ms, pause_ms):
    trace = make_trace(3, num_layers=3, num_experts=12, lengths=(204,), prefill=(4,), expert_bytes=(20_000_000,) * 3)
    meta = trace.metadata.model_copy(update={"dense_bytes": (300_000_000, 0, 200_000_000)})
    events, workload, budget = events_of(replace(trace, metadata=meta)), Workload.of(meta, 2), Budget.slots(meta, 14)
    assert workload.resident_bytes(meta.top_k) == 500_000_000 + 6 * 20_000_000
    misses_S = np.bincount(events.step_N, replay(events, Lru(), budget).misses_N)[1:]
    draw = np.random.default_rng(0)
    wall_S = 40 + misses_S * 20_000_000 / 1e9 * 500 + draw.normal(0, noise_ms, 200)
    wall_S[::25] += pause_ms
    recorded = tmp_path / "run.csv"
    pl.DataFrame({"read_bytes": misses_S.astype(int) * 20_000_000, "wall_ms": wall_S}).write_csv(recorded)
    device = calibrate(recorded, workload.resident_bytes(meta.top_k), "mine").device
    timed = timed_replay(events, Lru(), budget, device, workload)
    assert timed.ms_per_token == pytest.approx(wall_S.mean(), rel=device.fit_error + 1e-3)
    assert dense_size(meta, None, device) == (None, "trace")
    # a trace that does not say how large dense parts are: the device knows what a token read
    assert dense_size(trace.metadata, None, device) == (pytest.approx(500_000_000, abs=600), "device")
    assert dense_size(trace.metadata, None, load_device("phone_ufs")) == (None, "assumed")
    assert dense_size(meta, 7, device) == (7, "given")


def test_a_large_error_is_said_with_its_cause(tmp_path):
    path = record(tmp_path / "run.csv")
    table = pl.read_csv(path)
    slow = table.with_columns(wall_ms=pl.col("wall_ms") * pl.when(pl.col("step") < 30).then(1).otherwise(2))
    slow.write_csv(path)
    notes = calibrate(path, 10**9, "mine").notes
    assert "mean time is" in notes[0]
    assert "heat, paging or other programs" in notes[0]
    slow.with_columns(majflt=pl.lit(900)).write_csv(path)
    assert "900 major page faults a token" in calibrate(path, 10**9, "mine").notes[0]


def test_a_written_device_reads_as_it_was(tmp_path):
    mine = calibrate(record(tmp_path / "run.csv"), 10**9, "mine").device
    for device in (mine, *map(load_device, known_devices())):
        (tmp_path / "written.yaml").write_text(dump_device(device))
        assert load_device(str(tmp_path / "written.yaml")) == device.model_copy(update={"name": "written"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("about: x", "link_gb_per_s: Field required"),
        ("- 1", "expected keys such as link_gb_per_s, found list"),
        ("a: [", "not valid YAML"),
        (dump_device(load_device("laptop_nvme")) + "link_gbps: 3", "link_gbps: Extra inputs are not permitted"),
        ("about: x\nlink_gb_per_s: fast", r"link_gb_per_s: .* \(found 'fast'\)"),
        ("about: x\nlink_gb_per_s: -1", r"link_gb_per_s: .* greater than 0 \(found -1\)"),
    ],
)
def test_a_device_file_that_breaks_a_rule_is_one_line(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_device(str(path))
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_files_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match="not a readable file"):
        load_device(str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="not a readable CSV"):
        calibrate(tmp_path / "none.csv", 10**9, "mine")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"read_bytes": [1] * 30}, "column 'wall_ms'"),
        ({"read_bytes": ["x"] * 30, "wall_ms": [1.0] * 30}, "column 'read_bytes'"),
        ({"read_bytes": [1, 2, 3], "wall_ms": [1.0, 2.0, 3.0]}, "3 tokens; record at least 20"),
        ({"read_bytes": [0] * 30, "wall_ms": [1.0] * 30}, "no token reads anything .* page faults"),
        ({"read_bytes": [0] * 15 + [5] * 15, "wall_ms": [1.0] * 30}, "of the first half no token reads anything"),
        ({"read_bytes": [10**9, 10**9 + 4096] * 15, "wall_ms": [1.0] * 30}, "no token reads more or less than 954 MiB"),
        ({"read_bytes": list(range(10**8, 31 * 10**8, 10**8)), "wall_ms": list(range(60, 30, -1))}, "no longer"),
    ],
)
def test_a_recording_that_tells_nothing_is_refused(tmp_path, table, message):
    pl.DataFrame(table).write_csv(tmp_path / "run.csv")
    with pytest.raises(InputError, match=message) as error:
        calibrate(tmp_path / "run.csv", 10**9, "mine")
    assert str(error.value).startswith(str(tmp_path / "run.csv"))


def test_the_phones_own_recording_is_one():
    fitted = calibrate(shared("bigmoe-on-edge", "qwen.metrics"), 1_450_000_000, "phone")
    assert fitted.tokens == 128
    assert fitted.median_error < 0.10
