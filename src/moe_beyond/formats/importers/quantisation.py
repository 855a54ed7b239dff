"""How a method of quantisation stores a weight matrix, by the `quantization_config` of a model's config.json."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moe_beyond.errors import InputError

FIX = "give bytes or a GGUF type with --expert-size"
# projections by the names of checkpoints: rules of a quantisation name one of them
_ALIASES = {
    "gate_proj": ["gate_proj", "w1", "gate_up_proj"],
    "up_proj": ["up_proj", "w3", "gate_up_proj"],
    "down_proj": ["down_proj", "w2"],
}
_Fields = dict[str, Any]


@dataclass(frozen=True)
class Storage:
    """How a matrix is stored.

    Attributes:
        bits: Of a weight.
        block: Outputs and inputs, 0 for all of them, that share a scale.
        block_bits: Of a block's scale and zero point.
        once_bits: What the matrix has once.
    """

    bits: float
    block: tuple[int, int] = (0, 0)
    block_bits: float = 0
    once_bits: float = 0

    def num_bytes(self, outputs: int, inputs: int) -> float:
        """Bytes of a matrix of this size."""
        high, wide = self.block
        blocks = math.ceil(outputs / (high or outputs)) * math.ceil(inputs / (wide or inputs))
        return (outputs * inputs * self.bits + blocks * self.block_bits + self.once_bits) / 8


def method_of(quantised: _Fields) -> str:
    """Its name, with hyphens."""
    return str(quantised.get("quant_method", "none")).lower().replace("_", "-")


def storage_of(quantised: _Fields, name: str, where: str) -> Storage | None:
    """How a matrix is stored; None where it is not quantised.

    Args:
        quantised: The `quantization_config`.
        name: The matrix, by the name that checkpoints give it.
        where: Names the file in messages.

    Raises:
        InputError: An unknown method, or one that lacks what its size depends on.
    """
    method = method_of(quantised)
    known = _METHODS.get(method)
    if known is None:
        raise InputError(f"{where}: quantization_config: quant_method {method!r:.40} is unknown; {FIX}")
    left_out = [
        pattern
        for key in ("ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules")
        if isinstance(quantised.get(key), list)
        for pattern in quantised[key]
    ]
    if any(_names(pattern, name, where) for pattern in left_out):
        return None
    return known(quantised, name, where)


def _awq(quantised: _Fields, _: str, where: str) -> Storage:
    bits = _bits(quantised, ("bits", "w_bit"), where)
    return Storage(bits, (1, _group(quantised, where)), 16 + (bits if quantised.get("zero_point", True) else 0))


def _fp8(quantised: _Fields, _: str, where: str) -> Storage:
    block = quantised.get("weight_block_size")
    return Storage(8, (0, 0) if block is None else _block(block, where), 32)


def _gptq(quantised: _Fields, name: str, where: str) -> Storage | None:
    # rules for single modules: `dynamic` of GPTQModel, where "-:" leaves one out, and `extra_config` of AutoRound
    for rules in (quantised.get("dynamic"), quantised.get("extra_config")):
        for pattern, changed in rules.items() if isinstance(rules, dict) else ():
            if _names("re:" + pattern.removeprefix("-:").removeprefix("+:"), name, where):
                if pattern.startswith("-:") or (isinstance(changed, dict) and changed.get("bits") == 16):
                    return None
                quantised = {**quantised, **(changed or {})}
    bits = _bits(quantised, ("bits",), where)
    # the zero points are stored for symmetric weights too
    return Storage(bits, (1, _group(quantised, where)), 16 + bits)


def _bitsandbytes(quantised: _Fields, _: str, where: str) -> Storage:
    if quantised.get("load_in_4bit") or quantised.get("_load_in_4bit"):
        # one absmax for 64 weights in float32, or in 8 bits with a float32 for 256 of those
        return Storage(4, (1, 64), 8 + 32 / 256 if quantised.get("bnb_4bit_use_double_quant") else 32)
    if quantised.get("load_in_8bit") or quantised.get("_load_in_8bit"):
        return Storage(8, (1, 0), 32)
    raise InputError(f"{where}: quantization_config: bitsandbytes with neither load_in_4bit nor load_in_8bit; {FIX}")


def _modelopt(quantised: _Fields, name: str, where: str) -> Storage | None:
    algorithm = str(quantised.get("quant_algo") or "").upper()
    if not algorithm:
        return _of_group(quantised, name, where)
    known = {
        "NVFP4": Storage(4, (1, 16), 8, 32),
        "NVFP4_AWQ": Storage(4, (1, 16), 8, 32),
        "FP8": Storage(8, (0, 0), 32),
        "FP8_PER_CHANNEL_PER_TOKEN": Storage(8, (1, 0), 32),
        "FP8_PB_WO": Storage(8, (128, 128), 32),
        "MXFP8": Storage(8, (1, 32), 8),
        "MXFP4": Storage(4, (1, 32), 8),
        "W4A16_AWQ": Storage(4, (1, _group(quantised, where)), 16),
        "W4A8_AWQ": Storage(4, (1, _group(quantised, where)), 16),
    }
    if algorithm not in known:
        raise InputError(f"{where}: quantization_config: quant_algo {algorithm!r:.40} is unknown; {FIX}")
    return known[algorithm]


def _of_group(quantised: _Fields, name: str, where: str) -> Storage | None:
    """Storage by the group of compressed-tensors whose targets fit best; None where none does."""
    if quantised.get("sparsity_config") or re.search("sparse|24", str(quantised.get("format"))):
        raise InputError(f"{where}: quantization_config: sparse weights have no known size; {FIX}")
    groups, by_class = quantised.get("config_groups"), None
    for group in groups.values() if isinstance(groups, dict) else [groups]:
        if not isinstance(group, dict):
            raise InputError(f"{where}: quantization_config: a config group is {group!r:.40}, expected an object")
        targets = group.get("targets") or ["Linear"]
        if any(_names(target, name, where) for target in targets):
            return _of_weights(group.get("weights"), where)
        if "Linear" in targets or "FusedMoE" in targets:
            by_class = group
    return None if by_class is None else _of_weights(by_class.get("weights"), where)


def _of_weights(weights: Any, where: str) -> Storage | None:
    if weights is None:
        return None
    if not isinstance(weights, dict):
        raise InputError(f"{where}: quantization_config: weights is {weights!r:.40}, expected an object")
    bits, group = _bits(weights, ("num_bits",), where), weights.get("group_size")
    strategy = weights.get("strategy") or ("group" if group and group != -1 else "channel")
    is_float, narrow = weights.get("type") == "float", "8" in str(weights.get("scale_dtype"))
    narrow |= is_float and bits == 4
    scale = (8 if narrow else 16) + (bits if weights.get("symmetric") is False else 0)
    if strategy in ("group", "tensor_group"):
        size = _group(weights, where)
        return Storage(bits, (1, size), scale, 32 if is_float and bits == 4 and size == 16 else 0)
    if strategy == "block":
        return Storage(bits, _block(weights.get("block_structure"), where), scale)
    if strategy in ("channel", "tensor"):
        return Storage(bits, (1, 0) if strategy == "channel" else (0, 0), scale)
    raise InputError(f"{where}: quantization_config: strategy {strategy!r:.40} is unknown; {FIX}")


def _names(pattern: Any, name: str, where: str) -> bool:
    """Whether a rule of a quantisation names a matrix, its module, or a part of the path to it."""
    if not isinstance(pattern, str) or not pattern:
        return False
    stem, _, projection = name.rpartition(".")
    paths = [f"{stem}.{alias}" for alias in _ALIASES.get(projection, [projection])]
    if pattern.startswith("re:"):
        try:
            return any(re.match(pattern[3:], path) for path in [*paths, stem])
        except re.error as error:
            raise InputError(f"{where}: quantization_config: {pattern!r:.60} is no regular expression") from error
    # the same layer has prefixes of its own in each library
    short = pattern[pattern.find("layers.") :] if "layers." in pattern else pattern
    return any(f".{short}." in f".{path}." or fnmatch.fnmatch(path, f"*{short}") for path in paths)


def _bits(fields: _Fields, names: Sequence[str], where: str) -> int:
    value = next((fields[name] for name in names if name in fields), None)
    if type(value) is not int or not 1 <= value <= 16:
        raise InputError(f"{where}: quantization_config: {names[0]} is {value!r:.40}, expected 1 to 16; {FIX}")
    return value


def _group(fields: _Fields, where: str) -> int:
    """Weights of a row that share a scale, 128 where nothing is said; 0 for the whole row."""
    value = next((fields[name] for name in ("group_size", "q_group_size") if fields.get(name) is not None), 128)
    if value == -1:
        return 0
    if type(value) is not int or not 1 <= value < 2**31:
        raise InputError(f"{where}: quantization_config: group_size is {value!r:.40}, expected a whole number")
    return value


def _block(value: Any, where: str) -> tuple[int, int]:
    sizes = [int(size) for size in re.findall(r"[0-9]{1,9}", str(value))]
    if len(sizes) != 2 or 0 in sizes:
        raise InputError(f"{where}: quantization_config: a block of {value!r:.40}, expected two whole numbers")
    return sizes[0], sizes[1]


_METHODS: dict[str, Callable[[_Fields, str, str], Storage | None]] = {
    "compressed-tensors": _of_group,
    "modelopt": _modelopt,
    "gptq": _gptq,
    "auto-round": _gptq,
    "intel/auto-round": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "fbgemm-fp8": lambda *_: Storage(8, (1, 0), 32),
    "mxfp4": lambda *_: Storage(4, (1, 32), 8),
    "bitsandbytes": _bitsandbytes,
}
