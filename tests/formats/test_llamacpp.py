"""CSVs of llama.cpp: batches, ubatches, rows of lists, and files that are something else."""

import numpy as np
import pytest

from tests.formats.cases import BESIDE, SMALL, batch, experts, read
from tests.traces.refusals import refused


def trace_of(folder, text):
    return read("llamacpp-csv", folder, {"a.csv": text.encode()} | BESIDE)


def without_last_layer(experts_TLK):
    return "".join(line for line in batch(experts_TLK).splitlines(keepends=True) if not line.startswith("3,"))


def lists(experts_TLK):
    """A row a layer and token."""
    rows = [f"{layer + 1},{' '.join(map(str, ids))}" for layer in range(3) for ids in experts_TLK[:, layer].tolist()]
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("header", ["layer,expert\n", "layer_id,expert_id\r\n", ""])
def test_batches_become_prefill_and_decode(tmp_path, header):
    ids = experts(7, SMALL)
    rows = batch(ids[:3], last_alone=True) + batch(ids[3:5]) + batch(ids[5:6]) + batch(ids[6:])
    trace = trace_of(tmp_path, header + rows)
    assert trace.num_prefill_P.tolist() == [5]
    # a last layer for the last token alone adds nothing
    ids[:3, 2] = ids[2, 2]
    np.testing.assert_array_equal(trace.experts_TLK, ids)


@pytest.mark.parametrize("last", [1, 2])
def test_a_prompt_longer_than_a_ubatch_is_one_prefill(tmp_path, last):
    """Only the ubatch with the prompt's last token has rows of the last layer."""
    ids, end = experts(7 + last, SMALL), 6 + last
    rows = without_last_layer(ids[:3]) + without_last_layer(ids[3:6]) + batch(ids[6:end], last_alone=True)
    trace = trace_of(tmp_path, rows + batch(ids[end:]))
    assert trace.num_prefill_P.tolist() == [end]
    ids[:end, 2] = ids[end - 1, 2]
    np.testing.assert_array_equal(trace.experts_TLK, ids)
    refused(
        "row 1: no rows of the last layer for the prompt that begins here", trace_of, tmp_path, without_last_layer(ids)
    )


def test_logs_with_a_list_a_row_say_the_same(tmp_path):
    ids = experts(5, SMALL)
    trace = trace_of(tmp_path, "layer_id,expert_ids\n" + lists(ids[:3]) + lists(ids[3:4]) + lists(ids[4:]))
    assert trace.num_prefill_P.tolist() == [3]
    np.testing.assert_array_equal(trace.experts_TLK, ids)


IDS = experts(6, SMALL)
TWO_RUNS = batch(IDS[:3], last_alone=True) + batch(IDS[3:4]) + batch(IDS[4:], last_alone=True)
EVERY = "".join(f"{layer},{expert}\n" for layer in (1, 2, 3) for expert in range(8))
OTHERS = [
    (TWO_RUNS, "row 21: a batch of 2 tokens after decoded ones: does a second prompt begin here?"),
    ("layer_id,expert_ids\n1,5 4\n2,3\n", "row 3: expert_ids is '3', expected 2 ids of 0 to 7"),
    ("layer_id,expert_ids\n1,5 8\n", "row 2: expert_ids is '5 8', expected 2 ids"),
    ("layer_id,expert_ids\n1,0 1 2 3 4 5 6 7\n", "row 2: all 8 experts, as the engine's warm-up does"),
    (EVERY + batch(IDS), "row 1: each token of the batch that begins here has all experts, as the engine's warm-up"),
    ("layer_id,expert_id,count\n1,0,24\n", "'count' holds counts, how often each expert was chosen: no trace"),
    ("blk.1.ffn_gate_exps.weight,4,4\n", "'blk.1.ffn_gate_exps.weight' holds counts"),
]


@pytest.mark.parametrize(("text", "message"), OTHERS)
def test_what_is_no_trace_of_one_prompt_is_named(tmp_path, text, message):
    refused(message, trace_of, tmp_path, text)
