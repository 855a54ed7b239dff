"""The split keeps like with like, whatever the order, and says what contamination it found."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from moe_beyond.data.duplicates import group_prompts
from moe_beyond.data.settings import SplitSettings
from moe_beyond.data.splitting import EXCLUDED, SPLITS, split_prompts
from moe_beyond.formats import importers
from moe_beyond.traces.schema import TokenTexts, concatenate
from tests.phone_traces import shared
from tests.traces.random_traces import trace_of as routed
from tests.traces.refusals import refused

DEFAULTS = SplitSettings()


def trace_of(prompts, held_out=None, prefill=None, column="texts"):
    """A trace with these token strings; the routing follows from each token alone."""
    flat = [token for prompt in prompts for token in prompt]
    words = {token: number for number, token in enumerate(sorted(set(flat)))}
    ids = np.array([words[token] for token in flat], np.int32)
    experts_TK = np.stack([ids % 8, (ids + 1 + ids // 8 % 7) % 8], axis=1)
    trace = routed(np.stack([experts_TK, experts_TK], axis=1), [len(prompt) for prompt in prompts], 8)
    return replace(
        trace,
        held_out_P=np.array(held_out or [False] * len(prompts)),
        num_prefill_P=trace.num_prefill_P if prefill is None else np.array(prefill, np.int32),
        token_ids_T=ids if column == "ids" else None,
        token_texts=TokenTexts.encode(flat) if column == "texts" else None,
    )


def random_prompts(count, length=40, seed=0):
    rng = np.random.default_rng(seed)
    return [[str(word) for word in rng.integers(0, 5000, length)] for _ in range(count)]


IN_DOMAIN = ("train", "validation", "gate_in_domain", "test_in_domain")


def test_every_prompt_is_in_one_split_and_fractions_are_about_right():
    trace = trace_of(random_prompts(3000), held_out=[False] * 2000 + [True] * 1000)
    split = split_prompts(trace, DEFAULTS)
    counts = {name: len(split.prompts(name)) for name in SPLITS}
    assert (sum(counts.values()), split.names) == (3000, SPLITS)
    # binomials of 2000 at 0.05 have a standard deviation of 10, of 1000 at 0.2 one of 13
    for name in ("validation", "test_in_domain", "gate_in_domain"):
        assert abs(counts[name] - 100) < 40
    assert abs(counts["gate_out_of_domain"] - 200) < 55
    assert counts["gate_out_of_domain"] + counts["test_out_of_domain"] == 1000
    assert split_prompts(trace_of(random_prompts(2000)), DEFAULTS).names == IN_DOMAIN


def with_relatives():
    """A trace of two domains, 40 of whose 200 prompts have a copy or a near copy somewhere else in it."""
    prompts = random_prompts(200)
    near = [[*prompt[:20], "EDIT", *prompt[21:]] for prompt in prompts[5::10]]
    return trace_of([*prompts, *prompts[::10], *near], held_out=[p % 3 == 0 for p in range(240)])


def test_the_gates_prompts_are_like_none_of_any_other_split():
    settings = SplitSettings(gate_fraction=0.3, gate_held_out_fraction=0.5, shared_prefix_tokens=1000)
    split = split_prompts(with_relatives(), settings)
    of = {name: split.prompts(name) for name in split.names}
    for gate in ("gate_in_domain", "gate_out_of_domain"):
        assert len(of[gate]) > 5
        for name in set(of) - {gate}:
            assert not set(of[gate].tolist()) & set(of[name].tolist())
            for what in (split.group_P, np.array(split.fingerprints)):
                assert not set(what[of[gate]].tolist()) & set(what[of[name]].tolist())


def test_the_size_of_the_gate_changes_no_test_and_no_validation_split():
    sizes = SplitSettings(gate_fraction=0.05), SplitSettings(gate_fraction=0.6, gate_held_out_fraction=0.5)
    small, large = (split_prompts(with_relatives(), settings).prompts for settings in sizes)
    for name in ("validation", "test_in_domain"):
        assert small(name).tolist() == large(name).tolist()
    # a larger gate takes from training alone, and of a held-out domain from its test
    assert set(large("train")) < set(small("train"))
    for name in ("gate_in_domain", "gate_out_of_domain"):
        assert set(small(name)) < set(large(name))


@pytest.mark.parametrize("held_out", [1, 60])
def test_a_held_out_domain_keeps_a_test_whatever_the_gate_takes(held_out):
    trace = trace_of(random_prompts(20 + held_out), held_out=[False] * 20 + [True] * held_out)
    for share, test in ((0, held_out), (0.999, 1)):
        split = split_prompts(trace, SplitSettings(gate_held_out_fraction=share))
        sides = [len(split.prompts(f"{side}_out_of_domain")) for side in ("test", "gate")]
        assert sides == [test, held_out - test]
        assert ("gate_out_of_domain" in split.names) == (sides[1] > 0)


@pytest.mark.parametrize("column", ["texts", "ids", "none"])
def test_exact_duplicates_count_once_and_are_reported(column):
    prompts = random_prompts(30)
    trace = trace_of([*prompts, prompts[3], prompts[3]], column=column)
    split = split_prompts(trace, DEFAULTS)
    assert split.fingerprints[3] == split.fingerprints[30]
    assert split.assignment[30] == split.assignment[31] == EXCLUDED
    contamination = split.report["contamination"]
    assert (contamination["distinct_prompts"], contamination["exact_duplicates"]) == (30, 2)
    everything = split_prompts(trace, SplitSettings(exact_duplicates="all")).assignment
    assert everything[3] == everything[30] == everything[31]
    assert EXCLUDED not in everything


def test_groups_equal_a_comparison_of_all_pairs():
    rng, prompts = np.random.default_rng(3), []
    for base in random_prompts(25, length=50):
        for edits in (0, 1, 2, 4, 8):
            places = set(rng.choice(50, edits, replace=False).tolist())
            prompts.append([f"edit{rng.integers(1000)}" if i in places else word for i, word in enumerate(base)])
    shingles = [{tuple(prompt[i : i + 3]) for i in range(48)} for prompt in prompts]
    expected = list(range(len(prompts)))
    for p, q in itertools.combinations(range(len(prompts)), 2):
        if len(shingles[p] & shingles[q]) >= 0.7 * len(shingles[p] | shingles[q]):
            new, old = sorted((expected[p], expected[q]))
            expected = [new if group == old else group for group in expected]
    given = group_prompts(trace_of(prompts), SplitSettings(shingle_tokens=3, shared_prefix_tokens=1000))
    assert given.tolist() == expected
    assert 25 < len(set(expected)) < 125


def test_a_shared_prefix_joins_and_a_shorter_one_does_not():
    a, b = random_prompts(2, length=200)
    for common, groups in ((31, 2), (32, 1)):
        trace = trace_of([a, [*a[:common], *b]])
        assert len(set(group_prompts(trace, SplitSettings(shared_prefix_tokens=32)).tolist())) == groups


def test_continuations_of_one_prompt_stay_together_and_are_all_kept():
    prompts = random_prompts(20, length=10)
    again = [[*prompts[0], *tail] for tail in random_prompts(5, length=60, seed=1)]
    assignment = split_prompts(trace_of(prompts + again, prefill=[10] * 25), DEFAULTS).assignment
    assert len({assignment[p] for p in (0, *range(20, 25))}) == 1
    assert EXCLUDED not in assignment


def test_held_out_prompts_are_test_data_and_their_twins_leave_training():
    prompts = random_prompts(40)
    near = [*prompts[1][:20], "EDIT", *prompts[1][21:]]
    trace = trace_of([*prompts, prompts[0], near], held_out=[False] * 40 + [True, True])
    split = split_prompts(trace, SplitSettings(shared_prefix_tokens=1000, gate_held_out_fraction=0))
    assert split.assignment[40:] == ("test_out_of_domain", "test_out_of_domain")
    assert split.assignment[0] == split.assignment[1] == EXCLUDED
    names = [f"in_domain_prompts_{how}_held_out" for how in ("identical_to", "near")]
    assert [split.report["contamination"][name] for name in names] == [1, 2]


@given(order=st.permutations(range(24)), dropped=st.sets(st.integers(0, 23), max_size=3))
@settings(max_examples=30, deadline=None)
def test_a_prompt_keeps_its_side_whatever_the_order_and_the_company(order, dropped):
    prompts = random_prompts(24)
    chosen = SplitSettings(test_fraction=0.25, validation_fraction=0.25, gate_fraction=0.25)
    whole = split_prompts(trace_of(prompts), chosen)
    kept = [p for p in order if p not in dropped]
    part = split_prompts(trace_of([prompts[p] for p in kept]), chosen)
    assert [whole.assignment[p] for p in kept] == list(part.assignment)


def test_few_prompts_still_fill_every_side():
    for seed in range(20):
        assert split_prompts(trace_of(random_prompts(4 + seed % 3, seed=seed)), DEFAULTS).names == IN_DOMAIN


def test_too_few_distinct_prompts_and_fractions_without_training_are_refused():
    few = trace_of(random_prompts(3) * 3)
    refused("split: 3 distinct in-domain prompts; .*: trace more", split_prompts, few, DEFAULTS)
    with pytest.raises(ValidationError, match="leave nothing to train on"):
        SplitSettings(validation_fraction=0.3, test_fraction=0.3, gate_fraction=0.4)


def test_a_column_of_one_file_survives_in_the_split_that_comes_from_it():
    prompts = random_prompts(40)
    first, second = trace_of(prompts[:30]), trace_of(prompts[30:], held_out=[True] * 10)
    second = replace(second, prompt_ids=tuple(f"q{i}" for i in range(10)), predicted_TLK=second.experts_TLK)
    split = split_prompts(concatenate([first, second]), SplitSettings(gate_held_out_fraction=0))
    test, train = (split.trace([first, second], name) for name in ("test_out_of_domain", "train"))
    assert test.prompt_ids == second.prompt_ids
    assert (test.predicted_TLK is None, train.predicted_TLK is None) == (False, True)
    assert [int(name[1:]) for name in train.prompt_ids] == split.prompts("train").tolist()
    np.testing.assert_array_equal(train.experts_TLK, first.select(split.prompts("train")).experts_TLK)


@pytest.mark.slow
def test_published_prompts_hold_the_known_contamination():
    puffin, webglm = (
        importers.read("moe-beyond-csv", shared(f"{name}.tar.xz"), held_out=name == "webglm")
        for name in ("puffin", "webglm")
    )
    split = split_prompts(concatenate([puffin, webglm]), DEFAULTS)
    assert len(split.prompts("test_out_of_domain")) + len(split.prompts("gate_out_of_domain")) == 50
    contamination = split.report["contamination"]
    assert (contamination["distinct_prompts"], contamination["in_domain_prompts_near_held_out"]) == (1702 + 50, 0)
    sides = [set(np.array(split.assignment)[split.group_P == group]) - {EXCLUDED} for group in set(split.group_P)]
    assert all(len(side) == 1 for side in sides)
