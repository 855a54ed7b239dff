"""GPT-OSS expert fingerprints: a JSON file a prompt, with what the router chose for each generated token.

`full_text` lists the strings of prompt and response; `router_data` has an object a generated token that was fed back,
`{"token_<position>": {"layer_<n>": {"selected_experts": [4 ids], "selected_probs": [4 weights]}}}`. The prompt's own
tokens were not recorded, so a trace holds decode tokens alone.

The files say nothing about the model; it is gpt-oss-20b with its own MXFP4 experts. Shape suffixes as in `schema`.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.sources import natural_order, read_each, read_json
from moe_beyond.traces.schema import RoutedPrompt, Trace, TraceMetadata, trace_of

NUM_LAYERS, NUM_EXPERTS, TOP_K = 24, 32, 4
# gate, up and down projection, 2880 x 2880 each, in MXFP4: 4 bits a weight and 8 bits a block of 32; biases not counted
EXPERT_BYTES = 3 * 2880 * 2880 * 17 // 32

METADATA = TraceMetadata(
    model_id="openai/gpt-oss-20b",
    layer_numbers=tuple(range(NUM_LAYERS)),
    num_experts=NUM_EXPERTS,
    top_k=TOP_K,
    expert_bytes=(EXPERT_BYTES,) * NUM_LAYERS,
    decoding="sampled",
    source="https://github.com/AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting",
    licence="Apache-2.0",
)
_LAYERS = tuple(f"layer_{number}" for number in range(NUM_LAYERS))


def read(source: Path, domain: str | None) -> Trace:
    """Read a folder, archive or file of fingerprints; `domain` defaults to each file's own `dataset`.

    Raises:
        InputError: A rule of the format is broken; names file, token and layer.
    """
    return trace_of(METADATA, read_each(source, ".json", partial(_read_prompt, domain)))


def _read_prompt(domain: str | None, stream: IO[bytes], name: str, where: str) -> RoutedPrompt:
    fields = read_json(stream.read(), where)
    if not isinstance(fields, dict):
        raise InputError(f"{where}: expected an object, found {type(fields).__name__}")
    for key in ("full_text", "router_data"):
        if not isinstance(fields.get(key), list) or not fields[key]:
            raise InputError(f"{where}: {key!r} is missing or no list with elements; check the format")
    texts = fields["full_text"]
    tokens = [_routed_token(entry, where) for entry in fields["router_data"]]
    for (position, _), (following, _) in itertools.pairwise(tokens):
        if following != position + 1:
            raise InputError(f"{where}: token_{following} follows token_{position}; positions must be consecutive")
    if tokens[-1][0] >= len(texts) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: token_{tokens[-1][0]} has no string in full_text, which has {len(texts)} elements")
    return RoutedPrompt(
        prompt_id=str(PurePosixPath(name).with_suffix("")),
        domain=domain or str(fields.get("dataset") or "gpt-oss"),
        num_prefill=0,
        experts_TLK=np.array([[experts for experts, _ in layers] for _, layers in tokens], np.uint8),
        weights_TLK=np.array([[weights for _, weights in layers] for _, layers in tokens], np.float16),
        token_texts=[texts[position] for position, _ in tokens],
    )


def _routed_token(entry: Any, where: str) -> tuple[int, list[tuple[list[int], list[float]]]]:
    """Position of a token in `full_text`, and experts and weights of each layer."""
    if not isinstance(entry, dict) or len(entry) != 1:
        raise InputError(f"{where}: an element of 'router_data' is {entry!r:.60}, expected one 'token_<position>'")
    ((label, layers),) = entry.items()
    digits = label.removeprefix("token_")
    if not (label.startswith("token_") and digits.isascii() and digits.isdecimal() and len(digits) <= 9):
        raise InputError(f"{where}: {label!r:.60} in 'router_data', expected 'token_<position>'")
    if not isinstance(layers, dict) or layers.keys() != set(_LAYERS):
        found = sorted(layers, key=natural_order) if isinstance(layers, dict) else layers
        raise InputError(f"{where}: {label} has {found!r:.80}, expected layer_0 to layer_{NUM_LAYERS - 1}")
    return int(digits), [_routed_layer(layers[layer], f"{where}: {label}, {layer}") for layer in _LAYERS]


def _routed_layer(routed: Any, where: str) -> tuple[list[int], list[float]]:
    experts = routed.get("selected_experts") if isinstance(routed, dict) else None
    weights = routed.get("selected_probs") if isinstance(routed, dict) else None
    if not (isinstance(experts, list) and isinstance(weights, list) and len(experts) == len(weights) == TOP_K):
        raise InputError(f"{where}: expected {TOP_K} selected_experts and {TOP_K} selected_probs, found {routed!r:.80}")
    if not all(type(expert) is int and 0 <= expert < NUM_EXPERTS for expert in experts):
        raise InputError(f"{where}: selected_experts {experts!r:.60}, the model has experts 0 to {NUM_EXPERTS - 1}")
    if not all(type(weight) in (int, float) and 0 <= weight <= 1 for weight in weights):
        raise InputError(f"{where}: selected_probs {weights!r:.60}, expected numbers from 0 to 1")
    return experts, weights
