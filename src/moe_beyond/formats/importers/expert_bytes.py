"""Bytes of one expert as checkpoints store it: weights, scales, zero points and biases.

By the precision and quantisation of a model's config.json, or by the block types of GGUF (ggml-common.h). What is not
known is refused: an expert of a wrong size makes every budget and every time wrong.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from moe_beyond.errors import InputError
from moe_beyond.formats.importers.quantisation import FIX, Storage, method_of, storage_of

_DTYPE_BITS = {"float32": 32, "float": 32, "bfloat16": 16, "float16": 16, "half": 16, "float8_e4m3fn": 8}

# weights a block, bytes a block
_GGUF = {
    **{"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22)},
    **{"Q5_1": (32, 24), "Q8_0": (32, 34), "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144)},
    **{"Q5_K": (256, 176), "Q6_K": (256, 210), "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66)},
    **{"IQ2_XS": (256, 74), "IQ2_S": (256, 82), "IQ3_XXS": (256, 98), "IQ3_S": (256, 110), "IQ4_NL": (32, 18)},
    **{"IQ4_XS": (256, 136), "TQ1_0": (256, 54), "TQ2_0": (256, 66), "MXFP4": (32, 17), "NVFP4": (64, 36)},
}
# type of a mix, and that of its down projections where llama.cpp's `use_more_bits` (llama-quant.cpp) holds
_GGUF_MIXES = {"Q4_K_M": ("Q4_K", "Q6_K"), "Q5_K_M": ("Q5_K", "Q6_K"), "Q5_K_S": ("Q5_K", "Q5_K")}


@dataclass(frozen=True)
class Matrix:
    """A projection of one expert: `gate_proj`, `up_proj` or `down_proj`, its outputs and inputs."""

    name: str
    outputs: int
    inputs: int


@dataclass(frozen=True)
class Expert:
    """What one expert of a layer consists of.

    Attributes:
        module: Name of the module that holds the layer's experts.
        layer: Number of the layer in the model.
        matrices: Its projections.
        biases: Further numbers, which no method quantises.
    """

    module: str
    layer: int
    matrices: tuple[Matrix, ...]
    biases: int = 0


def sized(size: str, expert: Expert, num_layers: int) -> int:
    """Bytes by `size`: a number of bytes, or a GGUF type or mix.

    Raises:
        InputError: It is neither.
    """
    if re.fullmatch(r"[1-9][0-9]{0,14}", size):
        return int(size)
    plain, more = _GGUF_MIXES.get(size.upper(), (size.upper(), size.upper()))
    if plain not in _GGUF:
        known = ", ".join([*_GGUF, *_GGUF_MIXES])
        raise InputError(f"expert size {size!r:.40}: expected bytes of one expert, or a GGUF type: {known}")
    eighth, layer = num_layers // 8, expert.layer
    with_more = layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
    total = 4 * expert.biases
    for matrix in expert.matrices:
        weights, block_bytes = _GGUF[more if with_more and matrix.name == "down_proj" else plain]
        total += math.ceil(matrix.outputs * matrix.inputs / weights) * block_bytes
    return total


def from_config(config: dict[str, Any], expert: Expert, num_layers: int, where: str) -> int:
    """Bytes by the precision and `quantization_config` of a config.json; without a dtype, 16 bits a weight.

    Raises:
        InputError: An unknown dtype or method, or one that lacks what its size depends on.
    """
    if any(matrix.outputs < 1 or matrix.inputs < 1 for matrix in expert.matrices):
        raise InputError(f"{where}: an expert of it has no weights; a size in it is 0; {FIX}")
    named = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    if named not in _DTYPE_BITS:
        raise InputError(f"{where}: dtype {named!r:.40} is unknown; {FIX}")
    plain = Storage(_DTYPE_BITS[named])
    quantised = config.get("quantization_config") or config.get("compression_config")
    if quantised is None:
        stored = [plain] * len(expert.matrices)
    elif not isinstance(quantised, dict):
        raise InputError(f"{where}: quantization_config is {quantised!r:.40}, expected an object")
    elif method_of(quantised) == "gguf":
        return sized(str(quantised.get("quant_type") or quantised.get("type")), expert, num_layers)
    else:
        if method_of(quantised) == "fp8" and config.get("expert_dtype") == "fp4":  # DeepSeek-V4
            quantised = {"quant_method": "mxfp4"}
        names = [f"{expert.module}.0.{matrix.name}" for matrix in expert.matrices]
        stored = [storage_of(quantised, name, where) or plain for name in names]
    pairs = zip(stored, expert.matrices, strict=True)
    total = sum(storage.num_bytes(matrix.outputs, matrix.inputs) for storage, matrix in pairs)
    return max(1, math.ceil(total + expert.biases * plain.bits / 8))
