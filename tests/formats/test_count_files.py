"""Files of counts give the counts that were written, by layer of the model; what cannot be counts is refused."""

import json

import numpy as np
import pytest
import torch

from moe_beyond.formats.count_files import read_counts
from moe_beyond.formats.importers import ShapeOverride
from moe_beyond.formats.recognise import recognise
from tests.formats.cases import BESIDE, CONFIG, write
from tests.formats.count_cases import COUNTS, COUNTS_LE, WITH_DENSE, coli_usage, gguf, hotness
from tests.formats.engine_cases import IDS, floats, saved
from tests.phone_traces import shared
from tests.traces.refusals import refused


def only(folder):
    return next(path for path in folder.iterdir() if path.name != "config.json")


def read(name, folder, files, **said):
    return read_counts(name, only(write(folder, files)), ShapeOverride(**said))


@pytest.mark.parametrize("name", COUNTS)
def test_every_file_of_counts_gives_what_was_written(tmp_path, name):
    counts = read(name, tmp_path, COUNTS[name])
    expected = (
        np.stack([np.bincount(IDS[:, n].reshape(-1), minlength=8) for n in range(3)]) if "routes" in name else COUNTS_LE
    )
    np.testing.assert_array_equal(counts.counts_LE, expected)
    assert (counts.layer_numbers, counts.expert_bytes) == ((1, 2, 3), None)
    kind, found, _ = recognise(tmp_path)
    assert (kind, found) == ("trace" if "routes" in name else "counts", name)


def test_a_config_beside_gives_model_top_k_and_bytes(tmp_path):
    counts = read("imatrix", tmp_path, COUNTS["imatrix"] | BESIDE)
    assert (counts.model_id, counts.top_k, counts.expert_bytes) == ("deepseek_v3", 2, (3 * 4 * 16 * 2,) * 3)
    other = {"config.json": json.dumps(CONFIG | {"first_k_dense_replace": 2}).encode()}
    refused("no experts in layer 1: another model's", read, "imatrix", tmp_path, other)


def test_a_person_says_model_top_k_and_bytes(tmp_path):
    counts = read("imatrix", tmp_path, COUNTS["imatrix"], model_id="m", top_k=2, expert_size="100")
    assert (counts.model_id, counts.top_k, counts.expert_bytes) == ("m", 2, (100,) * 3)
    refused("top-9 of 8 experts", read, "imatrix", tmp_path, {}, top_k=9)
    refused("expected bytes; a GGUF type needs", read, "imatrix", tmp_path, {}, expert_size="Q4_K")


def test_usage_without_a_size_needs_the_number_of_experts(tmp_path):
    data = b"\n".join(coli_usage().splitlines()[2:-1])
    refused("0 lines '-1 layers experts'", read, "coli-usage", tmp_path, {"x.txt": data})
    np.testing.assert_array_equal(read("coli-usage", tmp_path, {}, num_experts=8).counts_LE, COUNTS_LE)


HUGE = b"GGUF" + (3).to_bytes(4, "little")
# one field, a list of bytes that is said to have 2**60 of them
LIST = HUGE + (0).to_bytes(8, "little") + (1).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"a"
LIST += (9).to_bytes(4, "little") + (0).to_bytes(4, "little")
BROKEN = [
    ("imatrix", b"xx", "does not begin with 'GGUF'; an imatrix.dat keeps no counts by expert"),
    ("imatrix", gguf(kind="model"), "a GGUF, but none of an imatrix"),
    ("imatrix", gguf(names=("attn_k",)), "no counts of experts"),
    ("imatrix", gguf(COUNTS_LE - 5), "counts that are no finite numbers from 0"),
    ("imatrix", gguf()[:-64], "a damaged GGUF"),
    ("imatrix", gguf(np.repeat(COUNTS_LE, 2, axis=0)[1:4], layers=(1, 1, 2), names=("ffn_up_exps",)), "damaged GGUF"),
    ("imatrix", HUGE + b"\xff" * 8 + bytes(8), "a damaged GGUF"),
    ("imatrix", LIST + (2**60).to_bytes(8, "little"), "a list of too many values"),
    ("coli-usage", b"-1 4 8\n1 0 x\n", "line 2: '1 0 x', expected three whole numbers"),
    ("coli-usage", b"-1 4 8\n1 0 1\n1 0 2\n", "line 3: .* each expert of a layer once"),
    ("coli-usage", b"-1 4 8\n1 9 1\n", "layer 1, expert 9; the model has 4 of 8"),
    ("coli-usage", b"-1 2000000000 60000\n1 9 1\n", "2000000000 layers of 60000 experts: not a mixture of experts"),
    ("coli-usage", b"-1 4 8\n-1 5 8\n", "2 lines '-1 layers experts'"),
    ("coli-usage", b"-1 4 8\n", "no counts but zeros"),
    ("lucebox-hotness", hotness().replace(b"# hot", b"hot"), "line 1: expected '# hotness table"),
    ("lucebox-hotness", hotness().replace(b"0,0,", b"0,1.5,", 1), "line 3: 8 fields, expected 8 whole numbers"),
    ("lucebox-hotness", hotness().rpartition(b"\n0")[0] + b"\n", "[0-3] rows, the header says 4"),
    ("logical-count-json", b'{"x": 1}', "no list 'logical_count'"),
    ("logical-count-json", b'{"logical_count": [[1, 2], [3]]}', "logical_count: float64, expected whole numbers"),
    ("logical-count-json", b'{"logical_count": [[1, -2]]}', "a count below 0"),
    ("logical-count-json", b'{"logical_count": [1, 2]}', r"counts of shape \(2,\)"),
    ("logical-count-pt", saved({"records": []}), "the recorder's mode per_token is a trace"),
    ("logical-count-pt", saved(torch.zeros(1).expand(4, 10**9)), "in fewer bytes"),
    ("logical-count-pt", saved({"logical_count": print}), "tensors and plain values alone"),
    ("logical-count-pt", saved(torch.full((2, 8), 0.5)), "expected whole numbers"),
    ("mbolt-heat", b'{"layers": [{"layer": 1}]}', "layer 1: heat: float64, expected whole numbers"),
    ("mbolt-heat", b'{"layers": [{"heat": [1, 2]}, {"heat": [1, 2, 3]}]}', "several numbers of experts"),
    ("vllm-routes", b'{"type": "x"}', "line 1: type is 'x', expected meta or route"),
]


