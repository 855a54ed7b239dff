"""What each format says is what a trace holds, quirks included."""

import gzip

import numpy as np
import pytest

from moe_beyond.formats import importers
from tests.formats import cases
from tests.formats.cases import BESIDE, PAPER, SMALL, SOURCES, TOKENS, arrays, experts, predicted, read, routed
from tests.phone_traces import shared
from tests.traces.refusals import refused

TEXTS = [
    ("\r\n", b"", TOKENS),
    ("\n", b"\xef\xbb\xbf", TOKENS),
    ("\r\n", b"", ["\r", "\n", "\r\n", "\0"]),
]


@pytest.mark.parametrize(("terminator", "bom", "tokens"), TEXTS)
def test_the_papers_tokens_survive_with_quotes_commas_and_line_breaks(tmp_path, terminator, bom, tokens):
    ids = experts(len(tokens), PAPER)
    trace = read("moe-beyond-csv", tmp_path / "puffin", {"prompt_3_data.csv": bom + routed(ids, tokens, terminator)})
    assert trace.token_texts.decode() == tokens
    np.testing.assert_array_equal(trace.experts_TLK, ids)
    assert (trace.prompt_ids, trace.is_prefill_T.all()) == (("puffin/prompt_3",), True)
    # a lone quote inside an unquoted token is text
    data = routed(ids[:1], ["QUOTE"]).replace(b"QUOTE", 'Ġ"'.encode())
    assert read("moe-beyond-csv", tmp_path / "unquoted", {"p_data.csv": data}).token_texts.decode() == ['Ġ"']


def test_prompts_come_in_order_of_their_numbers_and_privacy_drops_what_it_says(tmp_path):
    tokens = {"prompt_10_data.csv": 3, "prompt_2_data.csv": 1}
    files = {name: routed(experts(count, PAPER, count), TOKENS[:count]) for name, count in tokens.items()}
    trace = read("moe-beyond-csv", tmp_path, files, domain="d", held_out=True, privacy="ids")
    assert (trace.prompt_ids, trace.prompt_offsets.tolist()) == (("d/prompt_2", "d/prompt_10"), [0, 1, 4])
    assert (trace.held_out_P.all(), trace.token_texts) == (True, None)
    np.testing.assert_array_equal(trace.experts_TLK[1:], experts(3, PAPER, 3))


@pytest.mark.parametrize("ending", ["", "_csvs"])
def test_predictions_find_their_prompt_by_routing_and_of_equal_ones_by_number(tmp_path, ending):
    prompts, predictions = f"formatted{ending}", f"predicted{ending}"
    named = {number: experts(2, PAPER, 100 + number) for number in (1, 2, 3)}
    # the third and the first are routed alike; the second's prediction bears another number
    ids = {1: experts(2, PAPER, 1), 2: experts(2, PAPER, 2), 3: experts(2, PAPER, 1)}
    files = {f"{prompts}/prompt_{n}_data_formatted.csv": routed(ids[n], TOKENS[:2]) for n in ids}
    for n, other in ((1, 1), (2, 7), (3, 3)):
        files[f"{predictions}/prompt_{other}_data_predicted.csv"] = predicted(ids[n], named[n])
    # an editor's copy
    files[f"{prompts}/.ipynb_checkpoints/prompt_1_data-checkpoint.csv"] = routed(ids[1], TOKENS[:2])
    trace = read("moe-beyond-csv", tmp_path, files)
    np.testing.assert_array_equal(trace.predicted_TLK, np.sort(np.concatenate(list(named.values())), axis=2))


def test_esfts_sequences_become_prompts_of_their_task(tmp_path):
    trace = read("esft", tmp_path, SOURCES["esft"])
    assert (trace.prompt_ids, trace.domains) == (("law/sequence_0", "law/sequence_1"), ("law", "law"))
    assert trace.num_prefill_P.tolist() == [2, 3]
    np.testing.assert_array_equal(trace.experts_TLK, np.concatenate(cases.SEQUENCES))
    np.testing.assert_allclose(trace.weights_TLK, 1 / (2 + trace.experts_TLK.astype(np.float64)), atol=1e-4)


