"""Every broken rule is one line that names file and row, and any damage is a trace or such a line, nothing else."""

import csv
import io
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_beyond.errors import InputError
from moe_beyond.formats import importers
from moe_beyond.formats.count_files import COUNT_FORMATS, read_counts
from moe_beyond.formats.recognise import recognise
from tests.formats.cases import CONFIG, PAPER, SMALL, SOURCES, arrays, experts, predicted, read, routed, table, write
from tests.formats.count_cases import COUNTS
from tests.formats.engine_cases import CASES, IDS, PASSES, SHAPE, parquet, recorder, saved
from tests.formats.engine_cases import npz as engine_npz
from tests.traces.refusals import refused


def cell(row, column, value):
    """A cell of a CSV of the paper's prompts of three tokens."""

    def change(text):
        rows = list(csv.reader(io.StringIO(text, newline="")))
        rows[row][column] = value
        return table(rows).decode()

    return change


def rows(first, end=None):
    """Without some rows."""
    return lambda text: "".join(
        line for i, line in enumerate(text.splitlines(keepends=True)) if not first <= i < (end or first + 1)
    )


def sub(old, new, count=1):
    def change(text):
        assert old in text
        return text.replace(old, new, count)

    return change


def upside_down(text):
    return "\n".join(reversed(text.splitlines()))


def token_4(document):
    return document["router_data"][1]["token_4"]


def doc(edit):
    def change(text):
        document = json.loads(text)
        edit(document)
        return json.dumps(document)

    return change


def layer_7(**values):
    return doc(lambda d: token_4(d)["layer_7"].update(values))


