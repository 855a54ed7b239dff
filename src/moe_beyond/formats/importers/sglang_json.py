"""SGLang's responses with `return_routed_experts`, saved as JSON: one response a file, or a list of them.

`choices[0].sgl_ext.routed_experts` is base64 of int32 [tokens, layers, k]; `usage` gives the lengths of prompt and
response. An engine never routes the last token that it sampled, and may leave out tokens of the front. Layers without
experts may have a place or none. Shape suffixes as in `schema`.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.engine_log import whole
from moe_beyond.formats.importers.model_config import NAME, NONE, ShapeOverride, shape_beside
from moe_beyond.formats.importers.routed import Routed, data_set, require_experts, routed_prompts
from moe_beyond.formats.importers.sources import is_single_file, read_each, read_json
from moe_beyond.formats.importers.vllm_npz import moe_layers
from moe_beyond.traces.schema import Trace, TraceMetadata, trace_of


def read(source: Path, domain: str | None, override: ShapeOverride = NONE) -> Trace:
    """Read the `.json` files of a folder or archive, or one file; each response becomes a prompt.

    Raises:
        InputError: A response without routing or lengths, or of another shape than the model; names file and response.
    """
    shape, num_layers = shape_beside(source, override)
    domain = data_set(source, domain)
    found = read_each(
        source,
        "" if is_single_file(source) else ".json",
        lambda stream, name, where: (name, stream.read(), where),
    )
    prompts = []
    for name, data, where in found:
        if name.rpartition("/")[2] == NAME:
            continue
        document = read_json(data, where)
        responses = document if isinstance(document, list) else [document]
        routed = [
            _response(response, f"{where}: response {n}", shape, num_layers) for n, response in enumerate(responses)
        ]
        prompts += routed_prompts(routed, name, where, domain, override.prefill_tokens)
    origin = {"source": "routed_experts returned by SGLang", "decoding": "sampled"}
    return trace_of(shape.model_copy(update=origin), prompts)


def _response(response: Any, at: str, shape: TraceMetadata, num_layers: int) -> Routed:
    choices = response.get("choices") if isinstance(response, dict) else None
    usage = response.get("usage") if isinstance(response, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(usage, dict):
        raise InputError(
            f"{at}: expected an object with usage and one of choices; ask for n=1: usage adds up the tokens of several"
        )
    extension = choices[0].get("sgl_ext") if isinstance(choices[0], dict) else None
    text = extension.get("routed_experts") if isinstance(extension, dict) else None
    if not isinstance(text, str):
        raise InputError(
            f"{at}: no sgl_ext.routed_experts in its choice; start the engine with --enable-return-routed-experts"
        )
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InputError(f"{at}: routed_experts is no base64 ({error}); save the response again") from error
    prompt, completion = (whole(usage.get(key), key, at) for key in ("prompt_tokens", "completion_tokens"))
    if prompt < 1 or completion < 0 or not data:
        raise InputError(f"{at}: {prompt} prompt_tokens, {completion} completion_tokens, {len(data)} bytes of routing")
    # of so many tokens the last is not routed; a prefix may be missing
    total = prompt + completion - 1
    sizes = {layers: len(data) / (4 * layers * shape.top_k) for layers in {num_layers, shape.num_layers}}
    fitting = [layers for layers, tokens in sizes.items() if tokens == int(tokens) and tokens <= total + 1]
    exact = [layers for layers in fitting if sizes[layers] == total]
    if len(exact or fitting) != 1:
        raise InputError(
            f"{at}: {len(data)} bytes of routing for {prompt} + {completion} tokens are "
            f"{'not certainly' if fitting else 'no'} int32 [tokens, {shape.num_layers} or {num_layers} layers, "
            f"{shape.top_k}]; check the config.json"
        )
    layers = (exact or fitting)[0]
    ids_TLK = moe_layers(
        np.frombuffer(data, "<i4").reshape(-1, layers, shape.top_k).astype(np.int64), shape, num_layers, at
    )
    require_experts(
        ids_TLK.reshape(-1, shape.top_k),
        None,
        shape,
        lambda row: f"{at}: token {row // shape.num_layers}, layer {shape.layer_numbers[row % shape.num_layers]}",
    )
    start = max(0, total - len(ids_TLK))
    return Routed(ids_TLK, None, min(len(ids_TLK), max(0, prompt - start)))
