"""The command `import`: its options, and that a refused source leaves what was there."""

from dataclasses import replace

import numpy as np

from moe_beyond.traces import store
from tests.cli.test_commands import error_of, printed
from tests.formats.cases import BESIDE, IDS, SMALL, arrays, experts, write
from tests.traces.random_traces import random_trace


def test_layers_and_bytes_can_be_named_and_a_refusal_leaves_the_former_trace(tmp_path):
    source, out = tmp_path / "run", tmp_path / "trace.parquet"
    write(source, {"a.npz": arrays(routed_experts=experts(4, SMALL), **IDS)} | BESIDE)
    words = ("import", "vllm-npz", source, out, "--moe-layers", "0-1,3", "--expert-size", "Q8_0")
    found = printed(*words)
    assert (found["moe_layers"], found["expert_bytes_max"]) == ([0, 1, 3], 3 * 2 * 34)
    before = out.read_bytes()
    assert "expected numbers and ranges" in error_of(*words[:4], "--moe-layers", "all")
    write(source, {"a.npz": arrays(routed_experts=np.zeros((4, 3, 2), int), **IDS)})
    assert "zeros for experts" in error_of(*words)
    assert out.read_bytes() == before


def test_assess_gives_no_verdict_on_a_trace_without_routing(tmp_path):
    trace = random_trace([40, 40], layers=4, experts=16, top_k=1)
    store.write_parquet(replace(trace, experts_TLK=np.zeros_like(trace.experts_TLK)), tmp_path / "zeros.parquet")
    assert "zeros for experts: the engine's buffer was never filled" in error_of("assess", tmp_path / "zeros.parquet")
