"""The shape of a model from its Hugging Face `config.json`, for formats that hold expert ids and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.sources import is_single_file, locate, members
from moe_beyond.traces.schema import TraceMetadata

NAME = "config.json"
_FIX = "copy the model's there: the format does not say how many experts the model has"

# the names that model families gave to one thing
_NUM_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "experts_per_token")
_WIDTH = ("moe_intermediate_size", "intermediate_size")
_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
_QUANTISED_BITS = {"fp8": 8.0, "mxfp4": 4.25}


def shape_beside(source: Path) -> tuple[TraceMetadata, int]:
    """Read the config.json in a folder or archive, or beside a single file.

    Returns:
        The model's shape as metadata of a trace of all MoE layers, without a source; and the number of decoder layers,
        dense ones included.

    Raises:
        InputError: There is none, it is not JSON, or it describes no mixture of experts.
    """
    if is_single_file(source):
        beside = source.parent / NAME
        if not beside.is_file():
            raise InputError(f"{source}: no {NAME} beside it; {_FIX}")
        return read_shape(beside.read_bytes(), str(beside))
    found = {name: stream.read() for name, stream in members(source, NAME, fix=_FIX)}
    name = min(found, key=lambda candidate: (candidate.count("/"), candidate))
    return read_shape(found[name], locate(source, name))


def read_shape(data: bytes, where: str) -> tuple[TraceMetadata, int]:
    """Parse a config.json; as `shape_beside`."""
    try:
        config = json.loads(data.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({str(error).splitlines()[0]}); copy the model's again") from error
    if isinstance(config, dict) and isinstance(config.get("text_config"), dict):
        config = {**config, **config["text_config"]}  # models with vision keep the language model's part there
    if not isinstance(config, dict):
        raise InputError(f"{where}: expected an object, found {type(config).__name__}")
    num_layers = _integer(config, ("num_hidden_layers",), where)
    moe_layers = tuple(layer for layer in range(min(num_layers, 10_000)) if _has_experts(config, layer, where))
    num_experts, top_k = _integer(config, _NUM_EXPERTS, where), _integer(config, _TOP_K, where)
    if not moe_layers or not 2 <= num_experts <= 65536 or top_k > num_experts:
        raise InputError(
            f"{where}: {len(moe_layers)} layers with {num_experts} experts, top-{top_k}: not a mixture of experts"
        )
    weights = 3 * _integer(config, ("hidden_size",), where) * _integer(config, _WIDTH, where)
    metadata = TraceMetadata(
        model_id=str(config.get("_name_or_path") or config.get("model_type") or "unknown"),
        layer_numbers=moe_layers,
        num_experts=num_experts,
        top_k=top_k,
        # three projections in the precision that the config names
        expert_bytes=(max(1, int(weights * _bits(config) // 8)),) * len(moe_layers),
        source="",
        licence="none stated",
    )
    return metadata, num_layers


def _integer(config: dict[str, Any], names: Sequence[str], where: str) -> int:
    for name in names:
        value = config.get(name)
        if type(value) is int and 0 < value < 2**31:
            return value
        if value is not None:
            raise InputError(f"{where}: {name} is {value!r:.40}, expected a positive whole number")
    raise InputError(f"{where}: none of {', '.join(names)}; expected the config.json of a mixture of experts")


def _has_experts(config: dict[str, Any], layer: int, where: str) -> bool:
    """Whether a layer has experts, by the rules of the DeepSeek and Qwen families; others have them everywhere."""
    dense = config.get("mlp_only_layers")
    if isinstance(dense, list) and layer in dense:
        return False
    if config.get("first_k_dense_replace") is not None:
        first = 0 if config["first_k_dense_replace"] == 0 else _integer(config, ("first_k_dense_replace",), where)
        every = _integer(config, ("moe_layer_freq",), where) if config.get("moe_layer_freq") is not None else 1
        return layer >= first and layer % every == 0
    step = _integer(config, ("decoder_sparse_step",), where) if config.get("decoder_sparse_step") is not None else 1
    return (layer + 1) % step == 0


def _bits(config: dict[str, Any]) -> float:
    quantised = config.get("quantization_config")
    if isinstance(quantised, dict):
        bits = quantised.get("bits", _QUANTISED_BITS.get(str(quantised.get("quant_method"))))
        if isinstance(bits, int | float) and 0 < bits <= 32:
            return float(bits)
    return _BITS.get(str(config.get("dtype") or config.get("torch_dtype")), 16)
