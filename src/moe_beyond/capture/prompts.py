"""Prompts to trace: read from files, made into token ids, padded into batches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch.nn.utils.rnn import pad_sequence

from moe_beyond.documents import load_json, read_plain, repeated, require_unpacked
from moe_beyond.errors import InputError, first_line_of, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PARQUET = b"PAR1"


class Prompt(BaseModel):
    """A text to trace."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str = Field(min_length=1)
    id: Annotated[str, Field(coerce_numbers_to_str=True)] = ""
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


def read_prompts(path: Path, field: str = "prompt") -> list[Prompt]:
    """Read a file of prompts, whatever its ending: what it holds says what it is.

    JSON Lines or a JSON array (of objects or strings), CSV with a header (also with tabs or semicolons), Parquet, or
    text, a prompt a line. Blank lines of text are skipped. A missing id becomes `<file>:<line>` (in an array and a
    table, the number of the row), a missing domain the file's name.

    Args:
        path: The file, UTF-8 unless Parquet.
        field: Key or column that holds the prompt; `id` and `domain` may stand beside it.

    Raises:
        InputError: No such file, no prompt in it, a line or row that breaks the format (named), an id given twice.
    """
    try:
        data = read_plain(path)
        text = "" if data.startswith(_PARQUET) else data.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such prompt file; give JSON Lines or a text file with a prompt a line") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    table = _table_rows(data, text, field, path)
    entries = _json_entries(text, path) if table is None else table
    prompts, seen = [], dict[str, str]()
    for place, fields in entries:
        prompt = _parse({field: fields} if isinstance(fields, str) else fields, field, path, place)
        if prompt.id in seen:
            raise InputError(f"{path}: {place}: id {prompt.id!r} already stands in {seen[prompt.id]}")
        seen[prompt.id] = place
        prompts.append(prompt)
    if not prompts:
        raise InputError(f"{path}: no prompts in it; expected at least one")
    return prompts


def _table_rows(data: bytes, text: str, field: str, path: Path) -> list[tuple[str, Any]] | None:
    """Rows of Parquet or CSV, an object each; None if the file is neither."""
    is_parquet = data.startswith(_PARQUET)
    first = text.partition("\n")[0].strip()
    header = {separator: [cell.strip(' "') for cell in first.split(separator)] for separator in ",\t;"}
    separator = next((mark for mark, names in header.items() if field in names), None)
    if not is_parquet and separator is None:
        if path.suffix in (".csv", ".tsv"):
            raise InputError(f"{path}: no column {field!r} in the header {first!r:.80}; name one as prompt_field")
        return None
    twice = (
        None if separator is None else repeated(name for name in header[separator] if name in (field, "id", "domain"))
    )
    if twice is not None:
        raise InputError(f"{path}: column {twice!r} is there twice; remove one of them")
    try:
        # text stays text: an id of digits, a prompt of none
        table = (
            _parquet(data, field, path)
            if separator is None
            else pl.read_csv(text.encode(), separator=separator, infer_schema=False)
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        kind = "CSV" if separator else "Parquet"
        raise InputError(f"{path}: not a readable {kind} file ({first_line_of(error)})") from error
    if field not in table.columns:
        raise InputError(f"{path}: no column {field!r} among {table.columns}; name one as prompt_field")
    kept = table.select(name for name in (field, "id", "domain") if name in table.columns)
    return [(f"row {number}", row) for number, row in enumerate(kept.to_dicts(), 1)]


def _parquet(data: bytes, field: str, path: Path) -> pl.DataFrame:
    """The table of a Parquet file, by pyarrow: damage ends in errors there, where polars panics."""
    import pyarrow as pa  # noqa: PLC0415 - the other kinds of files need it not
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        file = pq.ParquetFile(BytesIO(data))
        require_unpacked(BytesIO(data), str(path))
        if (twice := repeated(file.schema_arrow.names)) is not None:
            raise InputError(f"{path}: column {twice!r:.60} is there twice; remove one of them")
        if field not in file.schema_arrow.names:
            raise InputError(f"{path}: no column {field!r} among {file.schema_arrow.names}; name one as prompt_field")
        table = file.read([name for name in (field, "id", "domain") if name in file.schema_arrow.names])
        table.validate(full=True)
        return pl.DataFrame(table.to_pydict())
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({reason_of(error)})") from error


def _json_entries(text: str, path: Path) -> list[tuple[str, Any]]:
    """Elements of a JSON array, or values of lines: JSON in all of them, or text in all."""
    whole = _json(text)
    if isinstance(whole, list):
        return [(f"element {number}", value) for number, value in enumerate(whole, 1)]
    if isinstance(whole, dict):
        return [("line 1", whole)]
    # not splitlines(): JSON may hold U+2028 inside a string
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    values = [_json(line) for _, line in lines]
    if all(isinstance(value, ValueError) for value in values) and path.suffix not in (".json", ".jsonl", ".ndjson"):
        if _begins_with_json(text):
            raise InputError(f"{path}: JSON over several lines; write an array of it, or a line a prompt")
        return [(f"line {number}", line) for number, line in lines]
    for (number, line), value in zip(lines, values, strict=True):
        if isinstance(value, ValueError):
            raise InputError(
                f"{path}: line {number}: not JSON ({value}), as other lines or the file's name say; found {line!r:.60}"
            )
    return [(f"line {number}", value) for (number, _), value in zip(lines, values, strict=True)]


def _begins_with_json(text: str) -> bool:
    try:
        return isinstance(json.JSONDecoder().raw_decode(text.lstrip())[0], dict | list)
    except (ValueError, RecursionError):
        return False


def _json(text: str) -> Any:
    """The value that the text is in JSON, or why it is none."""
    try:
        return load_json(text, "JSON")
    except InputError as error:
        return ValueError(str(error).removeprefix("JSON: "))


def _parse(fields: Any, field: str, path: Path, place: str) -> Prompt:
    expected = f'{{"{field}": "...", "id": "...", "domain": "..."}}'
    if isinstance(fields, dict):
        if field not in fields:
            raise InputError(f"{path}: {place}: no {field!r} among {list(fields)!r:.80}; name one as prompt_field")
        fields = {name: fields[name] for name in ("id", "domain") if fields.get(name) is not None} | {
            "prompt": fields[field]
        }
    try:
        prompt = Prompt.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])).replace("prompt", field) or "the line"
        raise InputError(f"{path}: {place}: {name}: {first['msg']}; expected {expected}") from error
    if not prompt.prompt.strip():
        raise InputError(f"{path}: {place}: {field} is blank; remove it")
    number = place.rsplit(maxsplit=1)[-1]
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
