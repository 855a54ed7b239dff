"""Which modules of a model are its experts: found by what transformers gives every Mixture-of-Experts, not by class.

Since transformers 5 each architecture hands its experts module the hidden states, the chosen ids and the combine
weights, whatever its router does (groups, biases, renormalisation, jitter). That call is where routing is read. Models
that bring their own code often keep a list of experts, called one by one; there the router's output is read instead.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from moe_beyond.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class MoELayer:
    """One Mixture-of-Experts layer of a model.

    Attributes:
        number: The layer's number in the model; dense layers count too.
        name: Name of the module that holds the experts.
        experts: That module.
        router: None where `experts` is called with (hidden states, expert ids, combine weights). Else the module whose
            output holds ids and weights.
        num_experts: Routed experts.
        expert_bytes: Bytes of one expert's parameters in the precision that is loaded.
    """

    number: int
    name: str
    experts: nn.Module
    router: nn.Module | None
    num_experts: int
    expert_bytes: int


def moe_layers(model: PreTrainedModel, *, readable: bool = True) -> list[MoELayer]:
    """The model's MoE layers in rising order.

    Args:
        model: Also without weights, on the meta device.
        readable: Only those whose routing a hook can read; else also those whose shape alone can be seen.

    Raises:
        InputError: The model has none, or layers of unequal numbers of experts.
    """
    name = getattr(model.config, "name_or_path", "") or type(model).__name__
    layers = _fused(model) or _listed(model) or ([] if readable else _stacked(model))
    if not layers:
        kind = getattr(model.config, "model_type", type(model).__name__)
        raise InputError(
            f"{name}: no experts found in a model of type {kind!r}; expected a Mixture-of-Experts whose "
            "experts module or router gives expert ids and weights"
        )
    layers.sort(key=lambda layer: layer.number)
    number, times = Counter(layer.number for layer in layers).most_common(1)[0]
    if times > 1:
        raise InputError(f"{name}: layer {number} has {times} groups of experts; one a layer can be traced")
    sizes = sorted({layer.num_experts for layer in layers})
    if len(sizes) > 1:
        raise InputError(f"{name}: its layers have {sizes} experts; a trace needs one number for all layers")
    return layers


def decoder_layer(model: PreTrainedModel, layer: MoELayer) -> nn.Module:
    """The whole decoder layer that a MoE layer lies in: the module whose name ends in the layer's number."""
    return model.get_submodule(_in_layer(layer.name)[0])


def ancestors(model: PreTrainedModel, layer: MoELayer) -> list[nn.Module]:
    """The modules that hold a layer's experts, from their own block up to the decoder layer."""
    layer_name, rest = _in_layer(layer.name)
    inner = rest.split(".")[:-1]
    names = [".".join([layer_name, *inner[:depth]]) for depth in range(len(inner), -1, -1)]
    return [model.get_submodule(name) for name in names]


def _in_layer(name: str) -> tuple[str, str]:
    """Name of the decoder layer, and of a module within it."""
    found = _LAYER_NUMBER.search(name)
    assert found is not None  # noqa: S101 - a MoELayer has a number
    return name[: found.end(1)], name[found.end(1) + 1 :]


def _fused(model: PreTrainedModel) -> list[MoELayer]:
    """Layers whose experts are one module that transformers' `use_experts_implementation` decorates."""
    return [
        _layer(name, module, None, int(getattr(module, "num_experts", 0)) or next(module.parameters()).shape[0])
        for name, module in model.named_modules()
        # the decorator sets both
        if hasattr(module, "_is_expert_parallel") and hasattr(type(module), "_apply_gate")
    ]


def _listed(model: PreTrainedModel) -> list[MoELayer]:
    """Layers that keep a list of experts beside a `gate` or `router`."""
    layers = []
    for name, module in model.named_modules():
        experts = getattr(module, "experts", None)
        router = getattr(module, "gate", None) or getattr(module, "router", None)
        if isinstance(experts, nn.ModuleList) and isinstance(router, nn.Module):
            layers.append(_layer(f"{name}.experts", experts, router, len(experts)))
    return layers


def _stacked(model: PreTrainedModel) -> list[MoELayer]:
    """Layers whose module `experts` holds the projections of all of them in one tensor each."""
    return [
        _layer(name, module, None, module.down_proj.shape[0])
        for name, module in model.named_modules()
        if name.endswith(".experts") and isinstance(getattr(module, "down_proj", None), nn.Parameter)
    ]


def _layer(name: str, experts: nn.Module, router: nn.Module | None, num_experts: int) -> MoELayer:
    numbers = _LAYER_NUMBER.findall(name)
    if not numbers:
        raise InputError(f"module {name!r} holds experts but no layer number can be read from its name")
    total = sum(parameter.numel() * parameter.element_size() for parameter in experts.parameters())
    return MoELayer(int(numbers[0]), name, experts, router, num_experts, total // num_experts)