def test_a_fingerprint_is_decode_with_its_strings(tmp_path):
    trace = read("gpt-oss-fingerprint", tmp_path, SOURCES["gpt-oss-fingerprint"])
    assert (trace.num_tokens, trace.domains, trace.prompt_ids) == (3, ("mmlu",), ("x",))
    assert (trace.is_prefill_T.any(), trace.token_texts.decode()) == (False, ["D", "E", "F"])
    np.testing.assert_array_equal(trace.experts_TLK, experts(3, cases.GPT_OSS))
    last = cases.fingerprint()["router_data"][2]["token_5"]["layer_23"]
    np.testing.assert_allclose(trace.weights_TLK[2, 23], last["selected_probs"], rtol=1e-3)


def test_a_phones_turns_become_prompts_and_its_skipped_last_layer_adds_nothing(tmp_path):
    text = (cases.ROUTE_HEAD + cases.ROUTE + "\n".join("1" + line[1:] for line in cases.ROUTE.splitlines())).encode()
    trace = read("bigmoe-route", tmp_path, {"toy.route.csv.gz": gzip.compress(text)})
    meta = trace.metadata
    assert (meta.model_id, meta.layer_numbers, meta.num_experts, meta.top_k) == ("Toy-Q4", (1, 2), 4, 2)
    assert (meta.expert_bytes, trace.num_prefill_P.tolist()) == ((100, 200), [2, 2])
    # the layer without experts is read with the one after it
    assert meta.dense_bytes == (18, 9)
    assert (trace.prompt_ids, trace.prompt_offsets.tolist()) == (("toy/turn_0", "toy/turn_1"), [0, 3, 6])
    assert trace.experts_TLK[:3, 0].tolist() == [[3, 0], [1, 2], [0, 1]]
    assert trace.experts_TLK[:2, 1].tolist() == [[2, 3], [2, 3]]
    assert trace.weights_TLK[[0, 2], 1].tolist() == [[0, 0], [0.75, 0.25]]


def test_vllms_prompt_and_response_apart(tmp_path):
    files, ids = {}, {"prompt_token_ids": [7, 8, 9], "token_ids": [5, 6, 4]}
    for number in (10, 2):
        parts = {"prompt_routed_experts": experts(3, SMALL, number), "routed_experts": experts(2, SMALL)}
        files[f"{number}.npz"] = arrays(**parts, **ids)
    trace = read("vllm-npz", tmp_path / "run", files | BESIDE)
    assert (trace.prompt_ids, trace.num_prefill_P.tolist()) == (("run/2", "run/10"), [3, 3])
    assert trace.metadata.layer_numbers == (1, 2, 3)
    np.testing.assert_array_equal(trace.experts_TLK[5:8], experts(3, SMALL, 10))
    assert trace.token_ids_T[:5].tolist() == [7, 8, 9, 5, 6]
    assert importers.read("vllm-npz", tmp_path / "run", privacy="routing").token_ids_T is None


def test_vllms_one_array_with_places_for_dense_layers(tmp_path):
    padded = np.concatenate([np.zeros((4, 1, 2), np.int32), experts(4, SMALL)], axis=1)
    named = {"prompt_token_ids": [1, 2, 3], "token_ids": [4, 5]}
    read("vllm-npz", tmp_path, {"a.npz": arrays(routed_experts=padded, **named)} | BESIDE)
    trace = importers.read("vllm-npz", tmp_path / "a.npz")
    np.testing.assert_array_equal(trace.experts_TLK, experts(4, SMALL))
    assert (trace.num_prefill_P.tolist(), trace.token_ids_T.tolist()) == ([3], [1, 2, 3, 4])
    # a layer that the config calls dense is routed: not dropped without a word
    padded[1, 0] = 7, 3
    named["routed_experts"] = padded
    refused(
        "layer 0 is routed, config.json says that it has no", read, "vllm-npz", tmp_path, {"a.npz": arrays(**named)}
    )
    shape = importers.ShapeOverride(moe_layers="0-1,3", expert_size="Q4_K")
    whole = {"routed_experts": experts(4, SMALL)} | {"prompt_token_ids": [1, 2, 3], "token_ids": [4, 5]}
    trace = read("vllm-npz", tmp_path, {"a.npz": arrays(**whole)}, shape=shape)
    assert (trace.metadata.layer_numbers, trace.metadata.expert_bytes) == ((0, 1, 3), (3 * 144,) * 3)


