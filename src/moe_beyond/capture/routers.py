"""The weights of a model's routers, and whether they choose what the trace says.

Found by shape, not by class: a matrix of experts x hidden size beside the experts, a bias of its own, and a bias of the
choice alone. What a model does not say of its router (softmax or sigmoid, how a group of experts is rated) is what
reproduces the recorded choices best. Routers that do not reproduce them are of no use, and are not kept.

Shape suffixes: T tokens, L MoE layers, E experts, D hidden size, K experts per token, N tokens that are compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from moe_beyond.capture.discovery import MoELayer, ancestors
from moe_beyond.traces.hidden import Floats, Routers

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from moe_beyond.traces.schema import Trace

LEAST_AGREEMENT = 0.995
"""Share of (token, layer) in which the routers must choose the recorded experts; rounding to float16 moves a few."""
_SAMPLE_TOKENS = 4096
_NAMES = {"gate", "router"}


@dataclass(frozen=True)
class _Found:
    """Tensors of one layer's router, and the modules that may say how it chooses."""

    weights_ED: Floats
    logit_bias_E: Floats | None
    choice_bias_E: Floats | None
    modules: tuple[nn.Module, ...]


@dataclass(frozen=True)
class Agreement:
    """How many choices of experts, a token and layer each, routers make as recorded."""

    same: int = 0
    compared: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(self.same + other.same, self.compared + other.compared)

    @property
    def share(self) -> float:
        """Of 1; 0 where nothing was compared."""
        return self.same / self.compared if self.compared else 0.0


def confirmed_routers(
    model: PreTrainedModel, layers: list[MoELayer], traces: Callable[[], Iterable[Trace]]
) -> tuple[Routers | None, str]:
    """The model's routers if they choose what was recorded, else what to tell the user.

    Args:
        model: The model that was traced.
        layers: Its MoE layers.
        traces: Goes through what was captured, with gate inputs, as often as it is called.
    """
    possible = list(possible_routers(model, layers))
    if not possible:
        return None, "no router's weights found beside the experts: traces have hidden states without routers"
    sample = next((trace for trace in traces() if _kept_tokens(trace, 1).size), None)
    if sample is None:
        return None, "no hidden states were kept: no routers either; raise extract.hidden_share"
    tokens = _kept_tokens(sample, _SAMPLE_TOKENS)
    # max takes the first of equals: what the model says comes first
    best = max(possible, key=lambda routers: agreement(routers, sample, tokens).share)
    found = sum((agreement(best, trace) for trace in traces()), Agreement())
    if found.share < LEAST_AGREEMENT:
        return None, (
            f"the routers' weights reproduce {found.same} of {found.compared} recorded choices ({found.share:.1%}, "
            f"needed are {LEAST_AGREEMENT:.1%}): traces have hidden states without routers"
        )
    return best, ""


def agreement(routers: Routers, trace: Trace, tokens: npt.NDArray[np.int64] | None = None) -> Agreement:
    """In how many of the layers and tokens whose gate inputs are kept the routers choose the recorded experts.

    Args:
        routers: To be checked.
        trace: With hidden states.
        tokens: Compare these alone.
    """
    hidden, top_k = trace.hidden, trace.metadata.top_k
    if hidden is None or hidden.width != routers.weights_LED.shape[2]:
        return Agreement(0, 0 if hidden is None else int((hidden.rows_T >= 0).sum()) * len(hidden.layers))
    tokens = _kept_tokens(trace, trace.num_tokens) if tokens is None else tokens
    same = 0
    for start, layer in itertools.product(range(0, len(tokens), _SAMPLE_TOKENS), hidden.layers):
        part_N = tokens[start : start + _SAMPLE_TOKENS]
        inputs_ND, _ = hidden.of_layer(hidden.gate_inputs_SYD, layer, part_N)
        chosen_NK = routers.choose(layer, inputs_ND, top_k)
        recorded_NK = trace.experts_TLK[part_N, layer]
        same += int((np.sort(chosen_NK, axis=1) == np.sort(recorded_NK, axis=1)).all(axis=1).sum())
    return Agreement(same, len(tokens) * len(hidden.layers))