ANOTHER = routed(experts(3, PAPER, 9), ["a", "b", "c"])
BROKEN = {
    # prompt_1_data_formatted.csv
    "moe-beyond-csv": [
        (cell(0, 3, "Experts"), "row 1: column 'Activated Expert IDs' is missing"),
        (cell(4, 3, "[1, 2, 3, 4, 5, 64]"), "row 5: expert id 64 in Activated Expert IDs"),
        (cell(4, 3, "[1, 2]"), r"row 5: Activated Expert IDs is '\[1, 2\]', expected a list of 6 expert ids"),
        (cell(4, 3, "[1, 2, 3, 4, 5, 5]"), "row 5: .* a router names an expert once"),
        (cell(4, 0, "one"), "row 5: Layer ID is 'one', expected a whole number"),
        (cell(4, 0, "27"), "row 5: Layer ID 27, expected 1 to 26"),
        (cell(4, 0, "3"), "layer 2 has 2 rows, layer 1 has 3"),
        (cell(4, 2, "other"), "row 5: token 'other', layer 1 has"),
        (cell(4, 1, "1"), "several values of 'Batch Number'"),
        (sub("2,0,", "2,"), "row 5: 3 fields, expected 4"),
        (rows(4, 7), "layer 2 is missing"),
        (rows(1, 99), "no rows of data"),
        (sub(",Activated Expert IDs", ",Token"), "row 1: column 'Token' is there twice"),
        (lambda _: "", "the file is empty"),
        (lambda _: "\udcff\udcfe", "byte 0 is not UTF-8"),
        (lambda _: 'Layer ID,Batch Number,Token,Activated Expert IDs\n1,0,"x,"[1]"\n', "row 2: "),
        (lambda _: ANOTHER.decode(), "no file under predicted/ has the same routing"),
    ],
    # law/expert_weights_1.txt
    "esft": [
        (sub("\t\t", "\t"), r"row 1: 24 ids, 0 weights"),
        (lambda text: "64\t" + text.partition("\t")[2], "row 1: expert id '64'"),
        (sub("0.", "-0."), "row 1: gate weight '-0."),
        (sub("0.", "x"), "row 1: a gate weight is no number"),
        (upside_down, "expert_weights_2.txt has row 1 with 2 tokens, layer 1 has 3"),
        (lambda text: text.splitlines()[0], "expert_weights_2.txt has 2 rows, layer 1 has 1"),
    ],
    # x.json
    "gpt-oss-fingerprint": [
        (doc(lambda d: d.pop("router_data")), "'router_data' is missing"),
        (doc(lambda d: d["router_data"].pop(1)), "token_5 follows token_3; positions must be consecutive"),
        (doc(lambda d: d.update(full_text=["a"])), "token_5 has no string in full_text"),
        (doc(lambda d: d["router_data"].append({"x": {}})), "expected 'token_<position>'"),
        (doc(lambda d: d["router_data"].append(7)), "expected one 'token_<position>'"),
        (doc(lambda d: token_4(d).pop("layer_7")), "token_4 has .* expected layer_0 to layer_23"),
        (layer_7(selected_experts=[1, 2, 3]), "token_4, layer_7: expected 4"),
        (layer_7(selected_experts=[1, 2, 3, 32]), "token_4, layer_7: selected_experts"),
        (layer_7(selected_experts=[1, 2, 3, 3]), "position 1, layer 7: an expert is listed"),
        (layer_7(selected_probs=[0.5, 0.5, 0, -1]), "token_4, layer_7: selected_probs"),
        (
            sub('"selected_experts": ', '"selected_experts": [1], "selected_experts": '),
            "key 'selected_experts' is given twice",
        ),
        (lambda text: text[:-300], r"x\.json: not valid JSON"),
    ],
    # toy.route.csv
    "bigmoe-route": [
        (sub("n_expert=4", "experts=4"), "expected the header of a route_trace v1"),
        (sub("# layer=", "# lay=", 9), "no comment line with '# layer="),
        (sub("n_expert_used=2", "n_expert_used=5"), "are no MoE's shape"),
        (sub("n_expert_used=2", "n_expert_used=4"), "10 rows for 3 tokens; every token needs 4 in each of 2 layers"),
        (sub("0,0,0,1,1,0,", "0,0,0,1,1,4,"), "row 8: expert is 4, expected 0 to 3"),
        (sub("0,0,0,1,1,0,", "0,0,0,1,0,0,"), "row 7: slot is 0, expected one row for each"),
        (sub("0,0,0,1,1,0,", "0,1,0,1,1,0,"), "row 7: phase is 0, expected one phase a step"),
        (lambda text: text.replace("0,0,0,", "0,1,0,"), "turn 0 has decode before prefill"),
        (sub("0,0,0,1,1,0,", "0,0,0,7,1,0,"), "row 8: layer is 7"),
        (sub("0,0,0,1,1,0,0.25", "0,0,0,1,1,0,x"), "row 8: weight is 'x', expected a finite number from 0"),
        (sub("0,0,0,1,1,0,0.25,0,100\n", ""), "step 0, layer 1: no row for slot 1"),
        (sub("\n0,1,2,", "\n0,1,4,", 9), "turn 0: step 2 is missing"),
        (sub(",slot,", ",place,"), "row 6: column 'slot' is missing"),
        (
            lambda text: (
                text.replace("\n0,1,2,", "\n0,1,3,").replace("\n0,0,1,", "\n0,0,2,").replace("\n0,0,0,", "\n0,0,1,")
            ),
            "step 0 is missing",
        ),
    ],
    # a.csv
    "llamacpp-csv": [
        (lambda text: text.replace("1,", "0,", 1), "row 1: layer is 0, expected a layer with experts"),
        (rows(3), "row 1: the batch that begins here has"),
        (lambda text: "1,8\n" + text.partition("\n")[2], "row 1: expert is 8, expected 0 to 7"),
        (lambda text: "1\n" + text.partition("\n")[2], "row 1: 1 fields, expected 2"),
    ],
}


@pytest.mark.parametrize(
    ("name", "change", "message"), [(name, *case) for name, cases in BROKEN.items() for case in cases]
)
def test_a_broken_rule_is_one_line_that_names_the_file(tmp_path, name, change, message):
    files = dict(SOURCES[name])
    path = next(iter(files))
    files[path] = change(files[path].decode()).encode("utf-8", "surrogateescape")
    refused(rf"{tmp_path}.*{message}", read, name, tmp_path, files)


