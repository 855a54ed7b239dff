"""What engines take silently our readers refuse, and no damage ends in anything but one clear line."""

import io
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_beyond.errors import InputError
from moe_beyond.formats.placements import FORMATS, ModelShape, Options, Placement, encode, load_line, read
from tests.formats.placements.small import COUNTS, DENSE, FIRST_LAYERS, FLAT, OPTIONS, counts_of, toy
from tests.traces.refusals import refused


def file_of(name):
    return encode(name, toy(name), OPTIONS).data


def doc(edit):
    def change(data):
        document = json.loads(data)
        edit(document)
        return json.dumps(document).encode()

    return change


def sub(old, new):
    def change(data):
        assert old in data
        return data.replace(old, new, 1)

    return change


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


TENSOR = torch.tensor([[0] * 4, *COUNTS.tolist()])
CASES = {
    "strata-strp": [
        (lambda data: data[:20], "no STRP"),
        (lambda data: b"STRX" + data[4:], "no STRP"),
        (lambda data: data[:4] + b"\2" + data[5:], "version 2, expected 1; the engine would not notice"),
        (lambda data: data[:8] + b"\4" + data[9:], "4 layers of 4 experts, the model has 3 of 4"),
        (lambda data: data[:16] + b"\5" + data[17:], "6 ranked experts for 5 slots"),
        (lambda data: data[:-1], "95 bytes do not hold 6 pairs"),
        (lambda data: data[:28] + data[24:28] + data[32:], "twice; the engine would not notice"),
        (lambda data: data[:24] + b"\7" + data[25:], "layer 7, expert 1: the model has none such"),
        (lambda data: data[:-4] + b"\xff\xff\xff\xff", "shares are not all numbers"),
    ],
    "strata-json": [
        (doc(lambda d: d["layers"].append([0, 1, 2, 3])), "4 rows, expected 3"),
        (doc(lambda d: d["layers"][1].__setitem__(0, 1)), "list 1: expert 1 stands there twice"),
        (doc(lambda d: d["layers"][1].pop()), "row 1 must hold 4 whole numbers"),
        (doc(lambda d: d.update(other=1)), "one key 'layers'"),
        (lambda data: data[:-1], "no JSON"),
        (lambda _: b'{"layers": 1, "layers": 2}', "a key stands there twice"),
        (lambda _: b"[" * 100_000, "no JSON"),
    ],
    "thecodacus-profile": [
        (sub(b"0,1,1,0\n", b"0,1,1,x\n"), "line 1: 'x' is no whole number"),
        (sub(b"0,1,1,0\n", b"0,1,1,4\n"), "line 1: expert 4, the model has experts 0 to 3"),
        (sub(b"0,1,1,0\n", b"0,1,1,1\n"), "line 1: expert 1 stands there twice"),
        (sub(b"0,1,1,0\n", b"0,0,1,0\n"), "position 0 of layer 0 counts for no layer"),
        (sub(b"0,1,1,0\n", b"-1,1,1,0\n"), "position -1 of layer 1 counts for no layer"),
        (sub(b"0,1,1,0\n", b""), "position 1 does not list the experts of position 0"),
        (sub(b"0,1,1,0\n0,2", b"0,1,1,0\n0,1"), "line 2: position 0 of layer 1 stands there twice"),
        (lambda data: data.replace(b"1,0\n", b"1\n"), "equally many experts"),
        (lambda data: data + b"0," + b"1," * 3000 + b"\n", "longer than the engine's buffer"),
        (lambda _: b"", "empty or its last line is cut off"),
    ],
    "fitz-pins": [
        (sub(b"v1", b"v2"), "expected '# EXPERT_CACHE_PIN_LIST v1'"),
        (sub(b"n_layer 4", b"n_layer 3"), "expected 'n_layer 4'"),
        (sub(b"layer 1: 1 0 2 3", b"layer 1: "), "layer 1 lists none of its experts"),
        (sub(b"layer 0: ", b"layer 0: 1"), "layer 0 is dense and lists experts"),
        (sub(b"layer 2: ", b"layer 3: "), "expected 'layer 2: '"),
        (sub(b"layer 1: 1 0", b"layer 1: 1 1"), "layer 1: expert 1 stands there twice"),
        (sub(b"layer 3: 0 1 2 3\n", b""), "3 layer lines, expected 4"),
    ],
    "colibri-usage": [
        (sub(b"-1 4 4\n", b""), "for this model and engine 'olmoe' it must begin"),
        (sub(b"-1 4 4", b"-1 3 4"), "must begin"),
        (sub(b"-2 1", b"-2 2"), "must begin"),
        (sub(b"1 0 2", b"1 0 x"), "line 3: 'x' is no whole number"),
        (sub(b"1 0 2", b"1 0"), "line 3: 2 words, expected three; the engine would stop here silently"),
        (sub(b"1 0 2", b"7 0 2"), "line 3: layer 7, expert 0, count 2: the engine would drop it"),
        (sub(b"1 0 2", b"0 0 2"), "layer 0 is dense and has counts"),
        (sub(b"1 1 3", b"1 0 3"), "line 4: layer 1, expert 0 stands there twice"),
        (lambda data: data[: data.index(b"3 0 2")], "layer 3 has experts and no counts"),
    ],
    "lucebox-hotness": [
        (sub(b"# hotness table: n_layer=4 n_expert=4 n_expert_used=2\n", b""), "line 1"),
        (sub(b"n_expert_used=2", b"n_expert_used=8"), "line 1"),
        (sub(b"2,3,2,1", b"2,3,2"), "row 1: 3 counts, the model has 4 experts"),
        (sub(b"2,3,2,1", b"2,3,2,1.5"), "row 1: '1.5' is no whole number"),
        (sub(b"2,3,2,1", b"2,3,2,-1"), "layer 1: a count is negative"),
        (sub(b"0,0,0,0\n", b""), "3 rows, the model has 4 layers"),
        (sub(b"0,0,0,0\n2,3,2,1", b"2,3,2,1\n0,0,0,0"), "layer 0 is dense and has counts"),
    ],
    "sglang-counts": [
        (doc(lambda d: d["logical_count"].pop(0)), "3 rows, expected 4"),
        (doc(lambda d: d["logical_count"][1].pop()), "row 1 must hold 4 whole numbers"),
        (doc(lambda d: d["logical_count"][0].__setitem__(0, 1)), "layer 0 is dense and has counts"),
        (doc(lambda d: d.update(rank=0)), "one key 'logical_count'"),
        (lambda _: b'{"logical_count": [[NaN]]}', "NaN is no number"),
    ],
    "sglang-map": [
        (doc(lambda d: d["physical_to_logical_map"][1].__setitem__(5, 9)), "layer 1 does not name each of 4"),
        (doc(lambda d: d["physical_to_logical_map"][2].pop()), "row 2 must hold 6 whole numbers"),
    ],
    "ktransformers-2d": [
        (lambda _: saved({"logical_count": TENSOR[None]}), "expected whole numbers .int64. of shape"),
        (lambda _: saved({"logical_count": TENSOR.double()}), "torch.float64"),
        (lambda _: saved({"logical_count": TENSOR[1:]}), "of shape .4, 4."),
        (lambda _: saved({"counts": TENSOR}), "one key 'logical_count'"),
        (lambda _: saved({"logical_count": TENSOR - 1}), "a count is negative"),
        (lambda _: saved({"logical_count": TENSOR * (TENSOR != 2)}), "layer 2 has experts and no counts"),
    ],
    "ktransformers-3d": [
        (lambda _: saved({"logical_count": TENSOR}), "of shape .1, 4, 4."),
        (lambda data: data[:-100], "no file of tensors alone"),
    ],
    "mbolt-perms": [
        (doc(lambda d: d["layers"][1]["chain_perm"].__setitem__(0, 1)), "layer 1: chain_perm is no permutation"),
        (doc(lambda d: d["layers"][1].pop("top_cliques")), "layer 1: top_cliques must hold lists"),
        (doc(lambda d: d["layers"][1]["heat"].pop()), "layer 1: heat must hold 4 counts"),
        (doc(lambda d: d["layers"].pop()), "expected 3 of them"),
        (doc(lambda d: d.update(n_expert=8)), "the model has .3, 4."),
        (doc(lambda d: d["layers"].reverse()), "entry 0 is not that of layer 0"),
    ],
    "mesh-llm-ranking": [
        (sub(b"expert_id,", b"id,"), "line 1"),
        (sub(b"3,2.500000", b"2,2.500000"), "4 rows do not name each of 4 experts once"),
        (sub(b"1,3.500000,0.291667", b"1,3.500000,0.3"), "do not belong to 7 of 24 uses"),
        (sub(b",7\n", b"\n"), "line 2: 3 columns"),
        (sub(b"1,3.500000", b"1,x"), "'x' or '0.291667' is no number"),
        (sub(b"1,3.500000", b"1,nan"), "do not belong to 7"),
        (sub(b"1,3.500000", b"1,2.900000"), "order of their mass"),
    ],
    "0xbakeer-coverage": [
        (doc(lambda d: d["per_layer"].pop("0")), "expected layers 0 to 2 in order"),
        (doc(lambda d: d["per_layer"]["1"]["counts"].__setitem__(0, 5)), "do not follow from 'counts'"),
        (doc(lambda d: d["per_layer"]["1"].pop("counts")), "row 1 must hold 4 whole numbers"),
    ],
    "llamacpp-ot": [
        (sub(rb"blk\.(1|2)\.", rb"blk\.(0|1|2)\."), "of layer 0, expected all of its experts or nothing"),
        (sub(rb"blk\.(1|2)\.ffn_(up|down|gate|gate_up)_(ch|)exps", rb"blk\.9\."), "finds no expert tensor"),
        (sub(rb"(up|down|gate|gate_up)", rb"(up|down)"), "of layer 1, expected all of its experts or nothing"),
        (sub(rb"ffn_(up|down|gate|gate_up)_(ch|)exps", rb"ffn_"), "ffn_gate_inp.weight"),
        (sub(rb"(1|2)", rb"(0|1)"), "of layer 0, expected all of its experts or nothing"),
        (sub(b"=CPU", b""), 'expected -ot "<regex>=CPU"'),
        (sub(rb"(1|2)", rb"(1|2"), "no regular expression"),
        (lambda data: data + data, "2 lines, expected one"),
    ],
    "llamacpp-n-cpu-moe": [
        (sub(b"3", b"1"), "it moves those of layers 0 to 0"),
        (sub(b"3", b"5"), "--n-cpu-moe 5: experts lie in layers 1 to 3"),
        (sub(b"--n-cpu-moe", b"--n-gpu-moe"), "expected --n-cpu-moe N"),
    ],
    "cache-sizes": [
        (sub(b"experts 2", b"experts 5"), "no size that the model can use"),
        (lambda data: data + data, "stands there twice"),
        (sub(b"slots 2", b"slots two"), "'two' is no whole number"),
    ],
}


