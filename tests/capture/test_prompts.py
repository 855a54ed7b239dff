"""Prompt files and how prompts become token ids."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.capture.prompts import EncodedPrompt, Prompt, encode, read_prompts
from tests.capture.capture_case import tiny_tokenizer
from tests.traces.refusals import refused

EXAMPLES = Path(__file__).parents[2] / "data" / "raw" / "prompts.jsonl"


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_json_lines_and_text_are_read_whatever_ends_the_lines(tmp_path):
    lines = '{"prompt": "one", "id": "a", "domain": "d"}\n\n{"prompt": "two", "extra": 1}\n'
    two = Prompt(prompt="two", id="some.jsonl:3", domain="some")
    assert read_prompts(write(tmp_path, "some.jsonl", lines)) == [Prompt(prompt="one", id="a", domain="d"), two]
    path = write(tmp_path, "some.txt", "\ufeffone\r\ntwo words \r\n")
    assert [prompt.prompt for prompt in read_prompts(path)] == ["one", "two words"]
    assert len({prompt.domain for prompt in read_prompts(EXAMPLES)}) > 1


BROKEN = [
    ("", "some.jsonl: no prompts"),
    ('{"prompt": "one"}\n{"prompt": \n', "some.jsonl: line 2: not JSON"),
    ('{"prompt": 5}\n', "some.jsonl: line 1: prompt: Input should be a valid string"),
    ('["one"]\n', "some.jsonl: line 1: the line"),
    ('{"prompt": "one", "id": "a"}\n{"prompt": "two", "id": "a"}\n', "line 2: id 'a' already stands in line 1"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_broken_file_is_named_with_its_line(tmp_path, text, message):
    refused(message, read_prompts, write(tmp_path, "some.jsonl", text))


def test_a_file_that_is_missing_or_not_utf8_is_refused(tmp_path):
    refused(r"none\.jsonl: no such prompt file", read_prompts, tmp_path / "none.jsonl")
    (tmp_path / "some.txt").write_bytes(b"one\n\xff\xfe")
    refused("byte 4 is not UTF-8", read_prompts, tmp_path / "some.txt")


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1))
def test_any_text_survives_json_lines(tmp_path_factory, texts):
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    path = write(tmp_path_factory.mktemp("p"), "some.jsonl", "\n".join(lines))
    assert [prompt.prompt for prompt in read_prompts(path)] == texts


def test_prompts_keep_their_names_and_all_their_tokens_and_a_chat_template_is_optional():
    tokenizer = tiny_tokenizer()
    prompt = Prompt(prompt="learn", id="x", domain="d")
    plain = EncodedPrompt("x", "d", True, tuple(tokenizer("learn")["input_ids"]))
    assert encode([prompt], tokenizer, held_out=True, chat_template=True) == [plain]
    tokenizer.chat_template = "words {{ messages[0].content }}{% if add_generation_prompt %} to{% endif %}"
    assert encode([prompt], tokenizer, held_out=True, chat_template=False) == [plain]
    (wrapped,) = encode([prompt], tokenizer, held_out=False, chat_template=True)
    assert tokenizer.decode(list(wrapped.token_ids)) == "words learn to"