VALID = experts(3, SMALL)
BROKEN_ARRAYS = [
    ({}, "no array 'routed_experts'"),
    ({"routed_experts": VALID}, "neither prompt_routed_experts nor prompt_token_ids"),
    ({"routed_experts": VALID[:, :, :1]}, "routing of shape .* expected tokens x layers x 2"),
    ({"routed_experts": VALID[:, :2]}, "2 layers, config.json has 4 of which 3 have experts"),
    ({"routed_experts": VALID - 1}, "-1 is routing that the engine lost"),
    ({"routed_experts": VALID.astype(float)}, "float64 in C order, expected integers"),
    ({"routed_experts": np.asfortranarray(VALID)}, "Fortran order, expected integers"),
    ({"routed_experts": VALID[:0], "prompt_token_ids": np.zeros(0, int)}, "routing of no tokens"),
    ({"routed_experts": VALID, "prompt_token_ids": [1, 2]}, "of prompt and response or of the response alone"),
    ({"routed_experts": VALID, "prompt_token_ids": [1, 2, 3, 4]}, "of prompt and response or of the response alone"),
    ({"routed_experts": VALID, "prompt_token_ids": [1], "token_ids": [1]}, "2 token ids for 3 routed tokens"),
    ({"routed_experts": VALID, "prompt_token_ids": [[1, 2]]}, r"prompt_token_ids of shape \(1, 2\)"),
    ({"logical_count": VALID}, "'logical_count' holds counts, how often each expert was chosen: no trace"),
]


@pytest.mark.parametrize(("named", "message"), BROKEN_ARRAYS)
def test_a_broken_array_is_one_line(tmp_path, named, message):
    refused(rf"a\.npz: .*{message}", read, "vllm-npz", tmp_path, SOURCES["vllm-npz"] | {"a.npz": arrays(**named)})


ESFT, BOTH = SOURCES["esft"], SOURCES["moe-beyond-csv"]
GAP = predicted(experts(3, PAPER), experts(3, PAPER)).replace(b"1,1,", b"1,2,", 1)
ONE_LAYER = {"config.json": json.dumps(CONFIG | {"num_hidden_layers": 2}).encode()}
TOO_MANY = {"a.csv": b"layer,layer_id,expert\n1,1,0\n", "config.json": SOURCES["llamacpp-csv"]["config.json"]}
OTHER_CONFIG = {f"{run}/config.json": json.dumps(CONFIG | {"hidden_size": run}).encode() for run in (16, 32)}
MISFITS = [
    ("llamacpp-csv", TOO_MANY, "columns layer and layer_id say the same"),
    ("vllm-npz", {"a.npz": SOURCES["vllm-npz"]["a.npz"]} | OTHER_CONFIG, r"says another model than 16/config\.json"),
    ("esft", {path: ESFT[path] for path in ESFT if "_4." not in path}, r"expert_weights_4\.txt is missing"),
    ("esft", ESFT | {"law/notes.txt": b"x"}, "unexpected name"),
    ("esft", ESFT | {"law/expert_weights_01.txt": ESFT["law/expert_weights_1.txt"]}, "has the same name but for zeros"),
    ("moe-beyond-csv", {"predicted/p_predicted.csv": GAP}, "row 3: position 2 breaks the count"),
    ("moe-beyond-csv", {path: BOTH[path] for path in BOTH if "predicted" in path}, "add the folder formatted/"),
    ("llamacpp-csv", SOURCES["llamacpp-csv"] | ONE_LAYER, "a model with one MoE layer"),
    ("vllm-npz", {"a.npz": SOURCES["vllm-npz"]["a.npz"]}, r"config\.json; copy the model's there"),
]


@pytest.mark.parametrize(("name", "files", "message"), MISFITS)
def test_files_that_do_not_belong_or_are_missing_are_named(tmp_path, name, files, message):
    refused(message, read, name, tmp_path, files)
    if name == "vllm-npz":
        refused(r"no config\.json beside it; copy the model's there", importers.read, name, tmp_path / "a.npz")


def test_every_format_has_a_valid_source_here(tmp_path):
    assert set(SOURCES) | set(CASES) == set(importers.FORMATS)
    assert set(COUNTS) == set(COUNT_FORMATS)
    for name, files in SOURCES.items():
        assert read(name, tmp_path / name, files).num_tokens > 1


# bytes that mean something in these formats, or any
BYTES = st.sampled_from(b'0129,."[]{}:-\n\r\t \0\xff') | st.integers(0, 255)
TEXT = st.text(alphabet='0123456789[]{}, ".\t\r\n-#=ne\0LayerID', max_size=400).map(str.encode)


