"""Files of engines give the routing that was written, and what cannot be assigned to a prompt is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from moe_beyond.formats import importers
from moe_beyond.formats.importers import ShapeOverride
from moe_beyond.formats.importers.passes import Passes, routed_passes
from moe_beyond.formats.importers.routed import routed_prompts
from moe_beyond.formats.recognise import recognise
from moe_beyond.traces.schema import TraceMetadata
from tests.formats import engine_cases as engines
from tests.formats.cases import CONFIG, write
from tests.formats.engine_cases import CASES, IDS, NUM_EXPERTS, SHAPE, TOP_K
from tests.phone_traces import shared
from tests.traces.random_traces import random_experts
from tests.traces.refusals import refused


def read(name, folder, files, **said):
    shape = ShapeOverride(**{**vars(CASES[name].shape), **said})
    return importers.read(name, write(folder, files), shape=shape)


@pytest.mark.parametrize("name", CASES)
def test_every_engines_file_gives_the_routing_that_was_written(tmp_path, name):
    case = CASES[name]
    trace = importers.read(name, write(tmp_path / "run", case.files), shape=case.shape)
    expected = case.expected
    prompts = 2 if name == "vllm-routes" else 1
    np.testing.assert_array_equal(trace.experts_TLK, np.concatenate([expected] * prompts))
    assert trace.num_prefill_P.sum() == case.prefill
    assert (trace.weights_TLK is not None) == case.weights
    assert (trace.metadata.layer_numbers, trace.metadata.num_experts, trace.metadata.top_k) == ((1, 2, 3), 8, 2)
    if case.weights:
        top = trace.weights_TLK[:, :, 0]
        assert ((top > trace.weights_TLK[:, :, 1]) & (top > 0.5)).all()


@pytest.mark.parametrize("name", CASES)
def test_auto_names_the_format_and_why(tmp_path, name):
    kind, found, reason = recognise(write(tmp_path, CASES[name].files))
    assert (kind, found) == ("trace", name)
    assert reason


@pytest.mark.parametrize("name", sorted(set(CASES) - {"flame"}))
def test_a_config_says_the_shape_as_well_as_a_person(tmp_path, name):
    case = CASES[name]
    config = {key: value for key, value in CONFIG.items() if key != "model_type"} | {"hidden_size": 4}
    write(tmp_path, case.files | {"config.json": json.dumps(config).encode()})
    said = replace(case.shape, moe_layers=None, expert_size=None, num_experts=None, top_k=None, hidden_size=None)
    trace = importers.read(name, tmp_path, shape=said)
    assert (trace.metadata.layer_numbers, trace.metadata.expert_bytes) == ((1, 2, 3), (3 * 4 * 4 * 2,) * 3)


# the toy files beside the repository: names of layers, prefill, tokens, and the rest that a person says
TOKENS = np.array(
    [[[0, 1], [2, 3], [1, 0]], [[1, 2], [3, 0], [0, 2]], [[2, 0], [0, 1], [3, 1]], [[3, 1], [1, 2], [2, 3]]]
)
LAST_ALONE = TOKENS.copy()
LAST_ALONE[0, 2] = LAST_ALONE[1, 2]
TOYS = [
    ("strata", "strata-routing.bin", "0-2", 0, TOKENS[2:], {}),
    ("strata", "strata-routing-allpos.bin", "0-2", 2, TOKENS, {}),
    ("mbolt", "mbolt.mblt", "0-2", 2, LAST_ALONE, {}),
    ("mstr", "trace.3L.mstr", "0-2", 2, TOKENS, {}),
    ("fitz", "fitz.rtrace", "0-2", 2, TOKENS, {"prefill_tokens": "2"}),
    ("moe-trace-a", "moe-trace-a.csv", "0-2", 2, TOKENS, {}),
    ("moe-trace-b", "moe-trace-b.jsonl", "0-2", 2, TOKENS, {"prefill_tokens": "2"}),
    ("moe-trace-c", "moe-trace-c.bin", "0-2", 2, TOKENS, {}),
    ("moe-trace-d", "moe-trace-d.txt", "0-2", 0, TOKENS[2:], {}),
    ("llamacpp-csv", "moe-trace-e.csv", "0-2", 2, TOKENS, {"prefill_tokens": "2"}),
    ("moe-trace-f", "moe-trace-f.csv", "0-2", 2, TOKENS, {}),
    ("lucebox", "lucebox-routing.bin", "0-2", 0, TOKENS[2:], {"prefill_tokens": "0", "hidden_size": 4}),
    ("colibri", "colibri.route_trace.txt", "1-3", 2, TOKENS, {}),
    ("megatron", "megatron", "1-3", 2, TOKENS, {}),
    ("sglang-json", "sglang-routed-experts.json", "0-2", 2, TOKENS[:3], {}),
    ("0xbakeer-npz", "0xbakeer", "0-2", 4, TOKENS, {}),
    ("flash-moe", "flash-moe.jsonl", "0-2", 0, TOKENS[2:], {}),
]


@pytest.mark.parametrize("toy", TOYS)
def test_the_toy_files_hold_the_routing_that_their_description_states(toy):
    name, file, layers, prefill, tokens, said = toy
    source = shared("engines", "toy-synthetic", file)
    shape = ShapeOverride(layers, "1000", 4, 2, **said)
    trace = importers.read(name, source, shape=shape)
    np.testing.assert_array_equal(trace.experts_TLK, tokens)
    assert trace.num_prefill_P.sum() == prefill
    assert recognise(source)[1] == name
    if name in ("fitz", "megatron"):
        np.testing.assert_allclose(trace.weights_TLK[:, :, 0], 0.6103, atol=1e-3)
        np.testing.assert_allclose(trace.weights_TLK[:, :, 1], 0.2245, atol=1e-3)


def test_a_real_moe_trace_has_its_first_steps():
    source = shared("engines", "llamacpp-moe-trace", "production-routing.first3steps.csv")
    trace = importers.read("moe-trace-a", source, shape=ShapeOverride("0-39", "1000", 256))
    assert (trace.num_tokens, trace.num_prefill_P.tolist(), trace.metadata.top_k) == (3, [0], 8)
    assert trace.experts_TLK[0, 0].tolist() == [177, 47, 115, 235, 192, 81, 187, 158]


@pytest.mark.parametrize("file", ["olmoe-t4", "qwen15moe-gptq-5080"])
def test_real_route_logs_of_one_request_id_are_no_traces(file):
    source = shared("engines", "vllm-moe-logger", f"{file}.moe_routes.jsonl.xz")
    refused("prompts cannot be told apart", importers.read, "vllm-routes", source, shape=SHAPE)


def groups(*sizes, seed=3):
    """Batches of random experts of these sizes."""
    ids = random_experts((sum(sizes), 3), NUM_EXPERTS, TOP_K, seed)
    return np.split(ids, np.cumsum(sizes)[:-1])


def test_prompts_that_are_certain_are_divided(tmp_path):
    two = groups(3, 1, 1, 2, 1)
    trace = read("mbolt", tmp_path / "mbolt", {"x.mblt": engines.mbolt(two)})
    assert (trace.num_prefill_P.tolist(), trace.prompt_offsets.tolist()) == ([3, 2], [0, 5, 8])
    trace = read("mstr", tmp_path / "mstr", {"x.mstr": engines.mstr(two)})
    assert (trace.num_prefill_P.tolist(), trace.prompt_offsets.tolist()) == ([3, 2], [0, 5, 8])
    trace = read("moe-trace-a", tmp_path / "a", {"x.csv": engines.moe_trace_a(two)})
    assert (trace.num_prefill_P.tolist(), trace.prompt_offsets.tolist()) == ([3, 2], [0, 5, 8])
    assert trace.prompt_ids == ("a/x/prompt_0", "a/x/prompt_1")
    refused(
        "record 15: a batch of 2 tokens after decoded ones", read, "strata", tmp_path, {"x.bin": engines.strata(two)}
    )


def test_batches_one_after_another_are_prompts_where_one_has_ended(tmp_path):
    """A last layer for one token alone ends a prompt; where all tokens have it, a person must say."""
    three = groups(3, 2, 1)
    trace = read("mbolt", tmp_path / "mbolt", {"x.mblt": engines.mbolt(three)})
    assert (trace.num_prefill_P.tolist(), trace.prompt_offsets.tolist()) == ([3, 2], [0, 3, 6])
    for name, data in (("strata", engines.strata(three)), ("mstr", engines.mstr(three))):
        message = "a second batch of several tokens: the same prompt's, or another's"
        refused(message, read, name, tmp_path / name, {f"x.{name}": data} | {"x.bin": data})
        trace = importers.read(name, tmp_path / name / "x.bin", shape=replace(SHAPE, prefill_tokens="5"))
        assert (trace.num_prefill_P.tolist(), trace.num_tokens) == ([5], 6)


def test_decode_steps_that_begin_anew_are_another_prompt(tmp_path):
    data = engines.moe_trace_a(groups(1, 1, 1)) + engines.moe_trace_a(groups(1, 1, seed=4))
    assert read("moe-trace-a", tmp_path, {"x.csv": data}).prompt_offsets.tolist() == [0, 3, 5]


def test_ubatches_without_a_last_layer_belong_to_the_one_that_has_it(tmp_path):
    first, second = groups(3, 2)
    rows = [(layer, ids) for layer, ids in engines.layers_of([first], (0, 1))]
    rows += list(engines.layers_of([second, *groups(1, seed=9)], (0, 1, 2), last_alone=True))
    data = b"MBLT" + engines.ints(1, NUM_EXPERTS)
    data += b"".join(engines.ints(layer, TOP_K, len(ids), *ids.reshape(-1)) for layer, ids in rows)
    trace = read("mbolt", tmp_path, {"x.mblt": data})
    assert trace.num_prefill_P.tolist() == [5]
    assert (trace.experts_TLK[:5, 2] == second[-1, 2]).all()


def test_a_decoded_token_without_its_last_layer_is_a_gap(tmp_path):
    data = engines.moe_trace_a().splitlines(keepends=True)
    message = "line 7: the batch that begins here has 2 layers of 1 to 1 tokens"
    refused(message, read, "moe-trace-a", tmp_path, {"x.csv": b"".join([*data[:8], *data[9:]])})


def test_an_unfinished_end_is_left_out_where_the_writer_may_be_stopped(tmp_path):
    data = engines.mstr()
    for cut in (1, 5, 12, 20):
        assert read("mstr", tmp_path, {"x.mstr": data[:-cut]}).num_tokens == 3
    refused("cut short", read, "strata", tmp_path / "strata", {"x.bin": engines.strata()[:-4]})


def test_biased_routers_have_no_weights_of_their_logits(tmp_path):
    files = engines.megatron()
    files["logits_rank0.bin"] = files["logits_rank0.bin"][::-1]
    files["logits_rank0.bin"] = np.full(len(files["logits_rank0.bin"]) // 2, 0, "<u2").tobytes()
    # all logits equal: any choice is one of the largest
    assert read("megatron", tmp_path / "equal", files).weights_TLK is not None
    files["logits_rank0.bin"] = np.tile(np.arange(8, 0, -1, np.uint16) << 7, len(IDS) * 3).astype("<u2").tobytes()
    trace = read("megatron", tmp_path / "other", files)
    assert trace.weights_TLK is None
    np.testing.assert_array_equal(trace.experts_TLK, np.sort(IDS, axis=2))


def test_requests_at_one_position_are_not_guessed(tmp_path):
    ids = random_experts((6, 3), NUM_EXPERTS, TOP_K, 1)
    both = [
        engines.recorder_pass(0, ids[:3], [0, 1, 0], extend=[2, 1]),
        engines.recorder_pass(1, ids[3:5], [2, 1]),
        engines.recorder_pass(2, ids[5:], [3]),
    ]
    trace = read("sglang-recorder", tmp_path, {"x.pt": engines.recorder(both)})
    assert (trace.prompt_offsets.tolist(), trace.num_prefill_P.tolist()) == ([0, 4, 6], [2, 1])
    np.testing.assert_array_equal(trace.experts_TLK, ids[[0, 1, 3, 5, 2, 4]])
    assert trace.token_ids_T.tolist() == [10, 11, 12, 13, 10, 11]
    alike = [engines.recorder_pass(0, ids[:2], [0, 0], extend=[1, 1]), engines.recorder_pass(1, ids[2:4], [1, 1])]
    refused(
        "2 requests could go on at position 1", read, "sglang-recorder", tmp_path, {"x.pt": engines.recorder(alike)}
    )


def test_sglangs_places_for_dense_layers_and_a_cached_prefix(tmp_path):
    # four layers, the first of them dense
    shape = {"moe_layers": "1-3"}
    trace = read("sglang-json", tmp_path, {"x.json": engines.sglang_json(dense=True)}, **shape)
    np.testing.assert_array_equal(trace.experts_TLK, IDS[:3])
    trace = read("sglang-json", tmp_path, {"x.json": engines.sglang_json(tokens=3, prompt=5, completion=2)})
    assert trace.num_prefill_P.tolist() == [2]
    counts = {"x.pt": engines.saved({"logical_count": engines.PLACES})}
    refused("'logical_count' holds counts", read, "sglang-recorder", tmp_path / "counts", counts)


def test_hidden_states_are_those_of_the_traces_tokens(tmp_path):
    toy = shared("engines", "toy-synthetic", "lucebox-routing.bin")
    hidden = importers.read("lucebox", toy, shape=ShapeOverride("0-2", "1000", 4, 2, 4, None, "0")).hidden
    expected = [[[t + layer / 4 + i / 16 for i in range(4)] for layer in range(3)] for t in (2, 3)]
    np.testing.assert_array_equal(hidden.gate_inputs_SYD, np.array(expected, np.float16))
    assert (hidden.rows_T.tolist(), hidden.layers, hidden.layer_inputs_SYD) == ([0, 1], (0, 1, 2), None)
    megatron = write(tmp_path, engines.megatron())
    hidden = importers.read("megatron", megatron, shape=SHAPE).hidden
    assert (hidden.gate_inputs_SYD.shape, hidden.gate_inputs_SYD.dtype) == ((4, 3, 4), np.float16)
    assert importers.read("megatron", megatron, shape=SHAPE, privacy="ids").hidden is None
    (tmp_path / "hidden_states_rank0.bin").unlink()
    assert importers.read("megatron", megatron, shape=SHAPE).hidden is None


def test_hidden_states_beyond_half_precision_are_cut_and_those_that_are_not_finite_refused(tmp_path):
    for number, message in ((1e30, None), (np.inf, "x.bin: hidden states that are not finite")):
        records = [
            engines.ints(layer, TOP_K) + engines.floats(number, 0, 0, 0) + engines.ints(*row)
            for layer, ids in engines.layers_of()
            for row in ids
        ]
        source, shape = write(tmp_path, {"x.bin": b"".join(records)}), CASES["lucebox"].shape
        if message:
            refused(message, importers.read, "lucebox", source, shape=shape)
        else:
            hidden = importers.read("lucebox", source, shape=shape).hidden
            assert set(hidden.gate_inputs_SYD[:, :, 0].reshape(-1).tolist()) == {65504.0}


def test_left_out_layers_have_no_hidden_states():
    """Of a prompt whose last layer has one token alone."""
    ids = np.array([[0, 1]] * 5)
    states = np.arange(5, dtype=np.float16)[:, None]
    log = Passes("f", np.array([0, 1]), np.array([4, 1]), ids, hidden_AD=states)
    shape = TraceMetadata(
        model_id="m", layer_numbers=(0, 1), num_experts=4, top_k=2, expert_bytes=(1, 1), source="", licence=""
    )
    (routed,) = routed_passes(log, shape, 2)
    np.testing.assert_array_equal(routed.hidden_TLD[:, 0, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(routed.hidden_TLD[:, 1, 0], [np.nan, np.nan, np.nan, 4])
    (prompt,) = routed_prompts([routed], "f", "f", "d", None)
    assert (prompt.hidden.rows_T.tolist(), prompt.hidden.gate_inputs_SYD.tolist()) == ([-1, -1, -1, 0], [[[3], [4]]])


MOE_A = engines.moe_trace_a().decode()
LINES = engines.CASES["lattice"].files["x.jsonl"].decode().splitlines()
HUGE = 2**31 - 1
NO_SHAPE = {"moe_layers": None, "expert_size": None, "num_experts": None, "top_k": None}
BROKEN = [
    ("strata", {"x.bin": engines.ints(1, HUGE)}, {}, "record 0: 2147483647 experts, expected 1 to"),
    (
        "strata",
        {"x.bin": engines.strata()[24:]},
        {},
        "record 0: the batch that begins here has 3 layers of 1 to 2 tokens",
    ),
    (
        "strata",
        {"x.bin": engines.strata().replace(engines.ints(3), engines.ints(9))},
        {},
        "expected a layer with experts",
    ),
    ("strata", {"x.bin": engines.strata()}, {"top_k": 3}, "2 experts a token, the model has top-3"),
    ("strata", {"x.bin": engines.strata()}, {"num_experts": 3}, "the model has experts 0 to 2"),
    ("strata", {"x.bin": engines.strata()}, {"prefill_tokens": "9"}, "--prefill-tokens 9 for 1 prompt, this one of 4"),
    ("strata", {"x.bin": engines.strata()}, {"prefill_tokens": "x"}, "expected a number from 0, or all"),
    ("strata", {"x.bin": engines.strata()}, NO_SHAPE, "or give --moe-layers, --num-experts, --expert-size"),
    ("strata", {"x.bin": engines.strata()}, {"expert_size": "Q4_K"}, "a GGUF type needs the model's config.json"),
    ("mbolt", {"x.mblt": b"MBLT" + engines.ints(2, 8)}, {}, "version 2, 8 experts; expected version 1"),
    ("mbolt", {"x.mblt": b"MBLT" + engines.ints(1, 8, 0, 2, HUGE)}, {}, "2147483647 tokens of 2 experts need"),
    ("mbolt", {"x.mblt": b"MBLT" + engines.ints(1, 8, 0, HUGE, HUGE)}, {}, "expected 1 and more of"),
    ("mbolt", {"x.mblt": engines.mbolt()}, {"num_experts": 9}, "8 experts, the model has 9"),
    ("mstr", {"x.mstr": b"MSTR" + engines.ints(1, HUGE, 4)}, {}, "version 1, top-2147483647"),
    ("fitz", {"x.rtrace": b"RTRACE01" + engines.ints(HUGE, 0)}, {}, "2147483647 experts, top-2; expected 2 to 65536"),
    ("fitz", {"x.rtrace": engines.fitz()}, {"prefill_tokens": None}, "does not say which tokens are the prompt's"),
    ("fitz", {"x.rtrace": engines.fitz()}, {"top_k": None}, "give --top-k, or the model's config.json"),
    ("fitz", {"x.rtrace": engines.fitz()[:-1]}, {}, "the file is cut short"),
    ("lucebox", {"x.bin": engines.lucebox()}, {"hidden_size": None}, "give --hidden-size, or the model's config.json"),
    ("lucebox", {"x.bin": engines.lucebox()}, {"hidden_size": 5}, "record 1: .* is it cut short, or another format"),
    ("colibri", {"x.txt": b"0 0 1 0:x 1:0.5\n"}, {}, "line 1: .* with numbers"),
    ("colibri", {"x.txt": engines.colibri().replace(b"0 1 1 ", b"0 2 1 ")}, {}, "line 2: call 0, row 2, layer 1"),
    (
        "colibri",
        {"x.txt": engines.colibri().replace(b":0.2500", b":nan", 1)},
        {},
        "weights .* expected finite numbers from 0",
    ),
    ("megatron", engines.megatron() | {"router_trace_rank1.jsonl": b"{}"}, {}, "2 files named router_trace_rank<N>"),
    ("megatron", engines.megatron(groups(2, 2)), {}, "step 1 has several tokens, as step 0 had: training"),
    ("megatron", engines.megatron() | {"logits_rank0.bin": b"1"}, {}, "logits ends at byte 1, the record at 32"),
    ("megatron", engines.megatron() | {"hidden_states_rank0.bin": b"1"}, {}, "hidden_states ends at byte 1"),
    (
        "sglang-json",
        {"x.json": engines.sglang_json(prompt=1, completion=1)},
        {},
        "72 bytes of routing for 1 . 1 tokens",
    ),
    ("sglang-json", {"x.json": b'{"choices": [{}, {}], "usage": {}}'}, {}, "one of choices; ask for n=1"),
    ("sglang-json", {"x.json": b'{"choices": [{}], "usage": {}}'}, {}, "no sgl_ext.routed_experts"),
    ("sglang-recorder", {"x.pt": b"PK"}, {}, "no file of torch.save that holds tensors"),
    ("sglang-recorder", {"x.pt": engines.saved({"records": print})}, {}, "no file of torch.save that holds tensors"),
    (
        "sglang-recorder",
        {"x.pt": engines.saved({"records": [engines.PASSES[0] | {"forward_mode": 3}]})},
        {},
        "forward_mode 3, .* record one request at a time",
    ),
    (
        "sglang-recorder",
        {"x.pt": engines.saved({"records": [engines.PASSES[0], engines.PASSES[1] | {"rank": 1}]})},
        {},
        "rank 1 beside rank 0",
    ),
    (
        "0xbakeer-npz",
        engines.bakeer() | {"meta.json": b'{"seqs": [{"n": 3}]}'},
        {},
        "sequences of 3 tokens, the layers have 4",
    ),
    (
        "0xbakeer-npz",
        {**engines.bakeer(), "trace/layer3.npz": engines.npz(indices=np.ascontiguousarray(IDS[:, 0]))},
        {},
        "is missing or has another type",
    ),
    ("0xbakeer-npz", engines.bakeer(), {"moe_layers": "1-4"}, "layer 4 is missing; --moe-layers names others"),
    ("flame", engines.flame() | {"actives/iter_20/layer_01.parquet": b"x"}, {}, "2 checkpoints in actives/"),
    ("flame", engines.flame() | {"samples/000.parquet": b"PAR1"}, {}, "not a readable Parquet file"),
    (
        "flame",
        engines.flame() | {"samples/001.parquet": engines.parquet(token_id=[1])},
        {},
        "4 rows of .* has 5 tokens",
    ),
    ("flash-moe", {"x.jsonl": engines.flash_moe().splitlines()[1]}, {}, "no decoded tokens"),
    ("lattice", {"x.jsonl": "\n".join(LINES[1:]).encode()}, {}, "token 0, layer 1: no row"),
    (
        "lattice",
        {"x.jsonl": "\n".join([*LINES, LINES[0]]).encode()},
        {},
        "token 0, layer 1 is there twice; does a second",
    ),
    ("lattice", {"x.jsonl": "\n".join([*LINES[:3], *LINES[6:]]).encode()}, {}, "token 1 is missing; tokens must be"),
    ("lattice", {"x.jsonl": b'{"layer_idx": 1, "layer_idx": 2}'}, {}, "line 1: key 'layer_idx' is given twice"),
    ("lattice", {"x.jsonl": b"[1]"}, {}, "line 1: expected an object, found list"),
    ("vllm-routes", {"x.jsonl": engines.vllm_routes(("a",))}, {}, "one req_id, 'a', .* none are invented"),
    (
        "vllm-routes",
        {"x.jsonl": b"\n".join(engines.vllm_routes().splitlines()[:61])},
        {},
        "no routes behind the engine's profile",
    ),
    ("moe-trace-a", {"x.csv": MOE_A.replace("-2,", "-x,", 1).encode()}, {}, "line 1: a field is '-x'"),
    ("moe-trace-a", {"x.csv": MOE_A.replace("\n1,", "\n2,").encode()}, {}, "line 10: step 2 follows 0; one is missing"),
    ("moe-trace-c", {"x.bin": engines.moe_trace_c()[:30]}, {}, "record 1: .* the file is cut short"),
    ("moe-trace-d", {"x.txt": b"0 0 1 1 2\n0 0 2 1 2 3\n"}, {}, "line 2: 6 numbers, line 1 has 5"),
    (
        "moe-trace-f",
        {"x.csv": engines.moe_trace_f().replace(b"prefill", b"x")},
        {},
        "line 2: 'x,0,1,0,1', expected the header .* then a phase",
    ),
    (
        "moe-trace-f",
        {"x.csv": engines.moe_trace_f().replace(b",1,", b",999999999,", 1)},
        {},
        "expected each rank once a pair",
    ),
]


@pytest.mark.parametrize(("name", "files", "said", "message"), BROKEN)
def test_a_broken_rule_is_one_line(tmp_path, name, files, said, message):
    refused(rf"(?s)^[^\n]*{message}", read, name, tmp_path, files, **said)


def test_a_config_of_another_model_is_named(tmp_path):
    other = json.dumps({key: value for key, value in CONFIG.items() if key != "model_type"} | {"n_routed_experts": 16})
    files = CASES["mbolt"].files | {"config.json": other.encode()}
    said = dict.fromkeys(("moe_layers", "expert_size", "num_experts", "top_k"))
    refused("the trace has experts 8, .*config.json says 16: another model's", read, "mbolt", tmp_path, files, **said)


def test_a_file_that_fits_two_formats_or_none_asks(tmp_path):
    write(tmp_path / "two", {"a.mblt": engines.mbolt(), "b.mstr": engines.mstr()})
    refused(r"could be mbolt \(.*\) or mstr \(.*\); name the format", recognise, tmp_path / "two")
    write(tmp_path / "none", {"a.txt": b"hello"})
    refused("no known format; name one of 0xbakeer-npz", recognise, tmp_path / "none")
