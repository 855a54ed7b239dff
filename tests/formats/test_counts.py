"""Counts agree with a trace counted by hand, and what cannot be counts is refused."""

from dataclasses import replace

import numpy as np
import pytest

from moe_beyond.formats.counts import ExpertCounts, checked_counts, count_experts
from tests.simulator.strategies import make_trace
from tests.traces.refusals import refused

COUNTS = ExpertCounts("toy", (1, 2), np.array([[2, 3, 0], [1, 0, 1]]), "by hand", 2, (10, 10))


def test_every_choice_of_a_trace_is_counted():
    trace = make_trace(3, num_layers=3, num_experts=7, lengths=(9, 4), prefill=(3, 0))
    counts = checked_counts(count_experts(trace), "trace")
    expected = [
        [sum(expert in row[layer] for row in trace.experts_TLK.tolist()) for expert in range(7)] for layer in range(3)
    ]
    assert counts.counts_LE.tolist() == expected
    assert (counts.num_layers, counts.num_experts, counts.top_k) == (3, 7, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts_LE": np.array([[2, -1, 0], [1, 0, 1]])}, "f: layer 1, expert 1: the count is negative"),
        ({"counts_LE": np.array([[2, 1, 0], [0, 0, 0]])}, "f: layer 2 has no counts"),
        ({"layer_numbers": (2, 1)}, "must rise"),
        ({"layer_numbers": (1,)}, "for 1 layers"),
        ({"expert_bytes": (10,)}, "1 expert sizes for 2 layers"),
        ({"top_k": 4}, "top-4 of 3 experts"),
    ],
)
def test_what_cannot_be_counts_is_refused(change, message):
    assert checked_counts(COUNTS, "f") is COUNTS
    refused(message, checked_counts, replace(COUNTS, **change), "f")