@pytest.mark.parametrize(
    ("name", "change", "message"), [(name, *case) for name, cases in CASES.items() for case in cases]
)
def test_what_the_engine_would_refuse_or_take_silently_is_refused(name, change, message, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(change(file_of(name)))
    refused(message, read, name, path, toy(name).model, OPTIONS)
    refused(f"^{path}: ", read, name, path, toy(name).model, OPTIONS)


@pytest.mark.parametrize("name", FORMATS)
def test_damage_is_refused_in_one_line_or_changes_nothing_that_counts(name):
    data, rng = file_of(name), np.random.default_rng(3)
    model, parse = toy(name).model, FORMATS[name].parse
    for _ in range(1000):
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(len(damaged)))
            match rng.integers(4):
                case 0:
                    damaged[place] = int(rng.integers(256))
                case 3:
                    damaged[place] = int(rng.choice(list(b"0123456789,.-e[]{}: \n")))
                case 1:
                    del damaged[place:]
                case _:
                    damaged[place:place] = data[int(rng.integers(len(data))) :][: int(rng.integers(9))]
            if not damaged:
                break
        try:
            parse(bytes(damaged), model, OPTIONS)
        except InputError as error:
            assert len(str(error).splitlines()) == 1


class _Harm:
    def __reduce__(self):
        return (open, ("/nowhere/written", "w"))


