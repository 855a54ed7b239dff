"""Experts carved out of a dense model's feed-forward layers, without training (CMoE, arXiv 2502.04416).

A gated layer is a sum over hidden neurons, so any grouping of them computes the same while all groups are active. The
neurons that are among a token's most active ones most often become shared; the others are put into groups of one size
by the tokens that activate them, and each group's most typical neuron stands for it in the router.

Unlike the authors' code, all layers are carved from what they read in the dense model. What is learnt there afterwards,
a scale and a bias of each expert, starts at 0 and is left out: a chosen expert's weight is 1.

Shape suffixes: T calibration tokens, H hidden size, I hidden neurons, N routed neurons, E routed experts, W neurons of
one, K experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import nn
from torch.nn import functional
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from moe_beyond.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from moe_beyond.capture.prompts import EncodedPrompt
    from moe_beyond.simulator.jit import F32, I64

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class CarvedBlock(nn.Module):
    """A feed-forward layer as a Mixture-of-Experts: shared neurons, and of the routed experts those that score highest.

    Attributes:
        shared_experts: The dense layer, left with the shared neurons.
        experts: Fused, as transformers has them.
        router: Gate and up projections of the experts' representatives, float [2 E, H], rows of length 1.
    """

    def __init__(
        self, mlp: nn.Module, read_TH: torch.Tensor, *, routed: int, shared: int, top_k: int, active: int
    ) -> None:
        """Carve `mlp`, which keeps only its shared neurons, by what it reads; the rest is as for `carve`."""
        super().__init__()
        gate_IH, up_IH, down_HI = (getattr(mlp, name).weight.detach() for name in _PROJECTIONS)
        self.top_k, self.act_fn = top_k, mlp.act_fn
        # neither a neuron's scale nor a token's shall decide which neurons are active
        unit_TH, gates_IH, ups_IH = (functional.normalize(rows, dim=1) for rows in (read_TH, gate_IH, up_IH))
        strength_TI = (self._activation(unit_TH @ gates_IH.T) * (unit_TH @ ups_IH.T)).abs()
        is_active_TI = torch.zeros_like(strength_TI).scatter_(1, strength_TI.topk(active).indices, 1.0)
        always, experts_EW, typical_E = _grouped(is_active_TI.float().cpu().numpy(), routed, shared)
        self.router = nn.Parameter(torch.cat([gates_IH[typical_E], ups_IH[typical_E]]), requires_grad=False)
        config = MixtralConfig(
            num_local_experts=routed, hidden_size=gate_IH.shape[1], intermediate_size=experts_EW.shape[1]
        )
        config._experts_implementation = "eager"
        experts: Any = MixtralExperts(config)
        experts.act_fn = mlp.act_fn
        fused = {
            "gate_up_proj": torch.cat([gate_IH[experts_EW], up_IH[experts_EW]], dim=1),
            "down_proj": down_HI.T[experts_EW].transpose(1, 2).contiguous(),
        }
        for name, parameter in fused.items():
            setattr(experts, name, nn.Parameter(parameter, requires_grad=False))
        for name in _PROJECTIONS:
            linear, axis = getattr(mlp, name), int(name == "down_proj")
            kept = linear.weight.detach().index_select(axis, torch.from_numpy(always).to(linear.weight.device))
            linear.weight = nn.Parameter(kept, requires_grad=False)
            linear.out_features, linear.in_features = kept.shape
        self.experts: Any = experts
        self.shared_experts: Any = mlp

    def _activation(self, values: torch.Tensor) -> torch.Tensor:
        function: Any = self.act_fn
        activated: torch.Tensor = function(values)
        return activated

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Shared neurons and the chosen experts, same shape as the input, [..., H]."""
        hidden_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
        gate_TE, up_TE = functional.linear(hidden_TH, self.router).chunk(2, dim=1)
        ids_TK = (self._activation(gate_TE) * up_TE).abs().topk(self.top_k, dim=1).indices
        routed_TH = self.experts(hidden_TH, ids_TK, torch.ones_like(ids_TK, dtype=hidden_TH.dtype))
        out: torch.Tensor = self.shared_experts(hidden_states) + routed_TH.view_as(hidden_states)
        return out


