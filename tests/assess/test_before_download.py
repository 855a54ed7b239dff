"""A card from headers: bytes, the band of known models, and what devices reach, with how far off that may be."""

import numpy as np
import pytest

from benchmarks.golden.recordings import phone_run
from docs.card import sample_header
from moe_beyond.assess.before_download import card, sentences
from moe_beyond.assess.known import band, held_out, known_curves, known_tables, position_of
from moe_beyond.devices.device import NO_RECORDING, known_devices, load_device
from moe_beyond.devices.expected import Shape, expected_ms
from moe_beyond.devices.workload import MIB
from moe_beyond.formats.headers import ModelSizes, read_sizes
from tests.phone_traces import shared

CURVES = known_curves([known_tables(None)[0]])


def sizes_with(top_k=6, **changes):
    layers = 26
    fields = {"name": "m", "source": "s", "num_layers": 27, "num_experts": 64, "top_k": top_k, "dense_bytes": 500 * MIB}
    fields |= {"layer_numbers": tuple(range(1, 27)), "expert_bytes": (8 * MIB,) * layers, "other_bytes": 0}
    return ModelSizes(**fields | changes)


def on(device, sizes, **budget):
    return card(sizes, [load_device(device)], CURVES, **budget)["devices"][0]


def test_a_device_s_times_are_those_of_its_model_at_the_ends_of_the_band():
    device, sizes = load_device("phone_oneplus_15r"), sizes_with()
    found = on(device.name, sizes, budget_bytes=sizes.routed_bytes // 4)
    low, high = band(CURVES, position_of(0.25, 6, 64))
    assert found["hit_rate"] == [low, high]
    assert 0.3 < low < high < 0.8
    shape, used = Shape(26, 6, 8 * MIB, 500 * MIB), 26 * 6
    margin = held_out(CURVES)[1]
    for name, rates, factors in (
        ("tokens_per_s", (low, high), (1, 1)),
        ("tokens_per_s_worst_and_best", (low - margin, high + margin), (1 - 0.428, 1 + 0.428)),
        ("tokens_per_s_without_hits", (0.0,), (1,)),
        ("tokens_per_s_all_resident", (1.0,), (1,)),
    ):
        expected = 1e3 / expected_ms(device, shape, used * (1 - np.array(rates))) * factors
        np.testing.assert_allclose(found[name], expected if len(rates) > 1 else expected[0])


def test_the_memory_that_dense_weights_leave_is_the_cache():
    sizes = sizes_with()
    given = on("laptop_nvme", sizes, memory_bytes=4096 * MIB)
    assert given["budget_bytes"] == (4096 - 500) * MIB
    assert on("laptop_nvme", sizes)["budget_bytes"] == 16 * 1024 * MIB - 500 * MIB
    assert on("laptop_nvme", sizes, budget_bytes=100)["budget_bytes"] == 100
    unknown, small = on("phone_ufs", sizes), on("laptop_nvme", sizes, memory_bytes=100 * MIB)
    for found in (unknown, small):
        assert found["tokens_per_s"] is None
    everything = on("laptop_nvme", sizes, budget_bytes=2 * sizes.routed_bytes)
    assert everything["hit_rate"] == [1.0, 1.0]
    assert everything["tokens_per_s"] == [everything["tokens_per_s_all_resident"]] * 2


def test_below_one_token_s_cycle_there_may_be_no_hit_at_all():
    sizes = sizes_with()
    found = on("laptop_nvme", sizes, budget_bytes=sizes.token_cycle_bytes // 2)
    assert found["hit_rate"][0] == 0
    assert found["tokens_per_s"][0] == found["tokens_per_s_without_hits"]
    assert found["tokens_per_s_worst_and_best"] == found["tokens_per_s"]  # no recording: no error is known


def test_a_model_coarser_than_any_known_one_is_said_to_be():
    notes = card(sizes_with(top_k=6), [], CURVES)["notes"]
    coarse = card(sizes_with(num_experts=8, top_k=2), [], CURVES)["notes"]
    assert len(coarse) == len(notes) + 1
    assert "beyond what was recorded" in coarse[-1]


def test_every_device_is_told_in_a_sentence_with_how_far_off_it_may_be():
    found = card(sizes_with(), [load_device(name) for name in known_devices()], CURVES)
    lines = sentences(found)
    assert len(lines) == 3 + len(known_devices())
    for name, line in zip(known_devices(), lines[3:], strict=True):
        assert line.startswith(f"{name}: ")
        error = load_device(name).fit_error
        assert (NO_RECORDING if error is None else f"by {error:.0%}") in line
    assert "its memory is not stated" in " ".join(lines)
    small = card(sizes_with(), [load_device("laptop_nvme")], CURVES, memory_bytes=MIB)
    assert "exceed its memory of 1 MiB" in sentences(small)[-1]


def test_the_header_of_a_real_model_weighs_what_an_engine_counted_of_it(tmp_path):
    folder = shared("bigmoe-on-edge")
    sizes, recorded = read_sizes(sample_header(tmp_path / "q.gguf")), phone_run(folder, "qwen")
    assert sizes.expert_bytes == recorded.events.metadata.expert_bytes
    head = 151_936 * 2048 // 256 * 210 + 2048 * 4  # which the engine counts to no layer
    assert sizes.dense_bytes == recorded.dense_bytes_L.sum() + head
    assert sizes.routed_bytes + sizes.dense_bytes + sizes.other_bytes == pytest.approx(18.55e9, rel=0.005)