@pytest.mark.parametrize("data", [pickle.dumps(_Harm(), 2), saved({"logical_count": _Harm()}), b"", b"PK\3\4"])
def test_nothing_but_tensors_is_ever_loaded(data, tmp_path):
    (tmp_path / "file.pt").write_bytes(data)
    refused("no file of tensors alone", read, "ktransformers-2d", tmp_path / "file.pt", toy("ktransformers-2d").model)


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_of_other_experts_or_layers_is_refused(name, tmp_path):
    placement = toy(name)
    encode(name, placement, OPTIONS).save(tmp_path / "file")
    model = placement.model
    fewer_experts = ModelShape(model.layer_numbers, model.model_layers, 1, 1)
    other_layers = ModelShape((5, 6), 7, 4, 2)
    # flags name no experts, and sizes and rankings no layers
    others = [fewer_experts] * (not name.startswith("llamacpp"))
    others += [other_layers] * (name not in ("cache-sizes", "mesh-llm-ranking"))
    for other in others:
        with pytest.raises(InputError, match="file"):
            read(name, tmp_path / "file", other, OPTIONS)


@pytest.mark.parametrize("name", FIRST_LAYERS)
def test_dense_layers_are_refused_where_the_format_has_no_place_for_them(name):
    refused("of this model's 4 layers 0 are dense", encode, name, toy(name, DENSE), OPTIONS)


