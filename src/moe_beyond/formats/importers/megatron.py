"""Megatron-core's router trace (`--moe-routing-trace-path`): `router_trace_rank<N>.jsonl` and sidecars of bfloat16.

An object a layer of a step: `step`, `block` ("decoder", or "mtp" for draft heads, which are left out), `layer`,
`num_tokens`, `topk`, `top_indices` [tokens, k]. Layers are `decoder.layers.<n>` of the model, from 0. Where the router
gave a mask, ids rise and are in no router's order.

`logits_rank<N>.bin` holds router logits [tokens, E] of each record. Where each token's experts are those of its largest
logits, the softmax over all E gives their weights and their order; else (biases, groups) a trace has no weights.
`hidden_states_rank<N>.bin` holds what the routers read, [tokens, width] of each record: where every record has it, the
trace keeps it as gate inputs.

Layout: NVIDIA/Megatron-LM, megatron/core/transformer/moe/router_trace.py. No file that the engine wrote was at hand,
none with sidecars in particular: what is read follows that source alone.
"""

from __future__ import annotations

import math
import re
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_beyond.documents import read_plain
from moe_beyond.errors import InputError
from moe_beyond.formats.importers.engine_log import Table, json_lines, said_of, whole, whole_list
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride, shape_beside
from moe_beyond.formats.importers.passes import Passes, routed_passes
from moe_beyond.formats.importers.routed import Routed, data_set, half, routed_prompts
from moe_beyond.formats.importers.sources import is_single_file, locate, members, require_inside
from moe_beyond.traces.schema import Trace, TraceMetadata, trace_of

