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
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.csv_table import CsvTable
from moe_beyond.formats.importers.engine_log import said_of
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride, shape_beside
from moe_beyond.formats.importers.passes import Passes, routed_passes
from moe_beyond.formats.importers.routed import data_set, routed_prompts
from moe_beyond.formats.importers.sources import COUNTS, counts_are_no_trace, decode_utf8, read_each
from moe_beyond.traces.schema import Trace, TraceMetadata, trace_of

_LAYER, _EXPERT, _EXPERTS = ("layer", "layer_id"), ("expert", "expert_id"), ("expert_ids", "experts")
_WARM_UP = "as the engine's warm-up does; record with --no-warmup or remove these rows"


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the CSVs of a folder or archive, or one file with the config beside it.

    Raises:
        InputError: A rule of the format is broken; names file and row.
    """
    if source.suffix in (".gguf", ".dat", ".imatrix", ".pt"):
        raise InputError(counts_are_no_trace(str(source), source.name))
    shape, num_layers = shape_beside(source, override)
    if shape.num_layers < 2:
        raise InputError(f"{source}: a model with one MoE layer; its batches cannot be told apart in this format")
    domain, prompts = data_set(source, domain), []
    for name, log in read_each(source, ".csv", partial(_read_file, shape)):
        routed = routed_passes(said_of(log, override), shape, num_layers)
        prompts += routed_prompts(routed, name, log.where, domain, override.prefill_tokens)
    return trace_of(shape.model_copy(update={"source": "expert CSV of llama.cpp"}), prompts)


def _read_file(shape: TraceMetadata, stream: IO[bytes], name: str, where: str) -> tuple[str, Passes]:
    table, layer_A, expert_A = _accesses(stream.read(), shape, where)
    # rows of one layer, of which each token has k
    starts = np.flatnonzero(np.concatenate([[True], np.diff(layer_A) != 0]))
    counts = np.diff([*starts, len(layer_A)])
    per_row = len(layer_A) // len(next(iter(table.columns.values())))
    batches = starts[np.concatenate([[True], np.diff(layer_A[starts]) < 0])]
    _refuse_warm_up(table, expert_A[: batches[1] if len(batches) > 1 else None], shape)
    if (counts % shape.top_k).any():
        run = int(np.argmax(counts % shape.top_k > 0))
        begin = int(batches[np.searchsorted(batches, starts[run], "right") - 1])
        raise InputError(
            f"{table.at(begin // per_row)}: the batch that begins here has {counts[run]} rows of layer "
            f"{layer_A[starts[run]]}; expected a multiple of top-{shape.top_k}"
        )
    return name, Passes(
        where,
        layer_A[starts],
        counts // shape.top_k,
        expert_A.reshape(-1, shape.top_k),
        what="row",
        number_R=table.first_row + starts // per_row,
        one_prompt=True,
    )


def _refuse_warm_up(table: CsvTable, expert_A: npt.NDArray[np.int64], shape: TraceMetadata) -> None:
    """Raise InputError if each token of the first batch has all experts."""
    if shape.top_k < shape.num_experts and len(expert_A) % shape.num_experts == 0:
        every_E = np.sort(expert_A.reshape(-1, shape.num_experts), axis=1)
        if (every_E == np.arange(shape.num_experts)).all():
            raise InputError(f"{table.at(0)}: each token of the batch that begins here has all experts, {_WARM_UP}")


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
    for names in (_LAYER, (*_EXPERT, *_EXPERTS)):
        if len(found := [name for name in header if name in names]) > 1:
            raise InputError(f"{where}: row 1: columns {' and '.join(found)!s:.60} say the same; remove one of them")
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
