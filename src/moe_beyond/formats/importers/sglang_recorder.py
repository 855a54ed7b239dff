"""SGLang's expert distribution recorder in the mode `per_token`: a `.pt` with a record a pass.

A record has `input_ids`, `positions`, `extend_seq_lens`, `forward_mode` and `topk_ids_of_layer` int32 [layers of the
model, tokens, 8], -1 behind the k-th. Ids are those of places; `last_physical_to_logical_map` says which expert lies
there (at the end: had experts moved meanwhile, earlier passes would be read wrong). Records name no request: a token
belongs to the one whose next position it has, and where two have it the file is refused. (The modes of counts are read
as counts.)

Layout: sgl-project/sglang, python/sglang/srt/eplb/expert_distribution.py. Shape suffixes as in `schema`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.engine_log import whole, whole_list
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride, shape_beside
from moe_beyond.formats.importers.routed import Routed, data_set, placed, require_experts, routed_prompts
from moe_beyond.formats.importers.sources import counts_are_no_trace, is_single_file, read_each
from moe_beyond.formats.importers.torch_file import integers_of, load_pt
from moe_beyond.traces.schema import Trace, TraceMetadata, trace_of

_EXTEND, _DECODE, _IDLE = 1, 2, 4
_KEPT = 8
_ONE = "record one request at a time"


@dataclass
class _Request:
    """A request on its way: its next position, and of its tokens the pass and the place in it."""

    position: int
    prefill: int = 0
    places: list[tuple[int, int]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the `.pt` files of a folder or archive, or one file.

    Raises:
        InputError: Counts, several ranks, tokens that cannot be assigned to a request, or a broken rule of the format.
    """
    shape, num_layers = shape_beside(source, override)
    if shape.top_k > _KEPT:
        raise InputError(f"{source}: the recorder keeps {_KEPT} experts a token, the model has top-{shape.top_k}")
    domain = data_set(source, domain)
    suffix = "" if is_single_file(source) else ".pt"
    prompts, ranks = [], set[Any]()
    for name, where, document in read_each(
        source, suffix, lambda stream, name, at: (name, at, load_pt(stream.read(), at))
    ):
        if isinstance(document, dict) and "logical_count" in document:
            raise InputError(counts_are_no_trace(where, "logical_count"))
        records = document.get("records") if isinstance(document, dict) else None
        if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
            raise InputError(f"{where}: no list 'records'; expected a dump of the recorder's mode per_token")
        ranks |= {whole(record.get("rank"), "rank", f"{where}: record {n}") for n, record in enumerate(records)}
        if len(ranks) > 1:
            raise InputError(
                f"{where}: rank {max(ranks)} beside rank {min(ranks)}: they may hold the same tokens; give one"
            )
        passes = [_experts(record, f"{where}: record {n}", shape, num_layers) for n, record in enumerate(records)]
        passes = _logical(passes, document.get("last_physical_to_logical_map"), shape, num_layers, where)
        routed = _requests(records, passes, where)
        for prompt in routed:
            flat = prompt.experts_TLK.reshape(-1, shape.top_k)
            require_experts(flat, None, shape, placed(where, "a request's token", shape.num_layers))
        prompts += routed_prompts(routed, name, where, domain, override.prefill_tokens)
    return trace_of(shape.model_copy(update={"source": "SGLang expert distribution recorder"}), prompts)


def _experts(record: dict[str, Any], at: str, shape: TraceMetadata, num_layers: int) -> npt.NDArray[np.int64]:
    """Places that a pass chose, [tokens, MoE layers, k]."""
    ids_LTK = integers_of(record.get("topk_ids_of_layer"), f"{at}: topk_ids_of_layer")
    tokens = len(_list(record, "positions", at))
    if ids_LTK.shape != (num_layers, tokens, _KEPT):
        raise InputError(
            f"{at}: topk_ids_of_layer of shape {ids_LTK.shape}, expected {(num_layers, tokens, _KEPT)} for layers, "
            "positions and the ids that are kept"
        )
    chosen_LTK = ids_LTK[list(shape.layer_numbers)]
    if (chosen_LTK[:, :, shape.top_k :] != -1).any():
        raise InputError(
            f"{at}: more than top-{shape.top_k} experts a token: are shared experts fused? Record without; --top-k "
            "names another"
        )
    return chosen_LTK[:, :, : shape.top_k].transpose(1, 0, 2)


