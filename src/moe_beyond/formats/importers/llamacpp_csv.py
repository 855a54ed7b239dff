"""CSVs of llama.cpp's tracing tools: what the router chose, a file a prompt and its response.

Either a row a routed expert, `layer,expert`, with or without that header, or a row a token and layer,
`layer_id,expert_ids` with ids such as `5 4 8 11`. Rows come as the engine computed them: batch after batch, in a batch
layer after layer, in a layer token after token. The prompt comes first, in batches of at most `--ubatch-size` tokens
(512 by default); each batch of the response has one token.

For the last layer of a prompt the engine computes the last token alone, the only one whose output is needed, and in
batches before the prompt's last one none: the others repeat its experts, so that the batch uses nothing more.

The rows say neither k nor how many experts there are: the model's `config.json` lies in the same folder. Shape suffixes
as in `schema`; A rows, each of which is one access.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.csv_table import CsvTable
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride, shape_beside
from moe_beyond.formats.importers.sources import COUNTS, counts_are_no_trace, decode_utf8, name_of, read_each
from moe_beyond.traces.schema import RoutedPrompt, Trace, TraceMetadata, trace_of

_LAYER, _EXPERT, _EXPERTS = ("layer", "layer_id"), ("expert", "expert_id"), ("expert_ids", "experts")
_WARM_UP = "as the engine's warm-up does; record with --no-warmup or remove these rows"


@dataclass(frozen=True)
class _Batch:
    """Tokens that the engine computed at once.

    Attributes:
        row: Number of its first row.
        experts_TLK: Their experts; the last layer holds -1 where the engine left it out.
    """

    row: int
    experts_TLK: npt.NDArray[np.int64]


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the CSVs of a folder or archive, or one file with the config beside it.

    Raises:
        InputError: A rule of the format is broken; names file and row.
    """
    if source.suffix in (".gguf", ".dat", ".imatrix", ".pt"):
        raise InputError(counts_are_no_trace(str(source), source.name))
    shape, _ = shape_beside(source, override)
    if shape.num_layers < 2:
        raise InputError(f"{source}: a model with one MoE layer; its batches cannot be told apart in this format")
    domain = domain or name_of(source)
    shape = shape.model_copy(update={"source": "expert CSV of llama.cpp"})
    return trace_of(shape, read_each(source, ".csv", partial(_read_file, domain, shape)))


def _read_file(domain: str, shape: TraceMetadata, stream: IO[bytes], name: str, where: str) -> RoutedPrompt:
    table, layer_A, expert_A = _accesses(stream.read(), shape, where)
    parts = [_batch(rows, layer_A, expert_A, table, shape) for rows in _split_batches(layer_A)]
    batches = _join_ubatches(parts, where)
    sizes = [len(batch.experts_TLK) for batch in batches]
    # the prompt is the first batch, and those of several tokens after it
    prompt = next((number for number, size in enumerate(sizes) if number and size == 1), len(sizes))
    for batch in batches[prompt:]:
        if len(batch.experts_TLK) > 1:
            raise InputError(
                f"{where}: row {batch.row}: a batch of {len(batch.experts_TLK)} tokens after decoded ones: does a "
                "second prompt begin here? Split the file at this row; speculative decoding cannot be read"
            )
    experts_TLK = np.concatenate([batch.experts_TLK for batch in batches])
    prompt_id = f"{domain}/{PurePosixPath(name).with_suffix('')}"
    return RoutedPrompt(prompt_id, domain, sum(sizes[:prompt]), experts_TLK)


