"""0xBakeer's expert trace: `trace/layer<L>.npz`, a file a layer, and `meta.json`, which divides the tokens.

Arrays of a file: `indices` int16 [T, k], `weights` float16 [T, k], `token` int32 [T]; `scores` and `category` are not
read. Sequences of `meta.json` stand one after another. They are given texts: every token is prefill. Layers are those
of the model. Layout: 0xBakeer/deepseek-v41-flash-spark, tools/expert_trace.py. Shape suffixes as in `schema`.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.engine_log import whole
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride, shape_beside
from moe_beyond.formats.importers.npz import Arrays, load_npz
from moe_beyond.formats.importers.routed import Routed, data_set, placed, require_experts, routed_prompts
from moe_beyond.formats.importers.sources import locate, members, read_json
from moe_beyond.limits import limits
from moe_beyond.traces.schema import Trace, trace_of

_ARRAYS = ("indices", "weights", "token")


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read a folder or archive. A sequence's domain is its category, unless `domain` names one.

    Raises:
        InputError: A layer or meta.json is missing, or arrays do not belong together; names file and array.
    """
    layers: dict[int, tuple[str, Arrays]] = {}
    meta: Any = None
    left = 2 * limits().file_bytes
    for name, stream in members(source, (".npz", "meta.json")):
        where, path = locate(source, name), PurePosixPath(name)
        if path.name == "meta.json":
            meta = read_json(stream.read(), where)
        elif found := re.fullmatch(r"layer([0-9]{1,4})\.npz", path.name):
            if int(found[1]) in layers:
                raise InputError(f"{where}: a second file for layer {int(found[1])}; remove one of them")
            layers[int(found[1])] = (where, load_npz(stream.read(), _ARRAYS, where))
            left -= sum(array.nbytes for array in layers[int(found[1])][1].values())
            if left < 0:
                raise InputError(
                    f"{source}: more than {2 * limits().file_bytes >> 20} MiB of arrays; give fewer sequences"
                )
    if meta is None or not layers:
        raise InputError(
            f"{source}: needs meta.json and trace/layer0.npz, ...; {'meta.json' if layers else 'layers'} missing"
        )
    for where, arrays in layers.values():
        _require_arrays(arrays, where)
    first = layers[min(layers)][1]
    shape, _ = shape_beside(source, override, top_k=override.top_k or first["indices"].shape[1])
    if tuple(sorted(layers)) != shape.layer_numbers:
        odd = sorted(set(layers) ^ set(shape.layer_numbers))[0]
        raise InputError(
            f"{source}: layer {odd} is {'not one with experts' if odd in layers else 'missing'}; --moe-layers names "
            "others"
        )
    for layer in sorted(layers):
        where, arrays = layers[layer]
        if arrays["indices"].shape != first["indices"].shape or (arrays["token"] != first["token"]).any():
            raise InputError(
                f"{where}: tokens differ from those of layer {min(layers)}; every layer must have the same"
            )
        require_experts(arrays["indices"], arrays["weights"], shape, placed(where, "token"))
    columns = [np.stack([layers[n][1][name] for n in sorted(layers)], axis=1) for name in _ARRAYS[:2]]
    routed = _sequences(meta, columns, first["token"], domain, str(source))
    prompts = routed_prompts(routed, "", str(source), data_set(source, domain), override.prefill_tokens)
    origin = {"source": "0xBakeer expert trace", "decoding": "teacher-forced"}
    return trace_of(shape.model_copy(update=origin), prompts)


def _require_arrays(arrays: Arrays, where: str) -> None:
    for name, kinds, axes in (("indices", "i", 2), ("weights", "f", 2), ("token", "i", 1)):
        if name not in arrays or arrays[name].dtype.kind not in kinds or arrays[name].ndim != axes:
            raise InputError(f"{where}: {name} is missing or has another type; expected {axes} axes of {kinds}-numbers")
    ids, weights, token = (arrays[name] for name in _ARRAYS)
    if ids.shape != weights.shape or len(token) != len(ids) or not ids.size:
        raise InputError(
            f"{where}: indices {ids.shape}, weights {weights.shape}, token {token.shape} do not fit together"
        )
    if not ((token >= 0) & (token < 2**31)).all():
        raise InputError(f"{where}: token ids that are none; expected 0 to 2**31")


def _sequences(meta: Any, columns: Any, token_T: Any, domain: str | None, where: str) -> list[Routed]:
    experts_TLK, weights_TLK = columns
    listed = meta.get("seqs") if isinstance(meta, dict) else None
    if not isinstance(listed, list) or not all(isinstance(sequence, dict) for sequence in listed):
        raise InputError(f"{where}: meta.json has no list 'seqs' of objects; fetch it again")
    lengths = [whole(sequence.get("n"), "n", f"{where}: meta.json") for sequence in listed]
    if min(lengths, default=0) < 1 or sum(lengths) != len(token_T):
        raise InputError(f"{where}: meta.json has sequences of {sum(lengths)} tokens, the layers have {len(token_T)}")
    found: list[Routed] = []
    start = 0
    for sequence, length in zip(listed, lengths, strict=True):
        tokens = slice(start, start + length)
        named = str(sequence.get("id", ""))[:200] or f"sequence_{len(found)}"
        category = "" if domain else str(sequence.get("category") or "")[:200]
        found.append(Routed(experts_TLK[tokens], weights_TLK[tokens], length, named, token_T[tokens], category))
        start += length
    return found
