"""What counts alone and a single prompt can say of a placement, and what they cannot."""

from dataclasses import replace

from moe_beyond.advisor.placement_file import Order, export_placement
from moe_beyond.devices.device import load_device
from moe_beyond.formats.counts import count_experts
from tests.advisor.placed import favourites
from tests.traces.refusals import refused
from tests.traces_of_chance import chance_trace


def test_counts_alone_need_a_trace_that_judges_or_a_word(tmp_path):
    trace, other = favourites(24), favourites(8, seed=3)
    counts = replace(count_experts(trace), expert_bytes=None, top_k=None)
    order = Order("fitz-pins", load_device("laptop_nvme"), slots=1)
    refused("give --top-k", export_placement, order, counts, tmp_path / "out", other)
    order = replace(order, top_k=2)
    refused("give a trace of others with --test", export_placement, order, counts, tmp_path / "out")
    assert export_placement(replace(order, anyway=True), counts, tmp_path / "out")["held_out"] is None
    found = export_placement(order, counts, tmp_path / "out", other)
    assert found["held_out"]["verdict"].startswith("pin: ")
    assert "whether the counts hold its prompts is not known" in found["notes"][-1]
    stranger = chance_trace(4, num_layers=2)
    refused("test trace: its MoE layers and experts", export_placement, order, counts, tmp_path / "out", stranger)


def test_one_prompt_is_written_only_when_asked_for(tmp_path):
    order = Order("fitz-pins", load_device("laptop_nvme"), slots=1)
    trace = favourites(1)
    refused("all prompts are the same or nearly", export_placement, order, trace, tmp_path / "out")
    found = export_placement(replace(order, anyway=True), trace, tmp_path / "out")
    assert found["held_out"] is None
    assert found["notes"][-1].startswith("What these experts are worth is not known")