def _list(record: dict[str, Any], key: str, at: str) -> list[int]:
    value = record.get(key)
    return [] if isinstance(value, list) and not value else whole_list(value, key, at)


def _logical(
    passes: list[npt.NDArray[np.int64]], mapping: Any, shape: TraceMetadata, num_layers: int, where: str
) -> list[npt.NDArray[np.int64]]:
    """Experts in the place of the places where they lie."""
    if mapping is None:
        return passes
    expert_LP = integers_of(mapping, f"{where}: last_physical_to_logical_map")
    if expert_LP.ndim != 2 or len(expert_LP) != num_layers or not expert_LP.size:
        raise InputError(
            f"{where}: last_physical_to_logical_map of shape {expert_LP.shape}, expected {num_layers} layers"
        )
    expert_LP = expert_LP[list(shape.layer_numbers)]
    for number, places_TLK in enumerate(passes):
        if not ((places_TLK >= 0) & (places_TLK < expert_LP.shape[1])).all():
            raise InputError(
                f"{where}: record {number}: experts outside 0 to {expert_LP.shape[1] - 1}; routing was lost"
            )
    layer = np.arange(shape.num_layers)[:, None]
    return [expert_LP[layer, places_TLK] for places_TLK in passes]


def _requests(records: list[dict[str, Any]], passes: list[npt.NDArray[np.int64]], where: str) -> list[Routed]:
    found: list[_Request] = []
    running: list[_Request] = []
    for number, record in enumerate(records):
        at = f"{where}: record {number}"
        mode, positions = whole(record.get("forward_mode"), "forward_mode", at), _list(record, "positions", at)
        token_ids = _list(record, "input_ids", at)
        if mode not in (_EXTEND, _DECODE, _IDLE) or len(token_ids) != len(positions) or min(token_ids, default=0) < 0:
            raise InputError(
                f"{at}: forward_mode {mode}, {len(token_ids)} input_ids, {len(positions)} positions; expected prefill "
                f"(1) or decode (2): {_ONE}, without chunks beside decoding or speculation"
            )
        if mode == _IDLE:
            continue
        lengths = _list(record, "extend_seq_lens", at) if mode == _EXTEND else [1] * len(positions)
        if min(lengths, default=1) < 1 or sum(lengths) != len(positions):
            raise InputError(f"{at}: extend_seq_lens {lengths!s:.40} for {len(positions)} positions")
        place, decoding = 0, []
        for length in lengths:
            here = positions[place : place + length]
            if here != list(range(here[0], here[0] + length)):
                raise InputError(f"{at}: positions {here!s:.60} of one request, expected consecutive ones")
            request = _request_at(here[0], mode, running, found, at)
            request.places += [(number, place + step) for step in range(length)]
            request.token_ids += token_ids[place : place + length]
            request.position += length
            request.prefill += length if mode == _EXTEND else 0
            decoding.append(request)
            place += length
        # whoever is not decoded has ended
        running = decoding if mode == _DECODE else [r for r in running if r not in decoding] + decoding
    return [
        Routed(
            np.stack([passes[number][place] for number, place in request.places]),
            None,
            request.prefill,
            token_ids_T=np.array(request.token_ids),
        )
        for request in found
    ]


def _request_at(position: int, mode: int, running: list[_Request], found: list[_Request], at: str) -> _Request:
    """The request that goes on at this position; a new one where a prefill fits none."""
    fitting = [r for r in running if r.position == position]
    if mode == _EXTEND:
        # a request that decodes is not prefilled again
        fitting = [r for r in fitting if r.prefill == len(r.places)]
        if not position or not fitting:
            found.append(_Request(position))
            return found[-1]
    if len(fitting) != 1:
        raise InputError(f"{at}: {len(fitting)} requests could go on at position {position}; {_ONE}")
    return fitting[0]
