"""The CSVs of the MoE-Beyond paper (arXiv 2508.17137): a file a prompt, layer-major rows, prefill only.

Columns `Layer ID,Batch Number,Token,Activated Expert IDs`. Where prompts come as `formatted/`, a folder `predicted/`
beside it holds what the paper's trained predictor answered: `Layer ID,Token,Activated Expert IDs,Predicted Expert IDs`
with the position as `Token` and ids in rising order.

The files say nothing about the model; it is DeepSeek-V2-Lite-Chat with 8-bit weights. Shape suffixes as in `schema`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.csv_table import CsvTable
from moe_beyond.formats.importers.sources import locate, members, name_of, natural_order
from moe_beyond.traces.schema import ExpertIds, TokenTexts, Trace, TraceMetadata

NUM_EXPERTS = 64
TOP_K = 6
LAYER_NUMBERS = tuple(range(1, 27))
# gate, up and down projection of a routed expert, hidden size 2048 x expert width 1408, one byte a weight
EXPERT_BYTES = 3 * 2048 * 1408

METADATA = TraceMetadata(
    model_id="deepseek-ai/DeepSeek-V2-Lite-Chat",
    layer_numbers=LAYER_NUMBERS,
    num_experts=NUM_EXPERTS,
    top_k=TOP_K,
    expert_bytes=(EXPERT_BYTES,) * len(LAYER_NUMBERS),
    decoding="teacher-forced",
    source="https://github.com/ngavhane/moe-beyond (published traces of arXiv 2508.17137)",
    licence="none stated",
)

_ROUTED = ("Layer ID", "Batch Number", "Token", "Activated Expert IDs")
_PREDICTED = ("Layer ID", "Token", "Activated Expert IDs", "Predicted Expert IDs")


@dataclass(frozen=True)
class _Prompt:
    name: str
    experts_TLK: npt.NDArray[np.uint8]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class _Answer:
    name: str
    predicted_TLK: npt.NDArray[np.uint8]


def read(source: Path, domain: str | None) -> Trace:
    """Read a folder or archive of the paper's CSVs; `domain` defaults to the source's name.

    Raises:
        InputError: A rule of the format is broken; names file and row.
    """
    domain = domain or name_of(source)
    prompts: list[_Prompt] = []
    # keyed by the routing itself: in the public repository the numbers of the two folders do not match
    answers: dict[bytes, list[_Answer]] = defaultdict(list)
    for name, stream in members(source, ".csv"):
        where = locate(source, name)
        # `predicted/` in excerpts, `predicted_csvs/` in the public repository
        if any(part.startswith("predicted") for part in PurePosixPath(name).parts[:-1]):
            key, answer = _read_predicted(stream.read(), name, where)
            answers[key].append(answer)
        else:
            prompts.append(_read_routed(stream.read(), name, where))
    if not prompts:
        raise InputError(f"{source}: predictions without the routing they belong to; add the folder formatted/")
    prompts.sort(key=lambda prompt: natural_order(prompt.name))
    lengths = np.array([len(prompt.texts) for prompt in prompts])
    return Trace(
        metadata=METADATA,
        prompt_ids=_prompt_ids(prompts, domain, source),
        domains=(domain,) * len(prompts),
        held_out_P=np.zeros(len(prompts), np.bool_),
        prompt_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        num_prefill_P=lengths.astype(np.int32),
        experts_TLK=np.concatenate([prompt.experts_TLK for prompt in prompts]),
        token_texts=TokenTexts.encode([text for prompt in prompts for text in prompt.texts]),
        predicted_TLK=_pair(prompts, answers, source) if answers else None,
    )


def _prompt_ids(prompts: list[_Prompt], domain: str, source: Path) -> tuple[str, ...]:
    stems = [PurePosixPath(prompt.name).stem for prompt in prompts]
    ids = tuple(f"{domain}/{stem.removesuffix('_formatted').removesuffix('_data')}" for stem in stems)
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InputError(f"{source}: two files for prompt {twice!r}; import one folder at a time")
    return ids


def _read_routed(data: bytes, name: str, where: str) -> _Prompt:
    table = CsvTable.read(data, _ROUTED, where)
    if len(set(table.columns["Batch Number"])) != 1:
        raise InputError(f"{where}: several values of 'Batch Number'; expected one prompt a file, split it")
    order_LT = _rows_by_layer(table)
    tokens = table.columns["Token"]
    texts = tuple(tokens[row] for row in order_LT[0])
    for rows in order_LT[1:]:
        if texts != tuple(tokens[row] for row in rows):
            row, first = next((int(row), text) for row, text in zip(rows, texts, strict=True) if tokens[row] != text)
            raise InputError(
                f"{table.at(row)}: token {tokens[row]!r}, layer {LAYER_NUMBERS[0]} has {first!r} at that "
                "position; every layer must list the same tokens"
            )
    return _Prompt(name, _experts_TLK(table, "Activated Expert IDs", order_LT), texts)


def _read_predicted(data: bytes, name: str, where: str) -> tuple[bytes, _Answer]:
    table = CsvTable.read(data, _PREDICTED, where)
    order_LT = _rows_by_layer(table)
    positions = table.integers("Token")
    wrong = positions[order_LT] != np.arange(order_LT.shape[1])
    if wrong.any():
        row = int(order_LT[wrong][0])
        raise InputError(f"{table.at(row)}: position {positions[row]} breaks the count 0, 1, 2, ... of a layer")
    answer = _Answer(name, _experts_TLK(table, "Predicted Expert IDs", order_LT))
    return _routing_key(_experts_TLK(table, "Activated Expert IDs", order_LT)), answer


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


def _routing_key(experts_TLK: ExpertIds) -> bytes:
    return np.sort(experts_TLK, axis=-1).tobytes()


def _pair(prompts: list[_Prompt], answers: dict[bytes, list[_Answer]], source: Path) -> npt.NDArray[np.uint8]:
    """The predictions in the order of the prompts; of several with one routing, the one with the prompt's number."""
    columns = []
    for prompt in prompts:
        candidates = answers.get(_routing_key(prompt.experts_TLK), [])
        if not candidates:
            raise InputError(
                f"{source}: {prompt.name}: no file under predicted/ has the same routing; add it, or import "
                "formatted/ alone"
            )
        stem = PurePosixPath(prompt.name).stem.removesuffix("formatted")
        same = [answer for answer in candidates if PurePosixPath(answer.name).stem.startswith(stem)]
        best = min(same or candidates, key=lambda answer: natural_order(answer.name))
        columns.append(best.predicted_TLK)
    return np.concatenate(columns)