_TRACE = re.compile(r"router_trace_rank([0-9]{1,6})\.jsonl")
_KINDS = {"logit": ("logits", "logit_shape", "logit_bytes"), "hs": ("hidden_states", "hs_shape", "hs_bytes")}


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read one rank's trace, a file with its sidecars beside it, or a folder or archive with them.

    Raises:
        InputError: Traces of several ranks, several steps of many tokens, or a broken rule of the format.
    """
    shape, name, where, routed = _routed(source, override)
    prompts = routed_prompts(routed, name, where, data_set(source, domain), override.prefill_tokens)
    return trace_of(shape.model_copy(update={"source": "Megatron-core router trace"}), prompts)


def _routed(source: Path, override: ShapeOverride) -> tuple[TraceMetadata, str, str, list[Routed]]:
    """The model's shape, the trace's name, its name in messages, and its prompts."""
    files: dict[str, tuple[str, bytes]] = {}
    for name, stream in members(source, (".jsonl", ".bin")):
        other, _ = files.setdefault(PurePosixPath(name).name, (name, stream.read()))
        if other != name:
            raise InputError(f"{locate(source, name)}: {other} has the same name; give one of the folders")
    if is_single_file(source):
        beside = [require_inside(path, source.parent) for path in source.parent.glob("*_rank*.bin")]
        files |= {path.name: (path.name, read_plain(path)) for path in beside}
    traces = [name for name in files if _TRACE.fullmatch(name)]
    if len(traces) != 1:
        raise InputError(
            f"{source}: {len(traces)} files named router_trace_rank<N>.jsonl; give one rank's: ranks may hold the same "
            "tokens, others, or other layers"
        )
    name, data = files[traces[0]]
    where, rank = locate(source, name), _TRACE.fullmatch(traces[0])
    sidecars = {kind: files.get(f"{word}_rank{rank and rank[1]}.bin") for kind, (word, _, _) in _KINDS.items()}
    log = _parse(data, where, {kind: found[1] for kind, found in sidecars.items() if found is not None})
    shape, num_layers = shape_beside(source, override, log.num_experts, override.top_k or log.experts_AK.shape[1])
    return shape, name, where, routed_passes(said_of(log, override), shape, num_layers)


def _parse(data: bytes, where: str, sidecars: dict[str, bytes]) -> Passes:
    places, ids = Table(where), Table(where)
    # weights of each record, and how many experts its logits are of; 0: it has none
    weighed: list[npt.NDArray[np.float32]] = []
    widths = set[int]()
    hidden: list[npt.NDArray[np.float16]] = []
    for number, fields in json_lines(data, where):
        at = f"{where}: line {number}"
        if fields.get("block") == "mtp":
            continue
        if fields.get("block") != "decoder":
            raise InputError(f"{at}: block is {fields.get('block')!r:.40}, expected decoder or mtp")
        step, layer, tokens, top_k = (
            whole(fields.get(key), key, at) for key in ("step", "layer", "num_tokens", "topk")
        )
        rows = fields.get("top_indices")
        chosen = [whole_list(row, "top_indices", at) for row in rows] if isinstance(rows, list) else []
        if tokens < 1 or len(chosen) != tokens or any(len(row) != top_k for row in chosen):
            raise InputError(f"{at}: top_indices of {len(chosen)} tokens, expected {tokens} of {top_k} experts")
        parts = {kind: _sidecar(fields, kind, tokens, sidecars, at) for kind in _KINDS}
        places.add([number, step, layer, tokens], number)
        experts_TK, weights_TK, logits_TE = np.array(chosen, np.int64), None, parts["logit"]
        widths.add(0 if logits_TE is None else logits_TE.shape[1])
        if logits_TE is not None:
            experts_TK, weights_TK = _weighed(experts_TK, logits_TE, at)
        for row in experts_TK.tolist():
            ids.add(row, number)
        if weights_TK is not None:
            weighed.append(weights_TK)
        states_TD = parts["hs"]
        if states_TD is not None:
            hidden.append(half(states_TD, at))
    number_R, step_R, layer_R, tokens_R = places.array().T
    if (np.diff(step_R) < 0).any():
        raise InputError(f"{where}: line {number_R[np.argmax(np.diff(step_R) < 0) + 1]}: a step that falls; two runs?")
    prompts = np.unique(step_R[tokens_R > 1])
    if len(prompts) > 1:
        raise InputError(
            f"{where}: line {number_R[np.argmax(step_R == prompts[1])]}: step {prompts[1]} has several tokens, as "
            f"step {prompts[0]} had: training, several requests or a second prompt; record one request at a time"
        )
    if len(widths) > 1:
        raise InputError(f"{where}: logits of {sorted(widths)} experts; expected one number for all records")
    weights_AK = np.concatenate(weighed) if len(weighed) == len(number_R) else None
    wide = {part.shape[1] for part in hidden}
    return Passes(
        where,
        layer_R,
        tokens_R,
        ids.array(),
        weights_AK,
        np.concatenate(hidden) if len(hidden) == len(number_R) and len(wide) == 1 else None,
        widths.pop() or None,
        "line",
        number_R,
    )


def _sidecar(
    record: dict[str, Any], kind: str, tokens: int, sidecars: dict[str, bytes], at: str
) -> npt.NDArray[np.float32] | None:
    """A record's part of a sidecar, float32 [tokens, width]; None where the record or the folder has none."""
    name, shape_key, bytes_key = _KINDS[kind]
    if f"{kind}_offset" not in record:
        return None
    offset, size = whole_offset(record, f"{kind}_offset", at), whole_offset(record, bytes_key, at)
    shape = whole_list(record.get(shape_key), shape_key, at)
    if len(shape) != 2 or shape[0] != tokens or shape[1] < 1 or math.prod(shape) * 2 != size:
        raise InputError(
            f"{at}: {shape_key} {shape!s:.40} and {size} bytes; expected [{tokens}, width] in two bytes each"
        )
    data = sidecars.get(kind)
    if data is None:
        return None
    if offset + size > len(data):
        raise InputError(
            f"{at}: {name} ends at byte {len(data)}, the record at {offset + size}; the sidecar is cut short"
        )
    # bfloat16 is the upper half of float32
    words = np.frombuffer(data, "<u2", size // 2, offset).astype(np.uint32) << 16
    return words.view(np.float32).reshape(shape[0], shape[1])


def whole_offset(record: dict[str, Any], key: str, at: str) -> int:
    """A number of bytes from 0. Raises InputError if it is none."""
    value = record.get(key)
    if type(value) is not int or not 0 <= value < 2**48:
        raise InputError(f"{at}: {key} is {value!r:.40}, expected a number of bytes")
    return value


def _weighed(
    experts_AK: npt.NDArray[np.int64], logits_AE: npt.NDArray[np.float32], where: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32] | None]:
    """Experts by falling logit and their probabilities; as they were, and none, where others have larger logits."""
    if not np.isfinite(logits_AE).all():
        raise InputError(f"{where}: logits that are no finite numbers; remove the sidecar of logits")
    if not ((experts_AK >= 0) & (experts_AK < logits_AE.shape[1])).all():
        raise InputError(f"{where}: expert {experts_AK.max()}, the logits are of {logits_AE.shape[1]} experts")
    chosen_AK = np.take_along_axis(logits_AE, experts_AK, axis=1)
    top_k = experts_AK.shape[1]
    largest_AK = -np.partition(-logits_AE, top_k - 1, axis=1)[:, :top_k]
    if (chosen_AK.min(axis=1) < largest_AK.min(axis=1)).any():
        return experts_AK, None
    order_AK = np.argsort(-chosen_AK, axis=1, kind="stable")
    shifted_AE = np.exp(logits_AE - logits_AE.max(axis=1, keepdims=True))
    weights_AK = np.take_along_axis(shifted_AE, experts_AK, axis=1) / shifted_AE.sum(axis=1, keepdims=True)
    return np.take_along_axis(experts_AK, order_AK, axis=1), np.take_along_axis(weights_AK, order_AK, axis=1)
