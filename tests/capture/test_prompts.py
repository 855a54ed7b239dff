"""Prompt files and how prompts become token ids."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.capture.prompts import EncodedPrompt, Prompt, encode, pad, read_prompts
from moe_beyond.errors import InputError
from tests.capture.capture_case import tiny_tokenizer

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
    examples = read_prompts(EXAMPLES)
    assert len(examples) >= 12
    assert len({prompt.domain for prompt in examples}) > 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "some.jsonl: no prompts"),
        ("\n  \n", "some.jsonl: no prompts"),
        ('{"prompt": "one"}\n{"prompt": \n', "some.jsonl: line 2: not JSON"),
        ('{"prompt": "one"}\n{"text": "two"}\n', "some.jsonl: line 2: prompt: Field required"),
        ('{"prompt": ""}\n', "some.jsonl: line 1: prompt: String should have at least 1 character"),
        ('{"prompt": 5}\n', "some.jsonl: line 1: prompt: Input should be a valid string"),
        ('["one"]\n', "some.jsonl: line 1: the line"),
        ('{"prompt": "one", "id": "a"}\n{"prompt": "two", "id": "a"}\n', "line 2: id 'a' already stands in line 1"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(InputError) as caught:
        read_prompts(write(tmp_path, "some.jsonl", text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_not_utf8_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: no such prompt file"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "some.txt").write_bytes(b"one\n\xff\xfe")
    with pytest.raises(InputError, match="byte 4 is not UTF-8"):
        read_prompts(tmp_path / "some.txt")


@given(st.lists(st.text(min_size=1), min_size=1))
def test_any_text_survives_json_lines(tmp_path_factory, texts):
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    path = write(tmp_path_factory.mktemp("p"), "some.jsonl", "\n".join(lines).encode("utf-8", "replace").decode())
    expected = [text.encode("utf-8", "replace").decode() for text in texts]
    assert [prompt.prompt for prompt in read_prompts(path)] == expected


def test_prompts_keep_their_names_and_all_their_tokens_and_a_chat_template_is_optional():
    tokenizer = tiny_tokenizer()
    prompt = Prompt(prompt="learn", id="x", domain="d")
    plain = EncodedPrompt("x", "d", True, tuple(tokenizer("learn")["input_ids"]))
    assert encode([prompt], tokenizer, held_out=True, chat_template=True) == [plain]
    tokenizer.chat_template = (
        "{% for m in messages %}words {{ m.content }}{% endfor %}{% if add_generation_prompt %} to{% endif %}"
    )
    assert encode([prompt], tokenizer, held_out=True, chat_template=False) == [plain]
    (wrapped,) = encode([prompt], tokenizer, held_out=False, chat_template=True)
    assert tokenizer.decode(list(wrapped.token_ids)) == "words learn to"


def test_padding_goes_to_the_given_side():
    prompts = [EncodedPrompt("a", "d", False, (4, 5, 6)), EncodedPrompt("b", "d", False, (7,))]
    assert pad(prompts, 0, "left").ids_BC.tolist() == [[4, 5, 6], [0, 0, 7]]
    right = pad(prompts, 0, "right")
    assert right.ids_BC.tolist() == [[4, 5, 6], [7, 0, 0]]
    assert right.mask_BC.tolist() == [[1, 1, 1], [1, 0, 0]]
