import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.reporting.names import is_bound, is_learned, label, looks, ordered
from moe_beyond.simulator.policies import catalogue

KNOWN = [
    "lru",
    "lfu",
    "static_popularity",
    "belady",
    "belady_forced",
    "predictor_prefetch_lru",
    "token_unigram_prefetch_lru",
    "fifo",
    "layer_lru",
    "lfru",
    "predictor_prefetch_anticipate",
    "predictor_anticipate",
    "token_unigram_anticipate",
]


@given(st.lists(st.sampled_from(KNOWN), unique=True, min_size=1))
def test_no_two_lines_look_alike_and_ours_is_always_blue(names: list[str]):
    styles = looks(names)
    seen = {(style.colour, tuple(style.dash)) for style in styles.values()}
    assert len(seen) == len(names)
    for name, style in styles.items():
        assert (style.colour == "@blue") == is_learned(name)
        assert (style.colour == "@ink") == is_bound(name)


@given(st.sets(st.sampled_from(KNOWN), min_size=2))
def test_a_line_keeps_its_colour_whatever_stands_beside_it(names: set[str]):
    for name in names & {"lru", "lfu", "predictor_prefetch_lru", "token_unigram_prefetch_lru", "belady"}:
        assert looks(sorted(names))[name].colour == looks([name])[name].colour


def test_every_policy_of_the_catalogue_has_its_own_words_and_its_own_look():
    names = [*catalogue.known()]
    assert len({label(name) for name in names}) == len(names)
    styles = looks(names)
    assert len({(style.colour, tuple(style.dash)) for style in styles.values()}) == len(names)
    # the same look alone as among all others
    for name in names:
        if not is_bound(name):
            assert looks([name])[name] == styles[name]
    initials = {"MC, fewer bits", "SEER-MoE", "LExI", "MoTE", "HOBBIT", "PreMoe", "eMoE", "MoE-Infinity"}
    assert initials <= {style.label for style in styles.values()}


def test_more_lines_than_colours_turn_grey_rather_than_fail():
    styles = looks([f"policy_{i}" for i in range(30)])
    assert [style.colour for style in styles.values()].count("@grey") == 23


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lru", "LRU"),
        ("predictor_prefetch_lru", "Predictor prefetch + LRU"),
        ("token_unigram_prefetch_layer_lfu", "Token unigram prefetch + LFU per layer"),
        ("predictor_prefetch_anticipate", "Predictor prefetch + eviction"),
        ("token_unigram_anticipate", "Token unigram eviction"),
        ("predictor_layer_prefetch_anticipate", "Predictor layer-step prefetch + eviction"),
        ("predictor_layer_prefetch_layer_lru", "Predictor layer-step prefetch + LRU per layer"),
        ("predictor_ahead_1", "Predictor, 1 layer ahead"),
        ("belady", "Belady (demand bound)"),
        ("something_new", "Something new"),
    ],
)
def test_labels_read_as_words(name: str, words: str):
    assert label(name) == words


def test_baselines_are_not_learned():
    learned = ["predictor_prefetch_lru", "predictor_prefetch_anticipate", "predictor_anticipate"]
    assert [name for name in KNOWN if is_learned(name)] == learned
    assert not is_learned("token_unigram")


def test_ours_comes_first_and_bounds_last():
    assert ordered(["belady", "lru", "predictor_prefetch_lru", "lru"]) == ["predictor_prefetch_lru", "lru", "belady"]