@settings(max_examples=400)
@given(
    name=st.sampled_from(sorted(SOURCES)),
    edits=st.lists(st.tuples(st.integers(0), st.integers(0), BYTES), max_size=4),
    kind=st.sampled_from(["replace", "insert", "delete"]),
    # cut, or something else instead: of the whole first file, or of all but its first line
    instead=st.none() | st.integers(1, 900) | st.tuples(st.booleans(), st.binary(max_size=400) | TEXT),
)
def test_any_damage_is_a_trace_or_an_input_error(tmp_path_factory, name, edits, kind, instead):
    files = {path: bytearray(data) for path, data in SOURCES[name].items()}
    for which, position, value in edits:
        data = files[sorted(files)[which % len(files)]]
        place = position % len(data)
        data[place : place + (kind != "insert")] = b"" if kind == "delete" else bytes([value])
    first = next(iter(files))
    if isinstance(instead, int):
        del files[first][instead:]
    elif instead is not None:
        head = files[first].partition(b"\n")[0] + b"\n" if instead[0] else b""
        files[first] = bytearray(head + instead[1])
    damaged = {path: bytes(data) for path, data in files.items()}
    try:
        assert read(name, tmp_path_factory.mktemp("source"), damaged).num_tokens > 0
    except InputError as error:
        assert len(str(error).splitlines()) == 1


EDIT = st.tuples(st.sampled_from(["replace", "insert", "delete", "number"]), st.integers(0), st.integers(0), BYTES)
# numbers that a header may promise
LARGE = (2**31 - 1, -1, -(2**31), 2**16, 0, 2**24)


def damaged(files, edits, cut, instead):
    """The files with bytes changed, the first one cut, or something else in its place."""
    files = {path: bytearray(data) for path, data in files.items()}
    for kind, which, position, value in edits:
        data = files[sorted(files)[which % len(files)]]
        place = position % max(1, len(data))
        if kind == "number":
            place -= place % 4
            data[place : place + 4] = int(LARGE[value % len(LARGE)]).to_bytes(4, "little", signed=True)
        else:
            data[place : place + (kind != "insert")] = b"" if kind == "delete" else bytes([value])
    first = next(iter(files))
    if cut is not None:
        del files[first][cut:]
    if instead is not None:
        files[first] = bytearray(instead)
    return {path: bytes(data) for path, data in files.items()}


# `HYPOTHESIS_PROFILE=new HYPOTHESIS_EXAMPLES=2000` tries so many of each format
@pytest.mark.parametrize("name", [*CASES, *(f"counts {name}" for name in COUNTS)])
@given(
    edits=st.lists(EDIT, max_size=4),
    cut=st.none() | st.integers(1, 900),
    instead=st.none() | st.none() | st.none() | st.binary(max_size=400) | TEXT,
)
def test_any_damage_to_an_engines_file_is_read_or_one_line(name, edits, cut, instead):
    files = CASES[name].files if name in CASES else COUNTS[name.removeprefix("counts ")]
    with tempfile.TemporaryDirectory() as folder:
        source = write(Path(folder), damaged(files, edits, cut, instead))
        for attempt in (read_as, recognise):
            try:
                attempt(*((name, source) if attempt is read_as else (source,)))
            except InputError as error:
                assert len(str(error).splitlines()) == 1


ODD = [2**31, 2**40, 1e30, "x", "", [], [1], [[1]], {}, True, [None], [-1, 0]]
VALUES = st.none() | st.integers(-3, 12) | st.sampled_from(ODD)
ARRAYS = st.sampled_from(
    [np.zeros(0), np.zeros((4, 2)), -np.ones((4, 2), np.int32), np.full((4, 2), 99), np.zeros((1, 1, 1))]
)
COLUMNS = st.sampled_from(
    [[1] * 4, [[1]] * 4, [[1, 2], [3], [1, 2], [3]], [[1, 99]] * 4, [None] * 4, [[]] * 4, [[0.5, -1.0]] * 4, ["x"] * 4]
)
JSON_LINES = ("megatron", "lattice", "flash-moe", "vllm-routes", "moe-trace-b")


@given(record=st.integers(0, 2), key=st.sampled_from(sorted(PASSES[0])), value=VALUES | ARRAYS, drop=st.booleans())
def test_any_recorder_of_sglang_is_read_or_one_line(record, key, value, drop):
    records = [dict(each) for each in PASSES]
    records[record][key] = torch.tensor(value) if isinstance(value, np.ndarray) else value
    if drop:
        del records[record][key]
    read_or_one_line("sglang-recorder", {"x.pt": recorder(records)})
    read_or_one_line("counts logical-count-pt", {"x.pt": saved({"logical_count": value})})