def _accesses(
    data: bytes, shape: TraceMetadata, where: str
) -> tuple[CsvTable, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The table, and layer and expert of each access."""
    first = decode_utf8(data.partition(b"\n")[0], where)
    header = [cell.strip(' "\r') for cell in first.split(",")]
    for cell in header:
        if cell.lower() in COUNTS or re.fullmatch(r"blk\.[0-9]+\..*exps.*", cell):
            raise InputError(counts_are_no_trace(where, cell))
    named = not header[0].isdecimal()
    layer = next((name for name in _LAYER if name in header), _LAYER[0])
    expert = next((name for name in (*_EXPERT, *_EXPERTS) if name in header), _EXPERT[0])
    table = CsvTable.read(data, (layer, expert), where, header=() if named else (layer, expert))
    layer_A = table.integers(layer)
    table.refuse(~np.isin(layer_A, shape.layer_numbers), layer, "a layer with experts; --moe-layers names others")
    if expert in _EXPERT:
        expert_A = table.integers(expert)
        table.refuse(expert_A >= shape.num_experts, expert, f"0 to {shape.num_experts - 1}")
        return table, layer_A, expert_A
    lists = [re.findall(r"[0-9]{1,9}|[^\s,;\[\]]+", cell) for cell in table.columns[expert]]
    for index, ids in enumerate(lists):
        if len(ids) == shape.num_experts > shape.top_k:
            raise InputError(f"{table.at(index)}: all {len(ids)} experts, {_WARM_UP}")
        if len(ids) != shape.top_k or not all(number.isdecimal() and int(number) < shape.num_experts for number in ids):
            raise InputError(
                f"{table.at(index)}: {expert} is {table.columns[expert][index]!r:.60}, expected {shape.top_k} ids of 0 "
                f"to {shape.num_experts - 1}"
            )
    return table, np.repeat(layer_A, shape.top_k), np.array(lists, np.int64).reshape(-1)


def _split_batches(layer_A: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """First and last row (exclusive) of each batch: a layer number that falls begins a new one."""
    starts = [0, *(np.nonzero(np.diff(layer_A) < 0)[0] + 1).tolist()]
    return list(zip(starts, [*starts[1:], len(layer_A)], strict=True))


def _batch(
    rows: tuple[int, int],
    layer_A: npt.NDArray[np.int64],
    expert_A: npt.NDArray[np.int64],
    table: CsvTable,
    shape: TraceMetadata,
) -> _Batch:
    start, end = rows
    rows_of_table = len(next(iter(table.columns.values())))
    at = start * rows_of_table // len(layer_A)
    counts = [int((layer_A[start:end] == layer).sum()) for layer in shape.layer_numbers]
    tokens, rest = divmod(counts[0], shape.top_k)
    if start == 0 and end % shape.num_experts == 0 and shape.num_experts > shape.top_k:
        every_E = np.sort(expert_A[:end].reshape(-1, shape.num_experts), axis=1)
        if (every_E == np.arange(shape.num_experts)).all():
            raise InputError(f"{table.at(at)}: each token of the batch that begins here has all experts, {_WARM_UP}")
    whole = all(count == counts[0] for count in counts[:-1]) and counts[-1] in (0, shape.top_k, counts[0])
    if tokens == 0 or not whole:
        raise InputError(
            f"{table.at(at)}: the batch that begins here has {min(counts)} to {max(counts)} rows a layer; expected "
            f"{shape.top_k} for each token in each of the layers {shape.layer_numbers[0]} to {shape.layer_numbers[-1]}"
        )
    if rest:
        raise InputError(f"{table.at(at)}: {counts[0]} rows of a layer, expected a multiple of top-{shape.top_k}")
    experts_TLK = np.full((tokens, len(counts), shape.top_k), -1)
    position = start
    for layer, count in enumerate(counts):
        if count:
            # one token's experts are repeated for all where the engine computed the last layer for that one
            experts_TLK[:, layer] = expert_A[position : position + count].reshape(-1, shape.top_k)
        position += count
    return _Batch(table.first_row + at, experts_TLK)


def _join_ubatches(parts: list[_Batch], where: str) -> list[_Batch]:
    """Batches without a last layer, joined with the one after them, which has the prompt's last token."""
    joined: list[_Batch] = []
    for part in parts:
        before = joined.pop() if joined and joined[-1].experts_TLK[0, -1, 0] < 0 else None
        experts_TLK = part.experts_TLK if before is None else np.concatenate([before.experts_TLK, part.experts_TLK])
        left_out_T = experts_TLK[:, -1, 0] < 0
        if before is not None and not left_out_T[-1]:
            experts_TLK[left_out_T, -1] = experts_TLK[-1, -1]
        joined.append(_Batch(part.row if before is None else before.row, experts_TLK))
    if joined[-1].experts_TLK[0, -1, 0] < 0:
        raise InputError(f"{where}: row {joined[-1].row}: no rows of the last layer for the prompt that begins here")
    return joined
