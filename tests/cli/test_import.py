"""The command `import`: its options, and that a refused source leaves what was there."""

from dataclasses import replace

import numpy as np

from moe_beyond.traces import store
from tests.cli.test_commands import error_of, printed, run
from tests.formats.cases import BESIDE, IDS, SMALL, arrays, experts, write
from tests.formats.count_cases import COUNTS
from tests.formats.engine_cases import CASES
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


SHAPE = ("--moe-layers", "1-3", "--expert-size", 1000, "--num-experts", 8, "--top-k", 2, "--model-id", "m/x")


def test_auto_names_the_format_and_imports_it(tmp_path):
    source = write(tmp_path / "run", CASES["lucebox"].files) / "x.bin"
    words = ("import", "auto", source, tmp_path / "trace.parquet", *SHAPE, "--hidden-size", 4)
    assert "does not say which tokens are the prompt's; give --prefill-tokens" in run(*words).stderr
    result = run(*words, "--prefill-tokens", "2")
    assert result.exit_code == 0
    assert "read as lucebox: x.bin has records of layer, k, 4 numbers and k ids" in result.stderr
    assert store.read_parquet(tmp_path / "trace.parquet").hidden.gate_inputs_SYD.shape == (4, 3, 4)
    found = printed("describe", tmp_path / "trace.parquet")
    assert (found["model_id"], found["prefill_tokens"], found["decode_tokens"]) == ("m/x", 2, 2)


def test_counts_are_assessed_without_a_verdict_and_refused_where_order_counts(tmp_path):
    source = write(tmp_path, COUNTS["imatrix"]) / "x.gguf"
    card = printed("assess", source, "--counts", "auto", "--top-k", 2)
    assert (card["input"], card["top_k"], "verdict" in card) == ("counts only", 2, False)
    for words in (("assess", source), ("replay", source, "--policy", "lru", "--capacity", 4)):
        assert "counts, without the order of the tokens that this needs" in error_of(*words)
    assert "'imatrix' holds counts" in error_of("import", "auto", source, tmp_path / "x.parquet")


def test_counts_make_a_placement(tmp_path):
    source, out = write(tmp_path, COUNTS["imatrix"]) / "x.gguf", tmp_path / "x.coli_usage"
    words = ("export", "placement", "colibri-usage", source, out, "--slots", 2, "--counts", "auto")
    said = ("--expert-size", 100, "--top-k", 2, "--engine", "olmoe", "--anyway")
    assert run(*words, *said).exit_code == 0
    assert printed("assess", out, "--counts", "coli-usage")["moe_layers"] == [1, 2, 3]


def test_a_trace_that_is_not_imported_is_named(tmp_path):
    source = write(tmp_path, CASES["mbolt"].files) / "x.mblt"
    assert "import it first: moe-beyond import mbolt" in error_of("assess", source)
    result = run("assess", source, "--counts", "auto")
    assert "a trace, no counts: import it" in result.stderr