@pytest.mark.parametrize(("name", "data", "message"), BROKEN)
def test_broken_counts_are_one_line(tmp_path, name, data, message):
    refused(message, read, name, tmp_path, {"x.bin": data})


def test_tensors_of_a_layer_must_agree(tmp_path):
    data = gguf()
    place = data.rindex(floats(*COUNTS_LE[2]))
    refused(
        "other counts than another tensor of layer 3",
        read,
        "imatrix",
        tmp_path,
        {"x": data[:place] + floats(99) + data[place + 4 :]},
    )


def test_frequencies_may_be_a_bare_tensor(tmp_path):
    counts = read("logical-count-pt", tmp_path, {"x.pt": saved(torch.tensor(WITH_DENSE).float())})
    np.testing.assert_array_equal(counts.counts_LE, COUNTS_LE)
    refused("give one file of counts", read_counts, "imatrix", tmp_path)
    refused("unknown format of counts 'x'; expected one of imatrix, coli-usage", read_counts, "x", tmp_path)


TOY = [[2, 3, 2, 1], [2, 2, 2, 2], [2, 2, 2, 2]]
FILES = [
    ("imatrix", ("engines", "toy-synthetic", "imatrix.gguf"), (0, 1, 2)),
    ("coli-usage", ("..", "placements", "toy", "colibri.coli_usage"), (1, 2, 3)),
    ("lucebox-hotness", ("..", "placements", "toy", "lucebox-hotness.csv"), (1, 2, 3)),
    ("logical-count-json", ("..", "placements", "toy", "sglang-logical_count.json"), (1, 2, 3)),
    ("mbolt-heat", ("..", "placements", "toy", "mbolt-perms.json"), (0, 1, 2)),
]


@pytest.mark.parametrize(("name", "parts", "layers"), FILES)
def test_the_toy_files_hold_the_counts_that_their_description_states(name, parts, layers):
    counts = read_counts(name, shared(*parts))
    assert (counts.counts_LE.tolist(), counts.layer_numbers) == (TOY, layers)
    assert recognise(shared(*parts))[:2] == ("counts", name)


def test_real_files_have_the_counts_that_their_description_states():
    heat = read_counts("mbolt-heat", shared("engines", "mbolt", "coactivation_qwen3-30b-a3b.json.xz"))
    assert (heat.num_layers, heat.num_experts, heat.top_k) == (48, 128, 8)
    assert (heat.counts_LE[0, :4].tolist(), int(heat.counts_LE[0].sum())) == ([5760, 2903, 11898, 5036], 606_184)
    # the engine's profile pass is left out
    for file, tokens, top_k, said in (("olmoe-t4", 4471, 8, None), ("qwen15moe-gptq-5080", 4384, 4, 60)):
        source = shared("engines", "vllm-moe-logger", f"{file}.moe_routes.jsonl.xz")
        counts = read_counts("vllm-routes", source, ShapeOverride(num_experts=said))
        assert (counts.layer_numbers, int(counts.counts_LE.sum())) == ((0,), tokens * top_k)
