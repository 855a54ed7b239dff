"""Which modules of a model are its experts: found by what transformers gives every Mixture-of-Experts, not by class.

Since transformers 5 each architecture hands its experts module the hidden states, the chosen ids and the combine
weights, whatever its router does (groups, biases, renormalisation, jitter). That call is where routing is read.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_beyond.errors import InputError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class MoELayer:
    """One Mixture-of-Experts layer of a model.

    Attributes:
        number: The layer's number in the model; dense layers count too.
        name: Name of the module that holds the experts.
        experts: That module. It is called with (hidden_states, expert ids, combine weights).
        num_experts: Routed experts.
        expert_bytes: Bytes of one expert's parameters in the precision that is loaded.
    """

    number: int
    name: str
    experts: nn.Module
    num_experts: int
    expert_bytes: int


def moe_layers(model: PreTrainedModel) -> list[MoELayer]:
    """The model's MoE layers in rising order.

    Raises:
        InputError: The model has none that can be read, or layers of unequal numbers of experts.
    """
    found = [(name, module) for name, module in model.named_modules() if _is_experts(module)]
    kind = getattr(model.config, "model_type", type(model).__name__)
    if not found:
        raise InputError(
            f"{_name(model)}: no experts found in a model of type {kind!r}; expected a Mixture-of-Experts that "
            "transformers implements itself (remote code is not read)"
        )
    layers = [_layer(name, module) for name, module in found]
    layers.sort(key=lambda layer: layer.number)
    number, times = Counter(layer.number for layer in layers).most_common(1)[0]
    if times > 1:
        raise InputError(f"{_name(model)}: layer {number} has {times} groups of experts; one a layer can be traced")
    sizes = {layer.num_experts for layer in layers}
    if len(sizes) > 1:
        raise InputError(
            f"{_name(model)}: its layers have {sorted(sizes)} experts; a trace needs one number for all layers"
        )
    return layers


def _is_experts(module: nn.Module) -> bool:
    # both are set by transformers' decorator of experts classes, `use_experts_implementation`
    return hasattr(module, "_is_expert_parallel") and hasattr(type(module), "_apply_gate")


def _layer(name: str, module: nn.Module) -> MoELayer:
    numbers = _LAYER_NUMBER.findall(name)
    if not numbers:
        raise InputError(f"module {name!r} holds experts but no layer number can be read from its name")
    num_experts = int(getattr(module, "num_experts", 0)) or next(module.parameters()).shape[0]
    total = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    return MoELayer(int(numbers[0]), name, module, num_experts, total // num_experts)


def _name(model: PreTrainedModel) -> str:
    return model.config.name_or_path or type(model).__name__
