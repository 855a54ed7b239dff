"""Times of a run: means, the recording's columns, and the device that a run on demand measures."""

from dataclasses import replace

import polars as pl
import pytest

from moe_beyond.errors import InputError
from moe_beyond.live.offloaded import StepTime
from moe_beyond.live.recording import hit_rate, means, measured_device, table, write_recording
from tests.traces_of_chance import chance_trace

TOKEN = StepTime(
    prompt=0,
    decodes=True,
    tokens=1,
    wall_ms=20.0,
    io_ms=12.0,
    stall_ms=11.0,
    predictor_ms=1.0,
    dense_ms=3.0,
    experts_ms=2.0,
    read_bytes=10_000,
    hits=1,
    misses=5,
)
TIMES = [replace(TOKEN, decodes=False, wall_ms=500.0, tokens=7), TOKEN, replace(TOKEN, wall_ms=30.0, hits=3, misses=3)]


def test_only_decoded_tokens_count():
    rows = table(TIMES)
    assert rows["compute_ms"].to_list() == [9.0, 19.0]
    assert means(rows)["wall_ms"] == 25
    assert hit_rate(TIMES[1:]) == 4 / 12
    with pytest.raises(InputError, match="nothing was decoded"):
        table(TIMES[:1])


def test_a_recording_has_the_columns_of_other_engines(tmp_path):
    write_recording(tmp_path / "run.csv", TIMES, "a model, lru, 9 experts")
    text = (tmp_path / "run.csv").read_text()
    assert text.startswith("# a model, lru, 9 experts\n")
    rows = pl.read_csv(tmp_path / "run.csv", comment_prefix="#")
    wanted = ["wall_ms", "io_ms", "compute_ms", "stall_ms", "read_bytes", "hits", "misses"]
    assert set(wanted) <= set(rows.columns)
    assert rows["wall_ms"].to_list() == [20.0, 30.0]


def test_the_measured_device_takes_as_long_as_the_run():
    meta = chance_trace().metadata
    device = measured_device([TOKEN] * 2, meta, 2000, gb_per_s=0.001)
    # an expert of 2,000 bytes is 2 ms on the way, and was waited for 11 / 5 ms
    assert device.transfer_ms(2000.0) == pytest.approx(2.2)
    assert device.layer_overhead_us == pytest.approx(1e3)
    assert device.read_ms(2000.0 * meta.token_cycle) == pytest.approx(2.0)
    # what is left: 20 - 11 waiting - 1 predicting - 3 dense - 2 experts
    assert device.token_overhead_us == pytest.approx(3e3)