def test_what_stood_there_stays_where_the_new_file_reads_back_wrongly(tmp_path):
    path, encoded = tmp_path / "file", encode("fitz-pins", toy("fitz-pins"), OPTIONS)
    path.write_text("before")
    with pytest.raises(AssertionError, match="reads back otherwise"):
        replace(encoded, said=[]).save(path)
    refused("line 1: expected", replace(encoded, data=b"x\n").save, path)
    assert (path.read_text(), [*tmp_path.iterdir()]) == ("before", [path])
    refused("is a folder already", encoded.save, tmp_path)


def test_what_the_format_cannot_say_is_refused(tmp_path):
    out, nameless = tmp_path / "file", Placement.of(counts_of(COUNTS, DENSE, top_k=None), "layer", slots=2)
    refused("unknown placement format 'xml'; expected one of 0xbakeer", encode, "xml", nameless)
    for name in ("fitz-pins", "lucebox-hotness", "mesh-llm-ranking"):
        refused("give --top-k", encode, name, nameless)
    refused("give it, as --engine olmoe", encode, "colibri-usage", nameless)
    refused("architecture 'rwkv': names", encode, "llamacpp-ot", toy("llamacpp-ot"), Options(architecture="rwkv"))
    refused("do not divide by 4 ranks", encode, "sglang-map", toy("sglang-map"), Options(expert_parallel=4))
    refused("whole layers can be placed", encode, "llamacpp-ot", nameless)
    full = Placement.of(counts_of(COUNTS, FLAT), "layers", slots=4)
    refused("all experts fit", encode, "llamacpp-ot", full)
    uneven = Placement.of(counts_of(COUNTS, FLAT), "model", slots=2)
    refused("one number of slots for all layers", encode, "thecodacus-profile", uneven)
    wide = Placement.of(counts_of(np.ones((1, 2000), int), (0,)), "layer", slots=1500)
    refused("longer than the engine's 4096 bytes", encode, "thecodacus-profile", wide)
    assert not out.exists()
    refused("No such file", read, "fitz-pins", out, toy("fitz-pins").model)


@pytest.mark.parametrize("architecture", ["qwen3moe", "gpt-oss", "gemma4", "grovemoe"])
def test_the_pattern_finds_the_architecture_s_tensors_and_no_others(architecture, tmp_path):
    options = Options(architecture=architecture)
    encode("llamacpp-ot", toy("llamacpp-ot"), options).save(tmp_path / "flag")
    text = (tmp_path / "flag").read_text()
    assert ("gate_up" in text, "chexps" in text) == (architecture == "gemma4", architecture == "grovemoe")
    other = Options(architecture="gemma4" if architecture != "gemma4" else "grovemoe")
    refused("expected all of its experts", read, "llamacpp-ot", tmp_path / "flag", toy("llamacpp-ot").model, other)


def test_llama_cpp_s_own_form_of_the_flag_is_read(tmp_path):
    line = r'-ot "blk\.(0|1|2|7)\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"'
    (tmp_path / "flag").write_text(line + "\n")
    assert read("llamacpp-ot", tmp_path / "flag", ModelShape(tuple(range(12)), 12, 4)) == [0, 1, 2, 7]
    # a number that is not closed finds others, as it does in llama.cpp
    (tmp_path / "flag").write_text(line.replace(r"(0|1|2|7)\.", "1.*") + "\n")
    assert read("llamacpp-ot", tmp_path / "flag", ModelShape(tuple(range(12)), 12, 4)) == [1, 10, 11]


def test_the_engine_is_told_of_the_file(tmp_path):
    line = load_line("thecodacus-profile", toy("thecodacus-profile"), tmp_path / "p.csv")
    assert line.endswith("--moe-cache-profile p.csv --moe-cache-slots 2")
    assert "PRUNE_KEEP=0.375" in load_line("0xbakeer-coverage", toy("0xbakeer-coverage"), tmp_path / "c.json")
