"""Measuring this machine: what a curve says of a link, and files that leave nothing behind."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from moe_beyond.cli import app
from moe_beyond.devices.device import Device, load_device
from moe_beyond.errors import InputError
from moe_beyond.live import link_speed
from moe_beyond.live.link_speed import LANES, SIZES, Curve, LinkFit, curve_of, drive

DEVICE = {"name": "any", "about": "-", "link_gb_per_s": 1, "setup_us": 0, "memory_gb_per_s": 1, "layer_overhead_us": 0}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(link_speed, "_FILE_BYTES", 2**25)
    monkeypatch.setattr(link_speed, "_LEAST_FILE_BYTES", 2**23)


@pytest.fixture
def on_drive(tmp_path):
    if link_speed._file_system(tmp_path) in ("tmpfs", "ramfs"):
        pytest.skip("the folder of temporary files lies in memory")
    return tmp_path


def test_a_link_of_known_bandwidth_and_setup_is_found_again():
    curve = curve_of(lambda size, lanes: size / 1e9 / (size / 3e9 + 200e-6 / lanes))
    fit = LinkFit.of(curve)
    assert fit.gb_per_s == pytest.approx(3)
    assert fit.setup_us == pytest.approx(200)
    assert fit.lanes == 4
    assert fit.error == pytest.approx(0, abs=1e-9)
    assert curve.spread_BN == pytest.approx(np.zeros((len(SIZES), len(LANES))))


def test_a_link_that_two_numbers_do_not_describe_is_a_curve_of_its_measurements():
    # small reads of several lanes wait for each other
    curve = curve_of(lambda size, lanes: size / 1e9 / (size / 3e9 + 200e-6 / lanes + 3e-4 * (size == SIZES[2])))
    assert LinkFit.of(curve).error > 0.1
    assert len(curve.points) == 3 * len(LANES)
    device = Device.model_validate({**DEVICE, "lanes": 4, "link_curve": curve.points})
    for size in SIZES[1:]:
        assert size / device.transfer_ms(float(size)) / 1e6 == pytest.approx(
            size / 1e9 / (size / 3e9 + 50e-6 + 3e-4 * (size == SIZES[2])), rel=1e-3
        )


def test_rounds_that_differ_widen_the_range_and_no_setup_is_negative():
    even_BN = np.full((len(SIZES), len(LANES)), 2.0)
    even_BN[-1] = 1.5
    fit = LinkFit.of(Curve(np.stack([even_BN, even_BN, 2 * even_BN])))
    assert fit.setup_us == 0
    low, high = fit.gb_per_s_range
    assert low <= fit.gb_per_s <= high
    assert high == pytest.approx(2 * low)
    assert fit.lanes == 1


def test_larger_reads_of_a_drive_are_faster_and_its_file_is_gone(on_drive, quick):
    with drive(on_drive, seconds=0.05) as measure:
        slow, fast = measure(SIZES[0], 1), measure(SIZES[-1], 1)
    assert 0 < slow < fast
    assert not list(on_drive.iterdir())


def test_memory_a_full_drive_and_no_folder_are_refused(on_drive, monkeypatch):
    with pytest.raises(InputError, match="no such folder"), drive(on_drive / "none"):
        pass
    monkeypatch.setattr(link_speed, "_LEAST_FILE_BYTES", 2**62)
    with pytest.raises(InputError, match="MiB to spare; free"), drive(on_drive):
        pass
    memory = Path("/dev/shm")  # noqa: S108 - what is tested
    if link_speed._file_system(memory) == "tmpfs":
        with pytest.raises(InputError, match="lies in memory"), drive(memory):
            pass


def test_the_command_writes_a_device_that_replays_read(on_drive, quick, monkeypatch):
    monkeypatch.setattr("moe_beyond.live.measure.drive", lambda folder: drive(folder, seconds=0.01))
    monkeypatch.setattr("moe_beyond.live.processor_speed._BYTES", 2**27)
    out = on_drive / "mine.yaml"
    result = CliRunner().invoke(app, ["measure-device", str(on_drive), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.stderr
    found = yaml.safe_load(result.stdout)
    device = load_device(str(out))
    assert device.link_gb_per_s == found["link_gb_per_s"] > 0
    assert device.about.startswith("Measured: ")
    assert set(found["drive_gb_per_s"]["4_kib"]) == {"1_lanes", "4_lanes", "8_lanes"}
    refused = CliRunner().invoke(app, ["measure-device", str(on_drive / "none"), "--out", str(on_drive / "b.yaml")])
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1
    assert not (on_drive / "b.yaml").exists()
