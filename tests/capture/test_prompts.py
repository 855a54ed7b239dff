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


def test_json_lines_are_read(tmp_path):
    path = write(
        tmp_path, "some.jsonl", '{"prompt": "one", "id": "a", "domain": "d"}\n\n{"prompt": "two", "extra": 1}\n'
    )
    assert read_prompts(path) == [
        Prompt(prompt="one", id="a", domain="d"),
        Prompt(prompt="two", id="some.jsonl:3", domain="some"),
    ]


def test_text_is_read_a_prompt_a_line_whatever_ends_the_lines(tmp_path):
    path = write(tmp_path, "some.txt", "\ufeffone\r\ntwo words \r\n")
    assert [prompt.prompt for prompt in read_prompts(path)] == ["one", "two words"]


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


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: no such prompt file"):
        read_prompts(tmp_path / "none.jsonl")


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "some.txt").write_bytes(b"one\n\xff\xfe")
    with pytest.raises(InputError, match="byte 4 is not UTF-8"):
        read_prompts(tmp_path / "some.txt")


@given(st.lists(st.text(min_size=1), min_size=1))
def test_any_text_survives_json_lines(tmp_path_factory, texts):
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    path = write(tmp_path_factory.mktemp("p"), "some.jsonl", "\n".join(lines).encode("utf-8", "replace").decode())
    expected = [text.encode("utf-8", "replace").decode() for text in texts]
    assert [prompt.prompt for prompt in read_prompts(path)] == expected


def test_the_example_file_is_a_prompt_file():
    prompts = read_prompts(EXAMPLES)
    assert len(prompts) >= 12
    assert len({prompt.domain for prompt in prompts}) > 1


def test_prompts_keep_their_names_and_all_their_tokens():
    tokenizer = tiny_tokenizer()
    prompt = Prompt(prompt="a few words and more", id="x", domain="d")
    encoded = encode([prompt], tokenizer, held_out=True, chat_template=True)
    assert encoded == [EncodedPrompt("x", "d", True, tuple(tokenizer("a few words and more")["input_ids"]))]


def test_a_chat_template_wraps_the_prompt_unless_it_is_off():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}words {{ m.content }}{% endfor %}{% if add_generation_prompt %} to{% endif %}"
    )
    prompts = [Prompt(prompt="learn", id="x", domain="d")]

    def text(chat_template):
        encoded = encode(prompts, tokenizer, held_out=False, chat_template=chat_template)
        return tokenizer.decode(list(encoded[0].token_ids))

    assert text(True) == "words learn to"
    assert text(False) == "learn"


def test_padding_goes_to_the_side_that_is_wanted():
    prompts = [EncodedPrompt("a", "d", False, (4, 5, 6)), EncodedPrompt("b", "d", False, (7,))]
    assert pad(prompts, 0, "left").ids_BC.tolist() == [[4, 5, 6], [0, 0, 7]]
    right = pad(prompts, 0, "right")
    assert right.ids_BC.tolist() == [[4, 5, 6], [7, 0, 0]]
    assert right.mask_BC.tolist() == [[1, 1, 1], [1, 0, 0]]
