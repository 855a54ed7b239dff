"""Which layers of a model have experts, by the keys that model families gave to it in their config.json."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from moe_beyond.errors import InputError

# keys that list the layers with experts, or give each layer a kind; E stands for experts in a pattern of letters
_LISTS = ("moe_layers", "moe_layers_enum", "moe_layer_indices")
_KINDS = ("mlp_layer_types", "layers_block_type", "hybrid_override_pattern", "is_moe_layer", "moe_layer_freq")
_HAVE_EXPERTS = ("sparse", "moe", "hash_moe", "E", True, 1)
# keys that say how many dense layers come first, and keys that say that every n-th layer has experts
_FIRST_DENSE = ("first_k_dense_replace", "num_dense_layers", "n_dense_layers")
_STEPS = ("interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_frequency", "moe_every_n_layers")
_RANGE = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")
_KNOWN = {*_LISTS, *_KINDS, *_FIRST_DENSE, *_STEPS, *_RANGE, "expert_layer_period", "expert_layer_offset"}
_SAYS_WHICH = re.compile(r"^(?!mtp|encoder).*(moe|expert|sparse|dense).*(layer|step|freq|period|interval|every)")


def layers_by_keys(config: dict[str, Any], num_layers: int, where: str) -> list[int]:
    """Numbers of the layers with experts, rising; all layers where no key says which.

    Raises:
        InputError: A key that is not known seems to say it, or the value of a known one is of no use.
    """
    for key, value in config.items():
        if _SAYS_WHICH.match(key) and key not in _KNOWN and value is not None:
            raise InputError(
                f"{where}: {key!r:.60} seems to say which layers have experts, in words that are not known here; name "
                "them with --moe-layers"
            )
    named = _named(config, num_layers, where)
    if named is None:
        dense = config.get("mlp_only_layers") or []
        if not isinstance(dense, list):
            raise InputError(f"{where}: mlp_only_layers is {dense!r:.40}, expected a list of layers")
        named = [layer for layer in range(num_layers) if _has_experts(config, layer, where) and layer not in dense]
    return [layer for layer in named if layer < num_layers]


def _named(config: dict[str, Any], num_layers: int, where: str) -> list[int] | None:
    """The layers that a list of numbers or of kinds names; None without such a list."""
    for key in _KINDS:
        kinds = config.get(key)
        if isinstance(kinds, list | str):
            named = [layer for layer, kind in enumerate(kinds) if kind in _HAVE_EXPERTS]
            if key == "layers_block_type" and not named:
                continue  # kinds of attention
            if len(kinds) < num_layers:
                raise InputError(f"{where}: {key} has {len(kinds)} places for {num_layers} layers")
            return named
    for key in _LISTS:
        if config.get(key) is not None:
            return sorted({int(number) for number in re.findall(r"[0-9]{1,6}", str(config[key]))})
    return None


def _has_experts(config: dict[str, Any], layer: int, where: str) -> bool:
    """Whether a layer has experts, by the keys that count layers."""
    if config.get("expert_layer_period") is not None:  # Jamba
        return layer % integer(config, ("expert_layer_period",), where) == _count(config, "expert_layer_offset", where)
    if any(config.get(key) is not None for key in _RANGE):  # Ernie
        every = integer({"moe_layer_interval": 1, **config}, ("moe_layer_interval",), where)
        last = config.get("moe_layer_end_index")
        until = layer if last in (None, -1) else _count(config, "moe_layer_end_index", where)
        return _count(config, "moe_layer_start_index", where) <= layer <= until and (layer + 1) % every == 0
    for key in _FIRST_DENSE:  # DeepSeek and many after it
        if config.get(key) is not None:
            every = integer({"moe_layer_freq": 1, **config}, ("moe_layer_freq",), where)
            return layer >= _count(config, key, where) and layer % every == 0
    step = next((key for key in _STEPS if config.get(key) is not None), None)
    return step is None or (layer + 1) % integer(config, (step,), where) == 0


def _count(config: dict[str, Any], key: str, where: str) -> int:
    """A whole number from 0; 0 where the key is missing."""
    return 0 if config.get(key) in (None, 0) else integer(config, (key,), where)


def integer(config: dict[str, Any], names: Sequence[str], where: str) -> int:
    """The first of these fields that is there: a positive whole number, or a list of one such number alone.

    Raises:
        InputError: None is there, or its value is another.
    """
    for name in names:
        value = config.get(name)
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        if type(value) is int and 0 < value < 2**31:
            return value
        if value is not None:
            raise InputError(f"{where}: {name} is {value!r:.40}, expected a positive whole number")
    raise InputError(f"{where}: none of {', '.join(names)}; expected the config.json of a mixture of experts")
