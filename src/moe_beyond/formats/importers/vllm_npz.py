"""Routing that vLLM or SGLang returned (`--enable-return-routed-experts`), saved as an `.npz` a request.

Arrays of a file, as the engines name them:

- `routed_experts` [tokens, layers, top_k]: of prompt and response together, or of the response alone beside
- `prompt_routed_experts` [tokens, layers, top_k], where the engine returns both apart;
- `prompt_token_ids` and `token_ids`, the ids of prompt and response. An engine never routes the last token that it
  sampled, and may leave out tokens of the front (SGLang's `routed_experts_start_len`, a prefix from its cache), so that
  the routing is that of positions start to N - 2 of N. With both arrays this is certain; without, a file is refused.

The model's `config.json` lies in the same folder. Engines give layers without experts a place that is all zeros in some
versions and none in others; both are understood. Shape suffixes as in `schema`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.model_config import NONE, ShapeOverride, shape_beside
from moe_beyond.formats.importers.npz import load_npz
from moe_beyond.formats.importers.sources import name_of, read_each
from moe_beyond.traces.schema import RoutedPrompt, Trace, TraceMetadata, trace_of

_NAMES = ("prompt_routed_experts", "routed_experts", "prompt_token_ids", "token_ids")
_NAME_THEM = "name the layers with experts by --moe-layers"
_Arrays = dict[str, npt.NDArray[np.integer[Any]]]


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the `.npz` files of a folder or archive, or one file with the config beside it.

    Raises:
        InputError: A rule of the format is broken; names file and array.
    """
    shape, num_layers = shape_beside(source, override)
    origin = {"source": "routed_experts returned by vLLM or SGLang", "decoding": "sampled"}
    read_file = partial(_request, domain=domain or name_of(source), shape=shape, num_layers=num_layers)
    return trace_of(shape.model_copy(update=origin), read_each(source, ".npz", read_file))


def _request(
    stream: IO[bytes], name: str, where: str, *, domain: str, shape: TraceMetadata, num_layers: int
) -> RoutedPrompt:
    arrays = _load(stream.read(), where)
    parts = [arrays[name] for name in ("prompt_routed_experts", "routed_experts") if name in arrays]
    for part in parts:
        if part.ndim != 3 or part.shape[1:] != parts[0].shape[1:] or part.shape[2] != shape.top_k:
            raise InputError(
                f"{where}: routing of shape {part.shape}, expected tokens x layers x {shape.top_k} as config.json says"
            )
    ids_TLK = moe_layers(np.concatenate(parts), shape, num_layers, where)
    if len(ids_TLK) == 0:
        raise InputError(f"{where}: routing of no tokens; remove the file")
    if not ((ids_TLK >= 0) & (ids_TLK < shape.num_experts)).all():
        token, layer, _ = (int(i[0]) for i in np.nonzero((ids_TLK < 0) | (ids_TLK >= shape.num_experts)))
        raise InputError(
            f"{where}: token {token}, layer {shape.layer_numbers[layer]}: experts {ids_TLK[token, layer].tolist()}, "
            f"the model has 0 to {shape.num_experts - 1}; -1 is routing that the engine lost "
            "(255 or 65535 in unsigned integers): turn prefix caching and KV offloading off"
        )
    start, num_prefill = _span(arrays, len(ids_TLK), where)
    return RoutedPrompt(
        prompt_id=f"{domain}/{PurePosixPath(name).with_suffix('')}",
        domain=domain,
        num_prefill=num_prefill,
        experts_TLK=ids_TLK,
        token_ids_T=_token_ids(arrays, start, len(ids_TLK), where),
    )


def _span(arrays: _Arrays, num_tokens: int, where: str) -> tuple[int, int]:
    """Position of the first routed token in prompt and response, and how many of the routed tokens were prefill."""
    apart = arrays.get("prompt_routed_experts")
    prompt, answer = arrays.get("prompt_token_ids"), arrays.get("token_ids")
    if apart is not None:
        return 0 if prompt is None else max(0, len(prompt) - len(apart)), len(apart)
    if prompt is None:
        raise InputError(
            f"{where}: neither prompt_routed_experts nor prompt_token_ids; one must give the prompt's length"
        )
    if answer is None:
        if num_tokens == len(prompt):
            return 0, num_tokens
        raise InputError(
            f"{where}: {num_tokens} routed tokens, {len(prompt)} prompt_token_ids and no token_ids: is this the "
            "routing of prompt and response or of the response alone? Save token_ids, or prompt_routed_experts, too"
        )
    total = len(prompt) + len(answer)
    if num_tokens > total:
        raise InputError(f"{where}: {total} token ids for {num_tokens} routed tokens; expected as many or one more")
    start = max(0, total - 1 - num_tokens)
    return start, max(0, len(prompt) - start)


def _token_ids(arrays: _Arrays, start: int, num_tokens: int, where: str) -> npt.NDArray[np.integer[Any]] | None:
    if "prompt_token_ids" not in arrays or "token_ids" not in arrays:
        return None
    ids = np.concatenate([arrays["prompt_token_ids"], arrays["token_ids"]])[start : start + num_tokens]
    if len(ids) != num_tokens or not ((ids >= 0) & (ids < 2**31)).all():
        raise InputError(
            f"{where}: {len(ids)} token ids for {num_tokens} routed tokens, expected as many from 0 to 2**31"
        )
    return ids


def moe_layers(
    ids_TLK: npt.NDArray[np.integer[Any]], shape: TraceMetadata, num_layers: int, where: str
) -> npt.NDArray[np.integer[Any]]:
    """The layers with experts, whether or not the engine gave the others a place."""
    if ids_TLK.shape[1] == len(shape.layer_numbers):
        return ids_TLK
    if ids_TLK.shape[1] == num_layers:
        dense = np.setdiff1d(np.arange(num_layers), shape.layer_numbers)
        routed = dense[(ids_TLK[:, dense] != ids_TLK[:1, dense, :1]).any(axis=(0, 2))]
        if len(routed):
            raise InputError(
                f"{where}: layer {routed[0]} is routed, config.json says that it has no experts; {_NAME_THEM}"
            )
        return ids_TLK[:, list(shape.layer_numbers)]
    raise InputError(
        f"{where}: {ids_TLK.shape[1]} layers, config.json has {num_layers} of which {len(shape.layer_numbers)} have "
        f"experts; expected one of these numbers, or {_NAME_THEM}"
    )


def _load(data: bytes, where: str) -> _Arrays:
    arrays = load_npz(data, _NAMES, where)
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            raise InputError(f"{where}: {name}: {array.dtype} in C order, expected integers in C order")
    for name in ("prompt_token_ids", "token_ids"):
        if name in arrays and arrays[name].ndim != 1:
            raise InputError(
                f"{where}: {name} of shape {arrays[name].shape}, expected the ids of one request, one a token"
            )
    if "routed_experts" not in arrays:
        raise InputError(f"{where}: no array 'routed_experts'; save what the engine returned with numpy.savez")
    return arrays