def carve(
    model: PreTrainedModel,
    prompts: Sequence[EncodedPrompt],
    *,
    routed: int,
    shared: int,
    top_k: int,
    active: int = 10,
) -> None:
    """Make the model a Mixture-of-Experts in place; capture can trace it and `offloaded` run it.

    It cannot be written with `save_pretrained` and loaded again: no architecture of transformers has such layers.

    Args:
        model: In evaluation mode, its feed-forward layers gated (`gate_proj`, `up_proj`, `down_proj`) without biases.
        prompts: Calibration text.
        routed: Experts to choose from in each layer.
        shared: Always active neurons, as so many experts of the same size.
        top_k: Routed experts that a token uses.
        active: Neurons of a layer that count as active for a token.

    Raises:
        InputError: No such layers, no calibration text, or sizes that do not divide a layer.
    """
    name = getattr(model.config, "name_or_path", "") or type(model).__name__
    mlps: dict[str, Any] = {
        path: module
        for path, module in model.named_modules()
        if all(isinstance(getattr(module, part, None), nn.Linear) for part in _PROJECTIONS)
    }
    if not mlps or any(hasattr(module, "_is_expert_parallel") for module in model.modules()):
        raise InputError(f"{name}: no dense model with gated feed-forward layers ({', '.join(_PROJECTIONS)}) to carve")
    if not prompts:
        raise InputError(f"{name}: carving needs calibration text, at least one prompt")
    for path, mlp in mlps.items():
        neurons = mlp.gate_proj.out_features
        if any(getattr(mlp, part).bias is not None for part in _PROJECTIONS):
            raise InputError(f"{name}: {path} has biases, which experts of this form cannot hold")
        if not (shared >= 1 and 1 <= top_k <= routed and neurons % (routed + shared) == 0 and 1 <= active <= neurons):
            raise InputError(
                f"{name}: {path} has {neurons} neurons; they cannot be carved into {shared} shared and {routed} routed "
                f"experts, {top_k} for a token, {active} neurons active: give sizes that divide them, at least one each"
            )
    read = _read_by(model, mlps, prompts)
    for path, mlp in mlps.items():
        block = CarvedBlock(mlp, read[path], routed=routed, shared=shared, top_k=top_k, active=active)
        model.set_submodule(path, block.eval())


def _read_by(
    model: PreTrainedModel, mlps: dict[str, nn.Module], prompts: Sequence[EncodedPrompt]
) -> dict[str, torch.Tensor]:
    """What each layer reads of the prompts, [T, H]."""
    read: dict[str, list[torch.Tensor]] = {path: [] for path in mlps}
    hooks = [
        mlp.register_forward_pre_hook(lambda _module, args, rows=read[path]: rows.append(args[0].flatten(0, -2)))
        for path, mlp in mlps.items()
    ]
    try:
        with torch.no_grad():
            for prompt in prompts:
                model.base_model(input_ids=torch.tensor([prompt.token_ids], device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: torch.cat(rows) for path, rows in read.items()}


def _grouped(is_active_TI: F32, routed: int, shared: int) -> tuple[I64, I64, I64]:
    """Shared neurons, those of each expert [E, W], and the neuron that stands for each [E]; int64.

    Balanced clustering by linear assignment, one round from the most active routed neurons (CMoE, section 3.2).
    """
    width = is_active_TI.shape[1] // (routed + shared)
    by_rate_I = np.argsort(-is_active_TI.sum(axis=0), kind="stable")
    always, others_N = np.split(by_rate_I, [shared * width])
    active_NT = is_active_TI.T[others_N]
    distance_NE = cdist(active_NT, active_NT[:routed], "cityblock")
    # a column for each place in a group
    _, place_N = linear_sum_assignment(np.repeat(distance_NE, width, axis=1))
    members_EW = np.stack([np.flatnonzero(place_N // width == expert) for expert in range(routed)])
    typical_E = [
        members_W[cdist(active_NT[members_W], active_NT[members_W].mean(axis=0)[None], "cityblock").argmin()]
        for members_W in members_EW
    ]
    return always, others_N[members_EW], others_N[np.array(typical_E)]
