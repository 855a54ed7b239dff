"""Statistics equal what a slow, obvious count gives, and the two ends that are known without counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.assess import statistics
from moe_beyond.traces.schema import expert_counts_LE
from tests.traces.random_traces import random_trace, trace_of


def prompts_of(trace):
    return np.split(trace.experts_TLK, trace.prompt_offsets[1:-1])


traces = st.builds(
    random_trace,
    st.lists(st.integers(1, 12), min_size=1, max_size=5),
    layers=st.integers(1, 3),
    experts=st.integers(3, 9),
    top_k=st.integers(1, 3),
    seed=st.integers(0, 1000),
)


@given(trace=traces)
def test_reuse_distances_equal_a_slow_count(trace):
    for layer, reuse_TK in enumerate(statistics.reuse_distances(trace)):
        expected = []
        for prompt in prompts_of(trace):
            last = {}
            for token, chosen in enumerate(prompt[:, layer].tolist()):
                expected.append([token - last[expert] if expert in last else 0 for expert in chosen])
                last.update(dict.fromkeys(chosen, token))
        assert reuse_TK.tolist() == expected


@given(trace=traces, window=st.integers(1, 6))
def test_working_sets_equal_a_slow_count(trace, window):
    for layer, size in enumerate(statistics.layer_statistics(trace, (window,))[f"working_set_{window}"]):
        sizes = [
            len(np.unique(prompt[start : start + window, layer]))
            for prompt in prompts_of(trace)
            for start in range(len(prompt) - window + 1)
        ]
        assert size == (pytest.approx(np.mean(sizes)) if sizes else None)


@given(trace=traces)
def test_overlaps_equal_a_slow_count(trace):
    top_k = trace.metadata.top_k
    for layer, row in enumerate(statistics.layer_statistics(trace, (4,)).iter_rows(named=True)):
        successive = [
            len(set(a) & set(b)) / top_k
            for prompt in prompts_of(trace)
            for a, b in zip(prompt[:-1, layer].tolist(), prompt[1:, layer].tolist(), strict=True)
        ]
        tokens = trace.experts_TLK[:, layer].tolist()
        anywhere = [len(set(a) & set(b)) / top_k for i, a in enumerate(tokens) for j, b in enumerate(tokens) if i != j]
        assert row["previous_token_overlap"] == (pytest.approx(np.mean(successive)) if successive else None)
        assert row["overlap_by_skew"] == (pytest.approx(np.mean(anywhere)) if anywhere else None)
        assert row["overlap_by_chance"] == top_k / trace.metadata.num_experts


@pytest.mark.parametrize("counts", [[7] * 64, [0] * 5 + [100] + [0] * 58, [1, 4, 9, 20]])
def test_entropy_and_gini_are_those_of_their_definitions(counts):
    counts = np.array(counts)
    share = counts[counts > 0] / counts.sum()
    assert statistics.entropy_bits(counts) == pytest.approx(-(share * np.log2(share)).sum())
    # the mean absolute difference over twice the mean
    differences = np.abs(counts[:, None] - counts[None, :]).mean()
    assert statistics.gini(counts) == pytest.approx(differences / (2 * counts.mean()))


def test_the_histogram_counts_every_access_once():
    trace = random_trace([9, 1, 14], layers=3)
    histogram = statistics.reuse_histogram(trace)
    first = sum(len(np.unique(prompt[:, layer])) for prompt in prompts_of(trace) for layer in range(3))
    assert (histogram.sum(), histogram[0]) == (trace.experts_TLK.size, first)


def test_counts_and_top_share():
    trace = trace_of(np.array([[[0]], [[0]], [[0]], [[1]]]), [4], num_experts=20)
    row = statistics.layer_statistics(trace, (2,)).row(0, named=True)
    assert expert_counts_LE(trace.experts_TLK, 20)[0, :3].tolist() == [3, 1, 0]
    # a tenth of 20 experts is two
    assert (row["top_share"], row["unused_experts"]) == (1, 18)
    assert row["working_set_2"] == pytest.approx(4 / 3)
