"""Prompts to trace: read from JSON Lines or text files, made into token ids, padded into batches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch.nn.utils.rnn import pad_sequence

from moe_beyond.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prompt(BaseModel):
    """A text to trace; a line of a prompt file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str = Field(min_length=1)
    id: str = ""
    domain: str = ""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model reads it.

    Attributes:
        prompt_id: Its name in the trace.
        domain: Data set or domain it comes from.
        held_out: Whether its domain is kept for testing only.
        token_ids: At least one id.
    """

    prompt_id: str
    domain: str
    held_out: bool
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class PaddedBatch:
    """Prompts side by side: `ids_BC` int64 and `mask_BC` int64, 0 where padded."""

    ids_BC: torch.Tensor
    mask_BC: torch.Tensor


def read_prompts(path: Path) -> list[Prompt]:
    """Read `.jsonl` (an object a line: `prompt`, optional `id` and `domain`) or text (a prompt a line).

    Blank lines are skipped. A missing id becomes `<file>:<line>`, a missing domain the file's name.

    Raises:
        InputError: No such file, no prompt in it, a line that breaks the format (named), an id given twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such prompt file; give JSON Lines or a text file with a prompt a line") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    prompts, seen = [], dict[str, int]()
    # not splitlines(): JSON may hold U+2028 inside a string
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        prompt = _parse(line.rstrip("\r"), path, number)
        if prompt.id in seen:
            raise InputError(f"{path}: line {number}: id {prompt.id!r} already stands in line {seen[prompt.id]}")
        seen[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise InputError(f"{path}: no prompts in it; expected at least one")
    return prompts


def _parse(line: str, path: Path, number: int) -> Prompt:
    fields: Any = {"prompt": line.strip()}
    if path.suffix == ".jsonl":
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: line {number}: not JSON ({error.msg}, column {error.colno})") from error
    try:
        prompt = Prompt.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "the line"
        raise InputError(
            f'{path}: line {number}: {name}: {first["msg"]}; expected {{"prompt": "...", "id": "...", "domain": "..."}}'
        ) from error
    return prompt.model_copy(update={"id": prompt.id or f"{path.name}:{number}", "domain": prompt.domain or path.stem})


def encode(
    prompts: list[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    held_out: bool,
    chat_template: bool,
) -> list[EncodedPrompt]:
    """Token ids of each prompt, as a user's message where the tokenizer has a chat template, if `chat_template`."""
    encoded = []
    for prompt in prompts:
        if chat_template and getattr(tokenizer, "chat_template", None):
            messages = [{"role": "user", "content": prompt.prompt}]
            fields: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        else:
            fields = tokenizer(prompt.prompt)
        ids: list[int] = fields["input_ids"]
        if not ids:
            raise InputError(f"prompt {prompt.id!r} has no tokens; remove it")
        encoded.append(EncodedPrompt(prompt.id, prompt.domain, held_out, tuple(ids)))
    return encoded


def pad(prompts: list[EncodedPrompt], pad_id: int, side: Literal["left", "right"]) -> PaddedBatch:
    """Bring prompts to one length with `pad_id` on the given side."""
    rows = [torch.tensor(prompt.token_ids) for prompt in prompts]
    ids_BC = pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side=side)
    ones = [torch.ones_like(row) for row in rows]
    return PaddedBatch(ids_BC, pad_sequence(ones, batch_first=True, padding_side=side))
