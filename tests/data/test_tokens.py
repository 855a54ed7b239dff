from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.data.tokens import MAX_NGRAMS, TokenEncoder, letter_ngrams, token_strings
from moe_beyond.traces.schema import TokenTexts
from tests.traces_of_chance import chance_trace


@given(st.text(max_size=40))
def test_ngrams_are_few_distinct_and_never_padding(text):
    grams = letter_ngrams(text, 512)
    assert len(set(grams)) == len(grams) <= MAX_NGRAMS
    assert set(grams) <= set(range(1, 512))


def test_case_and_leading_space_do_not_matter_but_the_end_of_a_word_does():
    assert letter_ngrams("\u0120Word", 512) == letter_ngrams("word", 512) == letter_ngrams("\u2581word", 512)
    assert letter_ngrams("word", 512) != letter_ngrams("words", 512)


def test_hashes_are_those_of_crc32_forever():
    # a deployed runtime in another language hashes the same way; these numbers must never change
    assert letter_ngrams("Hi", 2048) == [1779, 1184, 117, 393, 1603, 1397]


def test_seldom_strings_are_unknown_and_keep_their_letters():
    trace = chance_trace(1)
    texts = TokenTexts.encode(["cat"] + ["the"] * (trace.num_tokens - 1))
    encoder = TokenEncoder.fit(replace(trace, token_texts=texts), min_count=2, letter_buckets=512)
    tokens, letters = encoder.encode(["cat", "the", "dog"])
    assert tokens.tolist() == [0, 1, 0]
    assert letters[0].any()
    assert letters[0].tolist() != letters[2].tolist()


def test_without_texts_token_ids_stand_in_and_without_both_nothing_does():
    trace = chance_trace()
    words, codes = token_strings(replace(trace, token_texts=None))
    ids = np.array([int(word[1:]) for word in words])
    assert ids[codes].tolist() == trace.token_ids_T.tolist()
    assert not letter_ngrams(words[0], 512)
    words, codes = token_strings(replace(trace, token_texts=None, token_ids_T=None))
    assert words == ("",)
    assert not codes.any()
