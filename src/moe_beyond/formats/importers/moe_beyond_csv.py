"""The CSVs of the MoE-Beyond paper (arXiv 2508.17137): a file a prompt, layer-major rows, prefill only.

Columns `Layer ID,Batch Number,Token,Activated Expert IDs`. Where prompts come as `formatted/`, a folder `predicted/`
beside it holds what the paper's trained predictor predicted: `Layer ID,Token,Activated Expert IDs,Predicted Expert IDs`
with the position as `Token` and ids in rising order.

The files say nothing about the model; it is DeepSeek-V2-Lite-Chat with 8-bit weights. Shape suffixes as in `schema`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from moe_beyond.cells import plain
from moe_beyond.documents import repeated
from moe_beyond.errors import InputError
from moe_beyond.formats.importers.csv_table import CsvTable
from moe_beyond.formats.importers.deepseek_v2_lite import LAYER_NUMBERS, NUM_EXPERTS, TOP_K, metadata
from moe_beyond.formats.importers.sources import locate, members, name_of, natural_order
from moe_beyond.traces.schema import ExpertIds, RoutedPrompt, Trace, trace_of

METADATA = metadata(
    "deepseek-ai/DeepSeek-V2-Lite-Chat",
    1,
    "https://github.com/ngavhane/moe-beyond (published traces of arXiv 2508.17137)",
    "none stated",
)
_ROUTED = ("Layer ID", "Batch Number", "Token", "Activated Expert IDs")
_PREDICTED = ("Layer ID", "Token", "Activated Expert IDs", "Predicted Expert IDs")
_Predictions = dict[bytes, list[tuple[str, npt.NDArray[np.uint8]]]]
"""By the routing itself, name and experts: in the public repository the numbers of the two folders do not match."""


def read(source: Path, domain: str | None) -> Trace:
    """Read a folder or archive of the paper's CSVs; `domain` defaults to the source's name.

    Raises:
        InputError: A rule of the format is broken; names file and row.
    """
    domain = domain or name_of(source)
    prompts: dict[str, RoutedPrompt] = {}
    predictions: _Predictions = defaultdict(list)
    for name, stream in members(source, ".csv"):
        where, path = locate(source, name), PurePosixPath(name)
        # `predicted/` in excerpts, `predicted_csvs/` in the public repository
        if any(part.startswith("predicted") for part in path.parts[:-1]):
            experts_TLK, predicted_TLK = _read_predicted(stream.read(), where)
            predictions[_routing_key(experts_TLK)].append((name, predicted_TLK))
        else:
            prompt_id = f"{domain}/{path.stem.removesuffix('_formatted').removesuffix('_data')}"
            texts, experts_TLK = _read_routed(stream.read(), where)
            prompts[name] = RoutedPrompt(prompt_id, domain, len(texts), experts_TLK, token_texts=texts)
    if not prompts:
        raise InputError(f"{source}: predictions without the routing they belong to; add the folder formatted/")
    if (twice := repeated(prompt.prompt_id for prompt in prompts.values())) is not None:
        raise InputError(f"{source}: two files for prompt {twice!r}; import one folder at a time")
    ordered = [(name, prompts[name]) for name in sorted(prompts, key=natural_order)]
    if not predictions:
        return trace_of(METADATA, [prompt for _, prompt in ordered])
    return trace_of(
        METADATA, [replace(prompt, predicted_TLK=_find(prompt, name, predictions, source)) for name, prompt in ordered]
    )


def _read_routed(data: bytes, where: str) -> tuple[Sequence[str], npt.NDArray[np.uint8]]:
    table = CsvTable.read(data, _ROUTED, where)
    if len(set(table.columns["Batch Number"])) != 1:
        raise InputError(f"{where}: several values of 'Batch Number'; expected one prompt a file, split it")
    order_LT = _rows_by_layer(table)
    tokens = [plain(cell) for cell in table.columns["Token"]]
    texts = tuple(tokens[row] for row in order_LT[0])
    for rows in order_LT[1:]:
        for row, first in zip(rows.tolist(), texts, strict=True):
            if tokens[row] != first:
                raise InputError(
                    f"{table.at(row)}: token {tokens[row]!r}, layer {LAYER_NUMBERS[0]} has {first!r} at that "
                    "position; every layer must list the same tokens"
                )
    return texts, _experts_TLK(table, "Activated Expert IDs", order_LT)


def _read_predicted(data: bytes, where: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """The routing and what was predicted of it."""
    table = CsvTable.read(data, _PREDICTED, where)
    order_LT = _rows_by_layer(table)
    positions = table.integers("Token")
    wrong = positions[order_LT] != np.arange(order_LT.shape[1])
    if wrong.any():
        row = int(order_LT[wrong][0])
        raise InputError(f"{table.at(row)}: position {positions[row]} breaks the count 0, 1, 2, ... of a layer")
    return _experts_TLK(table, "Activated Expert IDs", order_LT), _experts_TLK(table, "Predicted Expert IDs", order_LT)


def _experts_TLK(table: CsvTable, name: str, order_LT: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    ids = table.expert_lists(name, TOP_K, NUM_EXPERTS).astype(np.uint8)
    return ids[order_LT].transpose(1, 0, 2)


def _rows_by_layer(table: CsvTable) -> npt.NDArray[np.int64]:
    """Row indices as [layers, tokens], in the file's order within a layer."""
    layers = table.integers("Layer ID")
    found, counts = np.unique(layers, return_counts=True)
    for layer in sorted(set(found.tolist()) ^ set(LAYER_NUMBERS)):
        if layer in LAYER_NUMBERS:
            raise InputError(f"{table.where}: layer {layer} is missing; expected layers 1 to {LAYER_NUMBERS[-1]}")
        row = int(np.argmax(layers == layer))
        raise InputError(f"{table.at(row)}: Layer ID {layer}, expected 1 to {LAYER_NUMBERS[-1]}")
    uneven = np.nonzero(counts != counts[0])[0]
    if len(uneven):
        raise InputError(
            f"{table.where}: layer {found[uneven[0]]} has {counts[uneven[0]]} rows, layer {found[0]} has {counts[0]}; "
            "every layer needs a row a token"
        )
    return np.argsort(layers, kind="stable").reshape(len(LAYER_NUMBERS), -1)


def _routing_key(experts_TLK: npt.NDArray[np.generic]) -> bytes:
    return np.sort(experts_TLK, axis=-1).tobytes()


def _find(prompt: RoutedPrompt, name: str, predictions: _Predictions, source: Path) -> ExpertIds:
    """The prediction of the same routing; of several, the one with the prompt's number."""
    candidates = predictions.get(_routing_key(prompt.experts_TLK), [])
    if not candidates:
        raise InputError(
            f"{source}: {name}: no file under predicted/ has the same routing; add it, or import formatted/ alone"
        )
    stem = PurePosixPath(name).stem.removesuffix("formatted")
    same = [candidate for candidate in candidates if PurePosixPath(candidate[0]).stem.startswith(stem)]
    return min(same or candidates, key=lambda candidate: natural_order(candidate[0]))[1]