# routed tokens of a request with 5 ids in the prompt and 8 in the answer, the last of which no engine routes
SPANS = [(12, 0, 5), (13, 0, 5), (7, 5, 0), (8, 4, 1), (10, 2, 3)]


@pytest.mark.parametrize(("routed_tokens", "start", "prefill"), SPANS)
def test_an_answers_routing_alone_is_split_by_the_token_ids(tmp_path, routed_tokens, start, prefill):
    ids = {"prompt_token_ids": np.arange(5), "token_ids": np.arange(5, 13)}
    data = arrays(routed_experts=experts(routed_tokens, SMALL), **ids)
    trace = read("vllm-npz", tmp_path, {"a.npz": data} | BESIDE)
    assert trace.num_prefill_P.tolist() == [prefill]
    assert trace.token_ids_T.tolist() == list(range(start, start + routed_tokens))


def test_a_prompts_routing_alone_is_prefill(tmp_path):
    data = arrays(routed_experts=experts(4, SMALL), prompt_token_ids=np.arange(4))
    assert read("vllm-npz", tmp_path, {"a.npz": data} | BESIDE).num_prefill_P.tolist() == [4]


def test_formats_that_say_the_models_shape_take_no_other(tmp_path):
    shape = importers.ShapeOverride(expert_size="Q4_K")
    refused("leave --moe-layers and --expert-size out", read, "esft", tmp_path, SOURCES["esft"], shape=shape)
    for said in ({"hidden_size": 4}, {"prefill_tokens": "2"}):
        shape = importers.ShapeOverride(**said)
        refused(f"leave --{next(iter(said)).replace('_', '-')} out", importers.read, "vllm-npz", tmp_path, shape=shape)


SLOW = [
    ("moe-beyond-csv", "puffin.tar.xz", (1851, 177_471, 177_471, "none stated")),
    ("gpt-oss-fingerprint", "gpt-oss-20b.tar.xz", (220, 69_175, 0, "Apache-2.0")),
]
PUBLISHED = [
    ("moe-beyond-csv", "webglm.tar.xz", (50, 790, 790, "none stated")),
    ("esft", "esft.tar.xz", (173, None, None, "MIT")),
    ("bigmoe-route", "bigmoe-on-edge/qwen.route.csv.gz", (1, 156, 28, "Apache-2.0")),
    ("bigmoe-route", "bigmoe-on-edge/gptoss.route.csv.gz", (1, 149, 85, "Apache-2.0")),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
]


@pytest.mark.parametrize(("name", "archive", "expected"), PUBLISHED)
def test_published_archives_give_the_published_counts(name, archive, expected):
    trace = importers.read(name, shared(archive))
    found = (trace.num_prompts, trace.num_tokens, int(trace.num_prefill_P.sum()), trace.metadata.licence)
    assert all(want in (None, have) for have, want in zip(found, expected, strict=True))
    assert (trace.predicted_TLK is not None) == ("webglm" in archive)


def test_an_unknown_format_and_two_files_for_one_prompt_are_refused(tmp_path):
    refused(r"unknown trace format 'cvs'; expected one of .*moe-beyond-csv", importers.read, "cvs", tmp_path)
    files = {f"{folder}/prompt_1_data.csv": routed(experts(1, PAPER), ["a"]) for folder in "ab"}
    refused("two files for prompt", read, "moe-beyond-csv", tmp_path, files)
