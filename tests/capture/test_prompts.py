"""Prompt files and how prompts become token ids."""

import json
from pathlib import Path

import polars as pl
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
    ("5\n", "some.jsonl: line 1: the line"),
    ('{"prompt": " "}\n', "some.jsonl: line 1: prompt is blank; remove it"),
    ('{"text": "one"}\n', r"line 1: no 'prompt' among \['text'\]; name one as prompt_field"),
    ('{"prompt": "one"}\nplain\n', "line 2: not JSON .* as other lines or the file's name say"),
    ('{"prompt":\n"one"}\n{"prompt":\n"two"}\n', "line 1: not JSON"),
    ('{"prompt": "one", "id": "a"}\n{"prompt": "two", "id": "a"}\n', "line 2: id 'a' already stands in line 1"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_broken_file_is_named_with_its_line(tmp_path, text, message):
    refused(message, read_prompts, write(tmp_path, "some.jsonl", text))


def test_a_file_that_is_missing_or_not_utf8_is_refused(tmp_path):
    refused(r"none\.jsonl: no such prompt file", read_prompts, tmp_path / "none.jsonl")
    (tmp_path / "some.txt").write_bytes(b"one\n\xff\xfe")
    refused("byte 4 is not UTF-8", read_prompts, tmp_path / "some.txt")


SAME = [
    ("a.json", '[{"prompt": "the, cat"}, {"prompt": "sat"}]'),
    ("a.txt", '["the, cat", "sat"]'),
    ("a.ndjson", '{"prompt": "the, cat"}\n{"prompt": "sat"}\n'),
    ("a.txt", '{"prompt": "the, cat"}\n\n{"prompt": "sat"}\n'),
    ("a.csv", 'prompt,n\n"the, cat",1\nsat,2\n'),
    ("a.tsv", "n\tprompt\n1\tthe, cat\n2\tsat\n"),
    ("a.dat", "the, cat\nsat\n"),
]


@pytest.mark.parametrize(("name", "text"), SAME)
def test_a_file_is_what_it_holds_whatever_its_name(tmp_path, name, text):
    prompts = read_prompts(write(tmp_path, name, text))
    assert [prompt.prompt for prompt in prompts] == ["the, cat", "sat"]
    assert {prompt.domain for prompt in prompts} == {"a"}
    assert len({prompt.id for prompt in prompts}) == 2


def test_parquet_and_another_field(tmp_path):
    table = pl.DataFrame({"question": ["one", "two"], "id": [7, 8], "domain": ["d", None], "tags": [["a"], ["b"]]})
    table.write_parquet(tmp_path / "some.bin")
    found = read_prompts(tmp_path / "some.bin", "question")
    assert found == [Prompt(prompt="one", id="7", domain="d"), Prompt(prompt="two", id="8", domain="some")]
    refused("no column 'prompt' among .*; name one as prompt_field", read_prompts, tmp_path / "some.bin")
    refused("row 1: tags: Input should be a valid string", read_prompts, tmp_path / "some.bin", "tags")
    (tmp_path / "some.bin").write_bytes(b"PAR1")
    refused("some.bin: not a readable Parquet file", read_prompts, tmp_path / "some.bin")


NOT_TEXT = [
    ("a.txt", 'plain\n{"prompt": "one"}\n', "line 1: not JSON"),
    ("a.txt", '{"prompt":\n"one"}\n{"prompt":\n"two"}\n', "JSON over several lines"),
    ("a.json", '{"data": [{"prompt": "one"}]}', r"line 1: no 'prompt' among \['data'\]"),
    ("a.json", '[{"prompt": "one"}, 5]', "element 2: the line"),
    ("a.csv", "question\none\n", "no column 'prompt' in the header 'question'; name one as prompt_field"),
    ("a.csv", "prompt,id\none\ntwo,1,2\n", "not a readable CSV file"),
    ("a.csv", "prompt,prompt\none,two\n", "column 'prompt' is there twice"),
]


@pytest.mark.parametrize(("name", "text", "message"), NOT_TEXT)
def test_what_is_no_text_is_never_taken_as_text(tmp_path, name, text, message):
    refused(message, read_prompts, write(tmp_path, name, text))


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=1))
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
