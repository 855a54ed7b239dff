"""The `layer,expert` CSV of llama.cpp's tracing example: a row a routed expert, a file a prompt and its response.

Rows come as the engine computed them: batch after batch, in a batch layer after layer, in a layer token after token.
Batches of several tokens are prefill, of one token decode. For the last layer of a prefill the engine may have computed
the last token alone, the only one whose output is needed: the others repeat its experts, so that the batch uses
nothing more.

The rows say neither k nor how many experts there are: the model's `config.json` lies in the same folder. Shape suffixes
as in `schema`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.csv_table import CsvTable
from moe_beyond.formats.importers.model_config import shape_beside
from moe_beyond.formats.importers.sources import name_of, read_each
from moe_beyond.traces.schema import RoutedPrompt, Trace, TraceMetadata, trace_of

_COLUMNS = ("layer", "expert")


def read(source: Path, domain: str | None) -> Trace:
    """Read the CSVs of a folder or archive, or one file with the config beside it; a header line is optional.

    Raises:
        InputError: A rule of the format is broken; names file and row.
    """
    shape, _ = shape_beside(source)
    if shape.num_layers < 2:
        raise InputError(f"{source}: a model with one MoE layer; its batches cannot be told apart in this format")
    domain = domain or name_of(source)
    shape = shape.model_copy(update={"source": "layer,expert CSV of llama.cpp"})
    return trace_of(shape, read_each(source, ".csv", partial(_read_file, domain, shape)))


def _read_file(domain: str, shape: TraceMetadata, stream: IO[bytes], name: str, where: str) -> RoutedPrompt:
    data = stream.read()
    has_header = data.removeprefix(b"\xef\xbb\xbf").startswith(b"layer")
    table = CsvTable.read(data, _COLUMNS, where, header=() if has_header else _COLUMNS)
    layer_A, expert_A = table.integers("layer"), table.integers("expert")
    table.refuse(~np.isin(layer_A, shape.layer_numbers), "layer", "a layer with experts")
    table.refuse(expert_A >= shape.num_experts, "expert", f"0 to {shape.num_experts - 1}")
    batches = [_batch(rows, layer_A, expert_A, table, shape) for rows in _split_batches(layer_A)]
    sizes = [len(batch) for batch in batches]
    # the prompt is the first batch, or all up to the last one of several tokens
    last = max((number for number, size in enumerate(sizes) if size > 1), default=0)
    prompt_id = f"{domain}/{PurePosixPath(name).with_suffix('')}"
    return RoutedPrompt(prompt_id, domain, sum(sizes[: last + 1]), np.concatenate(batches))


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
) -> npt.NDArray[np.int64]:
    """Experts of one batch, [T, L, K]."""
    start, end = rows
    counts = [int((layer_A[start:end] == layer).sum()) for layer in shape.layer_numbers]
    tokens = counts[0] // shape.top_k
    last_alone = counts[-1] == shape.top_k
    if tokens == 0 or any(count != counts[0] for count in counts[:-1]) or not (last_alone or counts[-1] == counts[0]):
        raise InputError(
            f"{table.at(start)}: the batch that begins here has {min(counts)} to {max(counts)} rows a layer; expected "
            f"{shape.top_k} for each token in each of the layers {shape.layer_numbers[0]} to {shape.layer_numbers[-1]}"
        )
    if counts[0] % shape.top_k:
        raise InputError(f"{table.at(start)}: {counts[0]} rows of a layer, expected a multiple of top-{shape.top_k}")
    batch = np.empty((tokens, len(shape.layer_numbers), shape.top_k), np.int64)
    position = start
    for layer, count in enumerate(counts):
        # one token's experts are repeated for all where the engine computed the last layer for that one
        batch[:, layer] = expert_A[position : position + count].reshape(-1, shape.top_k)
        position += count
    return batch