@given(layer=st.integers(1, 3), key=st.sampled_from(["indices", "weights", "token"]), value=ARRAYS, seqs=VALUES)
def test_any_arrays_of_0xbakeer_are_read_or_one_line(layer, key, value, seqs):
    named = {"indices": np.ascontiguousarray(IDS[:, 0]), "weights": np.ones((4, 2), np.float16), "token": np.arange(4)}
    files = CASES["0xbakeer-npz"].files | {f"trace/layer{layer}.npz": engine_npz(**(named | {key: value}))}
    read_or_one_line("0xbakeer-npz", files)
    meta = {"meta.json": json.dumps({"seqs": [{"id": "a", "n": seqs}, {"id": seqs, "n": 2}]}).encode()}
    read_or_one_line("0xbakeer-npz", CASES["0xbakeer-npz"].files | meta)


@given(key=st.sampled_from(["indices", "scores", "token_id"]), value=COLUMNS)
def test_any_columns_of_flame_are_read_or_one_line(key, value):
    columns = {"indices": IDS[:, 0].tolist(), "scores": [[0.5, 0.25]] * 4}
    path = "samples/000.parquet" if key == "token_id" else "actives/iter_10/layer_01.parquet"
    changed = {key: value} if key == "token_id" else columns | {key: value}
    read_or_one_line("flame", CASES["flame"].files | {path: parquet(**changed)})


@given(
    name=st.sampled_from(JSON_LINES),
    value=VALUES,
    place=st.integers(0),
)
def test_any_values_in_json_lines_are_read_or_one_line(name, value, place):
    path = next(iter(CASES[name].files))
    lines = CASES[name].files[path].decode().splitlines()
    fields = json.loads(lines[place % len(lines)])
    fields[sorted(fields)[place // len(lines) % len(fields)]] = value
    lines[place % len(lines)] = json.dumps(fields)
    read_or_one_line(name, CASES[name].files | {path: "\n".join(lines).encode()})


def read_or_one_line(name, files):
    with tempfile.TemporaryDirectory() as folder:
        try:
            read_as(name, write(Path(folder), files))
        except InputError as error:
            assert len(str(error).splitlines()) == 1


def read_as(name, source):
    """The source as that format: valid, whatever it holds."""
    if name in CASES:
        trace = importers.read(name, source, shape=CASES[name].shape)
        assert trace.num_tokens > 0
        assert trace.experts_TLK.max() < SHAPE.num_experts
    else:
        counts = read_counts(name.removeprefix("counts "), next(source.iterdir()), SHAPE)
        assert counts.counts_LE.sum() > 0


def without(first, lines):
    """A file without some of its lines."""
    return b"".join(line for n, line in enumerate(first.splitlines(keepends=True)) if n not in lines)


def token(name):
    """The first token's lines are left out."""
    lines = CASES[name].files[next(iter(CASES[name].files))].splitlines()
    if name == "moe-trace-a":
        return {n for n, line in enumerate(lines) if line.startswith(b"0,")}
    return {n for n, line in enumerate(lines) if re.search(rb'"(pos|token_idx)": 0,|^7 0 |prefill,0,', line)}


@pytest.mark.parametrize("name", ["moe-trace-a", "moe-trace-b", "moe-trace-d", "moe-trace-f", "lattice"])
def test_a_first_token_or_step_that_is_missing_is_named(tmp_path, name):
    path, data = next(iter(CASES[name].files.items()))
    write(tmp_path, {path: without(data, token(name))})
    refused("(token|step) 0 is missing", read_as, name, tmp_path)


def test_two_files_of_one_layer_or_one_name_are_refused(tmp_path):
    files = dict(CASES["flame"].files)
    layer = next(name for name in files if "layer_" in name)
    write(tmp_path / "flame", files | {layer.replace("layer_", "layer_0"): files[layer]})
    refused("a second file for layer", read_as, "flame", tmp_path / "flame")
    trace = CASES["megatron"].files["router_trace_rank0.jsonl"]
    write(tmp_path / "ranks", {"a/router_trace_rank0.jsonl": trace, "b/router_trace_rank0.jsonl": trace})
    refused("has the same name; give one of the folders", read_as, "megatron", tmp_path / "ranks")
