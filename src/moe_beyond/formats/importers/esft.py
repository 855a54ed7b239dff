"""ESFT's expert scores: a file a layer, a line a sequence, ids and gate weights of all its tokens.

`<task>/expert_weights_<layer>.txt`; a line has T * 6 expert ids, an empty column, and T * 6 gate weights, separated by
tabs. There are no token strings, and every token is a prefill token of a given text.

The files say nothing about the model; it is ESFT's DeepSeek-V2-Lite in bfloat16. Shape suffixes as in `schema`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.deepseek_v2_lite import LAYER_NUMBERS, NUM_EXPERTS, TOP_K, metadata
from moe_beyond.formats.importers.sources import decode_utf8, locate, members, name_of, natural_order
from moe_beyond.traces.schema import RoutedPrompt, Trace, trace_of

METADATA = metadata(
    "deepseek-ai/ESFT-vanilla-lite", 2, "https://github.com/deepseek-ai/ESFT (results/expert_scores)", "MIT"
)
_Sequence = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]


def read(source: Path, domain: str | None) -> Trace:
    """Read a folder or archive of expert scores; `domain` defaults to the name of each task's folder.

    Raises:
        InputError: A rule of the format is broken; names file and row.
    """
    tasks: dict[str, dict[int, list[_Sequence]]] = defaultdict(dict)
    for name, stream in members(source, ".txt"):
        path, where = PurePosixPath(name), locate(source, name)
        match = re.fullmatch(r"expert_weights_([0-9]{1,4})\.txt", path.name)
        if match is None:
            raise InputError(f"{where}: unexpected name; expected expert_weights_<layer>.txt and nothing else")
        if int(match[1]) in tasks[str(path.parent)]:
            raise InputError(f"{where}: a second file for layer {int(match[1])}; remove one of them")
        tasks[str(path.parent)][int(match[1])] = _read_layer(stream.read(), where)
    prompts = []
    for folder in sorted(tasks, key=natural_order):
        layers, task = tasks[folder], PurePosixPath(folder).name or name_of(source)
        _require_same_sequences(layers, locate(source, folder))
        for number, sequence in enumerate(zip(*(layers[layer] for layer in LAYER_NUMBERS), strict=True)):
            experts_TLK, weights_TLK = (np.stack(parts, axis=1) for parts in zip(*sequence, strict=True))
            name = f"{task}/sequence_{number}"
            prompts.append(RoutedPrompt(name, domain or task, len(experts_TLK), experts_TLK, weights_TLK))
    return trace_of(METADATA, prompts)


def _require_same_sequences(layers: dict[int, list[_Sequence]], where: str) -> None:
    """All layers of the model are there, with sequences of the same lengths."""
    if set(layers) != set(LAYER_NUMBERS):
        odd = sorted(set(layers) ^ set(LAYER_NUMBERS))[0]
        problem = "is missing" if odd in LAYER_NUMBERS else "is not a layer of the model"
        raise InputError(f"{where}: expert_weights_{odd}.txt {problem}; expected layers 1 to {LAYER_NUMBERS[-1]}")
    first, *others = ([len(experts) for experts, _ in layers[layer]] for layer in LAYER_NUMBERS)
    for number, lengths in zip(LAYER_NUMBERS[1:], others, strict=True):
        if lengths != first:
            row = next((i for i, pair in enumerate(zip(lengths, first, strict=False)) if pair[0] != pair[1]), None)
            found = f"{len(lengths)} rows" if row is None else f"row {row + 1} with {lengths[row]} tokens"
            expected = len(first) if row is None else first[row]
            raise InputError(
                f"{where}: expert_weights_{number}.txt has {found}, layer {LAYER_NUMBERS[0]} has {expected}; "
                "every layer must list the same sequences"
            )


def _read_layer(data: bytes, where: str) -> list[_Sequence]:
    lines = decode_utf8(data, where).splitlines()
    if not lines:
        raise InputError(f"{where}: no rows; fetch the file again")
    return [_read_line(line, f"{where}: row {row}") for row, line in enumerate(lines, start=1)]


def _read_line(line: str, where: str) -> _Sequence:
    cells = line.split("\t")
    half = cells.index("") if "" in cells else len(cells)
    ids, weights = cells[:half], [cell for cell in cells[half + 1 :] if cell]
    if not ids or len(ids) % TOP_K or len(weights) != len(ids):
        raise InputError(
            f"{where}: {len(ids)} ids, {len(weights)} weights behind the empty column; expected {TOP_K} of each a token"
        )
    for cell in set(ids):
        if not re.fullmatch("[0-9]{1,9}", cell) or int(cell) >= NUM_EXPERTS:
            raise InputError(f"{where}: expert id {cell!r:.40}, the model has experts 0 to {NUM_EXPERTS - 1}")
    try:
        numbers = np.array(weights, np.float64)
    except ValueError as error:
        raise InputError(f"{where}: a gate weight is no number ({error}); fetch the file again") from error
    if not ((numbers >= 0) & (numbers <= 1)).all():
        odd = weights[int(np.argmin((numbers >= 0) & (numbers <= 1)))]
        raise InputError(f"{where}: gate weight {odd!r:.40}, expected numbers from 0 to 1")
    return np.array(ids, np.uint8).reshape(-1, TOP_K), numbers.astype(np.float16).reshape(-1, TOP_K)
