"""A link's curve: its points come back, what lies between is between, and it stands in for bandwidth and setup."""

import numpy as np
import pytest

from moe_beyond.devices.device import Device, dump_device, load_device
from moe_beyond.errors import InputError

BASE = {
    "name": "any", "about": "-", "link_gb_per_s": 2, "setup_us": 100, "lanes": 4, "memory_gb_per_s": 20,
    "layer_overhead_us": 0,
}  # fmt: skip
# KiB, lanes, GB/s
CURVE = [
    (4, 1, 0.03),
    (128, 1, 0.6),
    (1024, 1, 2.4),
    (8192, 1, 4.1),
    (4, 8, 0.2),
    (128, 8, 1.8),
    (1024, 8, 3.0),
    (8192, 8, 4.2),
]


def device_of(**terms):
    return Device.model_validate({**BASE, "link_curve": CURVE, **terms})


@pytest.mark.parametrize(("kib", "lanes", "gb_per_s"), [point for point in CURVE if point[0] != 4])
def test_its_points_come_back(kib, lanes, gb_per_s):
    size = kib * 1024
    assert device_of(lanes=lanes).transfer_ms(float(size)) == pytest.approx(size / gb_per_s / 1e6)


def test_between_sizes_time_follows_the_bytes_and_beyond_them_the_last_line():
    device = device_of(lanes=1)
    ms = {kib: kib * 1024 / gb_per_s / 1e6 for kib, lanes, gb_per_s in CURVE if lanes == 1}
    halfway, beyond, none = device.transfer_ms(np.array([(1024 + 8192) / 2, 2 * 8192 - 1024, 0.0]) * 1024)
    assert halfway == pytest.approx((ms[1024] + ms[8192]) / 2)
    assert beyond == pytest.approx(2 * ms[8192] - ms[1024])
    assert none == pytest.approx(ms[4] - (ms[128] - ms[4]) / 124 * 4)


def test_between_lanes_speed_follows_their_logarithm_and_stays_beyond_them():
    size = 1024 * 1024
    speeds = {lanes: size / device_of(lanes=lanes).transfer_ms(float(size)) / 1e6 for lanes in (1, 2, 4, 8, 16)}
    assert [speeds[lanes] for lanes in (1, 2, 4, 8, 16)] == pytest.approx([2.4, 2.6, 2.8, 3.0, 3.0])


def test_bandwidth_and_setup_are_a_curve_of_two_points():
    plain = Device.model_validate(BASE)
    points = [(kib, 4, kib * 1024 / plain.transfer_ms(kib * 1024.0) / 1e6) for kib in (128, 4096)]
    sizes = np.array([5e4, 1e6, 3e7])
    np.testing.assert_allclose(device_of(link_curve=points).transfer_ms(sizes), plain.transfer_ms(sizes))
    faster = device_of(link_curve=points).with_link(3.0)
    np.testing.assert_allclose(faster.transfer_ms(sizes), plain.with_link(3.0).transfer_ms(sizes))


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([(128, 1, 1.0), (256, 1, 2.5)], "a larger read takes no longer than a smaller one"),
        ([(128, 1, 1.0), (128, 1, 1.1)], "two points have the same KiB and lanes"),
        ([(128, 1, 0.0)], "all of them above 0"),
    ],
)
def test_a_curve_that_no_link_has_ends_in_one_line(tmp_path, points, said):
    path = tmp_path / "mine.yaml"
    without = dump_device(Device.model_validate(BASE)).replace("link_curve: []\n", "")
    path.write_text(f"{without}link_curve: {[list(point) for point in points]}\n")
    with pytest.raises(InputError, match=said) as error:
        load_device(str(path))
    assert "\n" not in str(error.value)


def test_a_file_gives_it_back(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(dump_device(device_of()))
    assert load_device(str(path)).link_curve == tuple(CURVE)
