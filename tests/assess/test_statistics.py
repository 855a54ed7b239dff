"""Statistics equal what a slow, obvious count gives, and the two ends that are known without counting."""

from itertools import chain, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.assess import statistics
from moe_beyond.traces.schema import expert_counts_LE
from tests.traces.random_traces import random_trace, trace_of


def prompts_of(trace):
    return np.split(trace.experts_TLK, trace.prompt_offsets[1:-1])


LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=5)
SHAPE = {"layers": st.integers(1, 3), "experts": st.integers(3, 9), "top_k": st.integers(1, 3)}


@given(trace=st.builds(random_trace, LENGTHS, **SHAPE, seed=st.integers(0, 1000)), window=st.integers(1, 6))
def test_statistics_equal_a_slow_count(trace, window):
    top_k, rows = trace.metadata.top_k, statistics.layer_statistics(trace, (window,)).to_dicts()
    for layer, (row, reuse_TK) in enumerate(zip(rows, statistics.reuse_distances(trace), strict=True)):
        prompts = [prompt[:, layer].tolist() for prompt in prompts_of(trace)]
        distances, sizes, successive = [], [], []
        for prompt in prompts:
            last = {}
            for token, chosen in enumerate(prompt):
                distances.append([token - last.get(expert, token) for expert in chosen])
                last.update(dict.fromkeys(chosen, token))
            sizes += [len(set().union(*prompt[end - window : end])) for end in range(window, len(prompt) + 1)]
            successive += [len(set(a) & set(b)) / top_k for a, b in pairwise(prompt)]
        anywhere = [len(set(a) & set(b)) / top_k for a, b in permutations(chain(*prompts), 2)]
        assert reuse_TK.tolist() == distances
        assert row["overlap_by_chance"] == top_k / trace.metadata.num_experts
        names = (f"working_set_{window}", "previous_token_overlap", "overlap_by_skew")
        for name, values in zip(names, (sizes, successive, anywhere), strict=True):
            assert row[name] == (pytest.approx(np.mean(values)) if values else None)


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
