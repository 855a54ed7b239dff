"""What is written comes back unchanged; what is damaged is refused in one line."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.errors import InputError
from moe_beyond.traces import store
from moe_beyond.traces.hidden import HiddenStates, Routers
from moe_beyond.traces.schema import TokenTexts, concatenate
from tests.traces.random_traces import random_trace
from tests.traces.refusals import refused


def full_trace(lengths, experts=16, seed=0, name="p"):
    """A trace with every column."""
    rng = np.random.default_rng(seed)
    trace = random_trace(lengths, layers=3, experts=experts, top_k=2, seed=seed)
    words = ["a", 'Ġ"', ",\r\n", "ünï", "\0", ""]
    return replace(
        trace,
        prompt_ids=tuple(f"{name}{i}" for i in range(len(lengths))),
        held_out_P=rng.random(len(lengths)) < 0.5,
        num_prefill_P=np.array([rng.integers(0, length + 1) for length in lengths], np.int32),
        weights_TLK=rng.random(trace.experts_TLK.shape).astype(np.float16),
        token_ids_T=rng.integers(0, 2**31, trace.num_tokens).astype(np.int32),
        token_texts=TokenTexts.encode([words[i] for i in rng.integers(0, len(words), trace.num_tokens)]),
        predicted_TLK=random_trace(lengths, layers=3, experts=experts, top_k=2, seed=seed + 1).experts_TLK,
        hidden=drawn_hidden(trace.num_tokens, experts, rng),
    )


def drawn_hidden(tokens, experts, rng, layers=3, width=4):
    """Hidden states of about half of the tokens and of all layers but the second."""
    kept = rng.random(tokens) < 0.5
    rows = np.full(tokens, -1, np.int64)
    rows[kept] = rng.permutation(kept.sum())
    kept_layers = tuple(layer for layer in range(layers) if layer != 1)
    shape = (int(kept.sum()), len(kept_layers), width)
    return HiddenStates(
        rows,
        kept_layers,
        rng.standard_normal(shape).astype(np.float16),
        rng.standard_normal(shape).astype(np.float16),
        rng.standard_normal((shape[0], width)).astype(np.float16),
        Routers(rng.standard_normal((layers, experts, width)).astype(np.float32)),
    )


ARRAYS = ("held_out_P", "prompt_offsets", "num_prefill_P", "experts_TLK", "weights_TLK", "token_ids_T", "predicted_TLK")


def assert_same(a, b):
    assert (a.metadata, a.prompt_ids, a.domains) == (b.metadata, b.prompt_ids, b.domains)
    for field in ARRAYS:
        left, right = np.asarray(getattr(a, field)), np.asarray(getattr(b, field))
        assert left.dtype == right.dtype, field
        np.testing.assert_array_equal(left, right)
    assert (a.token_texts and a.token_texts.decode()) == (b.token_texts and b.token_texts.decode())
    assert_same_hidden(a, b)


def assert_same_hidden(a, b):
    assert (a.hidden is None) == (b.hidden is None)
    if a.hidden is None:
        return
    for left, right in zip(hidden_values(a), hidden_values(b), strict=True):
        np.testing.assert_array_equal(left, right)
    for name in ("weights_LED", "logit_bias_LE", "choice_bias_LE"):
        np.testing.assert_array_equal(getattr(a.hidden.routers, name), getattr(b.hidden.routers, name))


def hidden_values(trace, tokens=slice(None)):
    """All values of some tokens, each array followed by which of them are kept."""
    hidden, layers = trace.hidden, range(trace.metadata.num_layers)
    arrays = (hidden.gate_inputs_SYD, hidden.layer_inputs_SYD)
    for values, layer in itertools.product((array for array in arrays if array is not None), layers):
        yield from hidden.of_layer(values, layer, tokens)
    yield from hidden.final(tokens)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    experts=st.sampled_from([4, 256, 257, 512]),
    dropped=st.sets(st.sampled_from(["weights_TLK", "token_ids_T", "token_texts", "predicted_TLK", "hidden"])),
    seed=st.integers(0, 99),
)
def test_both_forms_give_back_what_was_written(tmp_path_factory, lengths, experts, dropped, seed):
    folder = tmp_path_factory.mktemp("trace")
    trace = replace(full_trace(lengths, experts, seed), **dict.fromkeys(dropped))
    assert trace.experts_TLK.dtype == (np.uint8 if experts <= 256 else np.uint16)
    store.write_parquet(trace, folder / "a.parquet")
    assert_same(store.read_parquet(folder / "a.parquet"), trace)
    store.write_working(trace, folder / "working")
    assert_same(store.open_working(folder / "working"), trace)


def test_a_directory_is_read_in_order_of_names_and_streamed_a_few_prompts_at_a_time(tmp_path):
    first, second = full_trace([2] * 150, name="p"), full_trace([4, 2], seed=1, name="q")
    store.write_parquet(second, tmp_path / "1.parquet")
    store.write_parquet(first, tmp_path / "0.parquet")
    whole = concatenate([first, second])
    assert_same(store.read_parquet(tmp_path), whole)
    assert_same(store.read_parquet(tmp_path, hidden=False), replace(whole, hidden=None))
    batches = list(store.iterate_parquet(tmp_path))
    assert [batch.num_prompts for batch in batches] == [64, 64, 22, 2]
    assert_same(concatenate(batches), replace(whole, hidden=None))


@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=6), seed=st.integers(0, 99), mapped=st.booleans())
def test_hidden_states_follow_their_tokens(tmp_path_factory, lengths, seed, mapped):
    one, two = full_trace(lengths, seed=seed), full_trace(lengths[:1], seed=seed + 1, name="q")
    if mapped:
        folder = tmp_path_factory.mktemp("trace")
        store.write_parquet(one, folder / "a.parquet")
        one = store.read_parquet(folder / "a.parquet")
        assert isinstance(one.hidden.gate_inputs_SYD, np.memmap)
    whole = concatenate([one, two])
    for values, of_one, of_two in zip(*map(hidden_values, (whole, one, two)), strict=True):
        np.testing.assert_array_equal(values, np.concatenate([of_one, of_two]))
    order = np.random.default_rng(seed).permutation(len(lengths))[:3]
    starts = one.prompt_offsets
    tokens = np.concatenate([np.arange(starts[prompt], starts[prompt + 1]) for prompt in order])
    for values, expected in zip(hidden_values(one.select(order)), hidden_values(one, tokens), strict=True):
        np.testing.assert_array_equal(values, expected)


def test_hidden_states_are_joined_where_every_part_has_them_and_of_the_same_layers():
    one, two = full_trace([3, 2]), full_trace([4], seed=1, name="q")
    assert concatenate([one, replace(two, hidden=None)]).hidden is None
    assert concatenate([one, replace(two, hidden=replace(two.hidden, layers=(0, 1)))]).hidden is None
    half = replace(two, hidden=replace(two.hidden, layer_inputs_SYD=None))
    assert concatenate([one, half]).hidden.layer_inputs_SYD is None
    assert concatenate([one, half]).hidden.final_states_SD is not None


def test_hidden_states_of_a_former_file_are_removed_and_nothing_else_is(tmp_path):
    path, folder = tmp_path / "a.parquet", tmp_path / "a.hidden"
    trace = full_trace([3, 2])
    store.write_parquet(trace, path)
    store.write_parquet(replace(trace, hidden=None), path)
    assert not folder.exists()
    folder.mkdir()
    (folder / "mine").touch()
    refused(r"a\.hidden: holds no hidden states", store.write_parquet, trace, path)
    store.write_parquet(replace(trace, hidden=None), path)
    assert store.read_parquet(path).hidden is None
    assert (folder / "mine").exists()


def _described(**fields):
    def change(folder):
        path = folder / "hidden.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def _saved(name, change):
    return lambda folder: np.save(folder / f"{name}.npy", change(np.load(folder / f"{name}.npy")))


def _with_nan(values):
    values[-1] = np.nan
    return values


HIDDEN_DAMAGE = [
    (lambda folder: (folder / "hidden.json").write_text("{"), "damaged hidden states"),
    (lambda folder: (folder / "hidden.json").write_text("[]"), "damaged hidden states"),
    (lambda folder: (folder / "rows_T.npy").unlink(), "damaged hidden states"),
    (lambda folder: (folder / "gate_inputs_SYD.npy").write_bytes(b""), "damaged hidden states"),
    (lambda folder: os.truncate(folder / "layer_inputs_SYD.npy", 140), "damaged hidden states"),
    (_saved("rows_T", lambda rows_T: rows_T[1:]), "rows of 39 tokens, the trace has 40"),
    (_saved("rows_T", lambda rows_T: rows_T + 9), "a row outside 0 to"),
    (_saved("final_states_SD", lambda values: values[1:]), r"final_states_SD is float16 .*expected float16"),
    (_saved("gate_inputs_SYD", lambda values: values.astype(np.float32)), "gate_inputs_SYD is float32"),
    (_saved("router_weights_LED", lambda values: values[:, :, 1:]), "routers read 3 values, hidden states have 4"),
    (_saved("router_weights_LED", lambda values: values[1:]), "routers of 2 layers x 16 experts, the trace has 3 x 16"),
    (_described(layers=[0, 7]), r"hidden states of layers \[0, 7\], the trace has 3"),
    (_described(layers=[0]), "values of 2 layers, named are"),
    (_described(routers={"scoring": "softmax", "unknown": 1}), "damaged hidden states .*unknown"),
    (_described(trace="another"), "they are another trace's"),
    (_saved("gate_inputs_SYD", _with_nan), "prompt 'p.', position .*: hidden states in gate_inputs_SYD are not finite"),
    (_saved("final_states_SD", _with_nan), "hidden states in final_states_SD are not finite"),
]


@pytest.mark.parametrize(("damage", "message"), HIDDEN_DAMAGE)
def test_damaged_or_foreign_hidden_states_are_one_line(tmp_path, damage, message):
    store.write_parquet(full_trace([20, 20]), tmp_path / "a.parquet")
    damage(tmp_path / "a.hidden")
    refused(rf"a\.(hidden|parquet): .*{message}", store.read_parquet, tmp_path / "a.parquet")
    assert store.read_parquet(tmp_path / "a.parquet", hidden=False).hidden is None


def test_an_activation_costs_at_most_a_byte(tmp_path):
    # the worst case: routing at random, no entropy to save
    for experts in (64, 256):
        trace, overhead = random_trace([200] * 50, layers=8, experts=experts, top_k=8), 40_000
        store.write_parquet(trace, tmp_path / "a.parquet")
        assert (tmp_path / "a.parquet").stat().st_size - overhead <= trace.experts_TLK.size * np.log2(experts) / 8


def _replace(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


def _metadata(text):
    return lambda table: table.replace_schema_metadata({b"moe_beyond": text})


def _changed(**fields):
    return lambda table: _metadata(json.dumps(json.loads(table.schema.metadata[b"moe_beyond"]) | fields))(table)


FIRST, SECOND = [0, 1, 2, 3, 4, 5] * 2, [0, 1, 2, 3, 4, 5]
BROKEN = [
    (_replace("experts", [FIRST[:11], SECOND]), "prompt 'p0' has 11 expert ids, not a multiple of 3 layers"),
    (_replace("experts", [[16, *FIRST[1:]], SECOND]), "prompt 'p0', position 0, layer 1: expert id 16"),
    (_replace("experts", [FIRST, [0, 300, 2, 3, 4, 5]]), "300 in column 'experts', expected 0 to 255"),
    (_replace("experts", [FIRST, [0, 1, 2, 2, 4, 5]]), "'p1', position 0, layer 2: an expert is listed twice"),
    (_replace("experts", [FIRST, None]), "column 'experts' misses 1 lists"),
    (_replace("experts", [FIRST, [0, 1, None, 3, 4, 5]]), "column 'experts' misses 1 values"),
    (_replace("experts", [[0.5] * 12, [0.5] * 6]), "column 'experts' holds double, expected integer"),
    (_replace("experts", ["x", "y"]), "column 'experts' holds string, expected a list a prompt"),
    (_replace("weights", [[0.5] * 12, [0.5] * 5]), "prompt 'p1' has 5 values in column 'weights', expected 6"),
    (_replace("weights", [[0.5] * 12, [float("nan")] * 6]), "'p1', position 0, layer 1: combine weight nan"),
    (_replace("weights", [[0.5] * 12, [1e9] * 6]), "position 0, layer 1: combine weight inf"),
    (_replace("token_ids", [[1, 2], [2**31]]), "2147483648 in column 'token_ids'"),
    (_replace("prompt_id", ["a", None]), "column 'prompt_id' misses 1 values"),
    (_replace("held_out", [0, 1]), "column 'held_out' holds int64, expected boolean"),
    (lambda table: table.drop_columns(["domain"]), "column 'domain' is missing"),
    (lambda table: table.slice(0, 0), "no prompts; give at least one"),
    (lambda table: table.replace_schema_metadata({}), "is not a routing trace"),
    (_metadata(b"[]"), "metadata are damaged"),
    (_changed(schema_version=2), r"schema version 2; this release reads 1 to 1, upgrade it"),
    (_changed(top_k=0), "metadata top_k"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_broken_file_is_one_line(tmp_path, change, message):
    path = tmp_path / "a.parquet"
    store.write_parquet(full_trace([2, 1]), path)
    pq.write_table(change(pq.read_table(path)), path)
    for read in (store.read_parquet, lambda path: list(store.iterate_parquet(path)) or store.read_parquet(path)):
        refused(rf"a\.parquet(, row group 0)?: .*{message}", read, path)


def test_other_writers_integer_types_and_lists_are_read(tmp_path):
    store.write_parquet(replace(full_trace([2, 1]), hidden=None), tmp_path / "a.parquet")
    changed = _replace("experts", [FIRST, SECOND])(pq.read_table(tmp_path / "a.parquet"))
    assert changed.schema.field("experts").type == pa.list_(pa.int64())
    pq.write_table(changed, tmp_path / "a.parquet")
    experts_TLK = store.read_parquet(tmp_path / "a.parquet").experts_TLK
    assert (experts_TLK.dtype, experts_TLK.reshape(-1).tolist()) == (np.uint8, FIRST + SECOND)


def test_two_files_with_a_prompt_of_one_name_or_of_two_models_are_refused(tmp_path):
    store.write_parquet(full_trace([3]), tmp_path / "0.parquet")
    store.write_parquet(full_trace([3]), tmp_path / "1.parquet")
    refused(r"1\.parquet: prompt 'p0' also stands in .*0\.parquet", store.read_parquet, tmp_path)
    store.write_parquet(full_trace([3], experts=32, name="q"), tmp_path / "1.parquet")
    refused(r"1\.parquet: num_experts is 32, m has 16", store.read_parquet, tmp_path)


def test_missing_and_empty_files_are_named(tmp_path):
    refused(r"expected a \.parquet file or a directory of them", store.read_parquet, tmp_path)
    (tmp_path / "a.parquet").touch()
    for read in (store.read_parquet, lambda path: list(store.iterate_parquet(path))):
        refused(r"a\.parquet: not a readable Parquet file", read, tmp_path / "a.parquet")


FLIPS = st.lists(st.tuples(st.integers(0, 9999), st.integers(1, 255)), max_size=4)


@given(flips=FLIPS, cut=st.none() | st.integers(0, 3000))
def test_any_damage_is_found_or_harmless(tmp_path_factory, flips, cut):
    folder = tmp_path_factory.mktemp("damage")
    trace = full_trace([40, 30])
    store.write_parquet(trace, folder / "a.parquet")
    content = bytearray((folder / "a.parquet").read_bytes())
    for place, value in flips:
        content[place % len(content)] ^= value
    (folder / "a.parquet").write_bytes(content[:cut])
    try:
        read = store.read_parquet(folder / "a.parquet")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        # page checksums guard every value; names of unused statistics and the writer's own name are not guarded
        np.testing.assert_array_equal(read.experts_TLK, trace.experts_TLK)


DAMAGE = [
    (lambda folder: (folder / "trace.json").unlink(), "no working trace there; run the split stage first"),
    (lambda folder: (folder / "trace.json").write_text("{}"), "trace.json: damaged"),
    (lambda folder: (folder / "experts_TLK.npy").unlink(), "experts_TLK.npy: not a readable array .*No such file"),
    (lambda folder: os.truncate(folder / "weights_TLK.npy", 150), "weights_TLK.npy: not a readable array"),
    (lambda folder: np.save(folder / "weights_TLK.npy", np.zeros((1, 3, 2))), "has 1 tokens, experts_TLK has 9"),
    (lambda folder: np.save(folder / "prompt_offsets.npy", np.array([0, 9])), "files of different traces"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_working_form_is_one_line(tmp_path, damage, message):
    store.write_working(full_trace([5, 4]), tmp_path / "working")
    damage(tmp_path / "working")
    refused(message, store.open_working, tmp_path / "working")


def test_a_kill_while_writing_leaves_the_old_file_and_a_rerun_gives_the_same_bytes(tmp_path):
    source, target = tmp_path / "source.parquet", tmp_path / "a.parquet"
    store.write_parquet(full_trace([50] * 21), source)
    store.write_parquet(full_trace([50] * 20), target)
    old = target.read_bytes()
    # the process dies when all rows are on disk and the rename has not happened
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from moe_beyond.traces import store\n"
        "Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.write_parquet(store.read_parquet(Path(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    assert subprocess.run([sys.executable, "-c", script, source, target], check=False).returncode == -9
    assert target.read_bytes() == old
    store.write_parquet(store.read_parquet(source), target)
    assert target.read_bytes() == source.read_bytes()


def test_a_few_bytes_that_stand_for_any_number_of_values_are_refused_before_they_are_read(tmp_path):
    whole, path = tmp_path / "whole.parquet", tmp_path / "a.parquet"
    store.write_parquet(full_trace([3]), whole)
    table, count = pq.read_table(whole), 24_000_000
    experts = pa.LargeListArray.from_arrays([0, count], pa.array(np.zeros(count, np.uint8)))
    pq.write_table(table.set_column(table.column_names.index("experts"), "experts", experts), path)
    assert path.stat().st_size < 10_000
    refused(r"bytes hold 24,\d+,\d+ values", store.read_parquet, path)
    refused(r"bytes hold 24,\d+,\d+ values", lambda path: list(store.iterate_parquet(path)), path)