def possible_routers(model: PreTrainedModel, layers: list[MoELayer]) -> Iterator[Routers]:
    """The model's routers in every way that they may choose, what the model says of itself first."""
    found = [_find(model, layer) for layer in layers]
    there = [one for one in found if one is not None]
    if len(there) < len(found) or len({one.weights_ED.shape for one in there}) > 1:
        return
    logit_bias_LE = _stacked([one.logit_bias_E for one in there])
    choice_bias_LE = _stacked([one.choice_bias_E for one in there])
    said_by = (*there[0].modules, model.config.get_text_config())
    num_groups = _said(said_by, "num_group", "n_group", "num_expert_group", "n_groups")
    top_groups = _said(said_by, "topk_group", "top_k_group", "topk_groups")
    grouped = num_groups > 1 and top_groups > 0 and layers[0].num_experts % num_groups == 0
    # a choice bias came with sigmoid and with groups by their two best (DeepSeek-V3)
    ratings: list[Literal["best", "two_best"]] = ["best", "two_best"]
    scorings: list[Literal["softmax", "sigmoid"]] = ["softmax", "sigmoid"]
    if choice_bias_LE is not None:
        ratings.reverse()
        scorings.reverse()
    stated = getattr(said_by[-1], "scoring_func", None)
    scorings.sort(key=lambda scoring: scoring != stated)
    weights_LED = np.stack([one.weights_ED for one in there])
    for rating, scoring in itertools.product(ratings if grouped else [], scorings):
        yield Routers(weights_LED, logit_bias_LE, choice_bias_LE, scoring, num_groups, top_groups, rating)
    for scoring in scorings:
        yield Routers(weights_LED, logit_bias_LE, choice_bias_LE, scoring)


def _find(model: PreTrainedModel, layer: MoELayer) -> _Found | None:
    """The router that lies nearest to a layer's experts."""
    inside = set(map(id, layer.experts.modules()))
    for block in ancestors(model, layer):
        modules = [(name, module) for name, module in block.named_modules() if id(module) not in inside]
        matrices = [
            (not _NAMES & set(name.split(".")), name, module, weights)
            for name, module in modules
            for weights in module.parameters(recurse=False)
            if weights.ndim == 2 and len(weights) == layer.num_experts
        ]
        if matrices:
            _, _, owner, weights = min(matrices, key=lambda found: found[:2])
            tensors = [
                (name, tensor)
                for _, module in modules
                for name, tensor in itertools.chain(
                    module.named_parameters(recurse=False), module.named_buffers(recurse=False)
                )
                if tensor.numel() == layer.num_experts and name.endswith("bias") and name != "bias"
            ]
            bias = getattr(owner, "bias", None)
            own = bias if isinstance(bias, torch.Tensor) and bias.numel() == layer.num_experts else None
            choice = tensors[0][1] if tensors else None
            if any(tensor is not None and tensor.is_meta for tensor in (weights, own, choice)):
                return None  # offloaded, not in memory
            return _Found(_floats(weights), _flat(own), _flat(choice), (owner, block))
    return None


def _floats(tensor: torch.Tensor) -> Floats:
    values: Floats = tensor.detach().float().cpu().numpy()
    return values


def _flat(tensor: torch.Tensor | None) -> Floats | None:
    return None if tensor is None else _floats(tensor).reshape(-1)


def _stacked(arrays: list[Floats | None]) -> Floats | None:
    """None where one of them is missing."""
    there = [array for array in arrays if array is not None]
    return np.stack(there) if len(there) == len(arrays) else None


def _said(objects: Iterable[Any], *names: str) -> int:
    """The first whole number of these names; 0: nobody says it."""
    for one, name in itertools.product(objects, names):
        if type(value := getattr(one, name, None)) is int:
            return value
    return 0


def _kept_tokens(trace: Trace, most: int) -> npt.NDArray[np.int64]:
    """Tokens whose hidden states are kept, at most so many."""
    return np.flatnonzero(trace.hidden.rows_T >= 0)[:most] if trace.hidden is not None else np.empty(0, np.int64)
