"""LExI's experts per token, from what the model's own layers lose by fewer (arXiv 2509.02753).

Shape suffixes: T random inputs, H hidden size, K experts per token, L MoE layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.func import functional_call

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.capture.hooks import by_falling_weight
from moe_beyond.live.next_gate import block_of, called_with
from moe_beyond.live.pool import ExpertPool
from moe_beyond.simulator.policies.changed_models import LEXI_KEPT, Lexi

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from moe_beyond.live.store import ExpertStore
    from moe_beyond.simulator.jit import F64, I64

_INPUTS = 256


def fit_lexi(model: PreTrainedModel, store: ExpertStore, *, seed: int, kept: float = LEXI_KEPT) -> Lexi:
    """LExI by measurement, without data.

    Each layer reads normal random inputs, and its output with its k' heaviest experts alone, at their weights, is
    compared with that of all: the Frobenius norm of the difference. Layers get the numbers of least total loss.

    Args:
        model: Its experts need not be loaded.
        store: Its experts; one layer's are in memory at a time.
        seed: Of the inputs.
        kept: Share of all uses that stays; each layer keeps one at least.

    Raises:
        InputError: A layer's block cannot be run by itself; a damaged record.
    """
    lost_LK = np.stack([_lost_K(model, store, layer, seed) for layer in range(store.num_layers)])
    num_layers, top_k = lost_LK.shape
    return Lexi(least_loss(lost_LK, max(num_layers, round(kept * num_layers * top_k))))


def least_loss(lost_LK: F64, total: int) -> I64:
    """How many experts each layer keeps, 1 to K, `total` in all, at the least sum of losses; int64 [L].

    The publication searches by evolution; the losses add up, so dynamic programming finds the best.

    Args:
        lost_LK: What layer l loses with k + 1 experts at `lost_LK[l, k]`.
        total: From L to L * K.
    """
    num_layers, top_k = lost_LK.shape
    # least[n]: of the layers so far with n experts in all
    least, choices = np.full(total + 1, np.inf), np.zeros((num_layers, total + 1), np.int64)
    least[0] = 0
    for layer in range(num_layers):
        options = np.full((top_k, total + 1), np.inf)
        for kept in range(1, min(top_k, total) + 1):
            options[kept - 1, kept:] = least[: total + 1 - kept] + lost_LK[layer, kept - 1]
        choices[layer], least = options.argmin(axis=0) + 1, options.min(axis=0)
    top_k_L = np.zeros(num_layers, np.int64)
    for layer in reversed(range(num_layers)):
        top_k_L[layer] = choices[layer, total]
        total -= top_k_L[layer]
    return top_k_L


@torch.inference_mode()
def _lost_K(model: PreTrainedModel, store: ExpertStore, index: int, seed: int) -> F64:
    """What a layer (index) loses with 1 to K experts, float64."""
    layer = moe_layers(model)[index]
    block = block_of(model, layer)
    draw = torch.Generator().manual_seed(seed)
    hidden_TH = torch.randn(_INPUTS, model.config.get_text_config().hidden_size, generator=draw)
    hidden_TH = hidden_TH.to(model.device, model.dtype)
    ids_TK, weights_TK = by_falling_weight(*called_with(lambda: block(hidden_TH[None]), layer.experts))
    pool = ExpertPool(store.parameters, store.stride, store.num_experts, store.num_experts)
    for expert in range(store.num_experts):
        record, number = pool.record(expert).numpy().data, index * store.num_experts + expert
        store.read(number, record, 0, store.stride)
        store.check(number, record)
    experts = {name: slots.to(model.device) for name, slots in pool.parameters().items()}
    lost_TH, lost_K = torch.zeros_like(hidden_TH, dtype=torch.float32), np.zeros(ids_TK.shape[1])
    for place in range(ids_TK.shape[1] - 1, 0, -1):
        one = slice(place, place + 1)
        arguments = (hidden_TH, ids_TK[:, one].contiguous(), weights_TK[:, one].contiguous())
        lost_TH += functional_call(layer.experts, experts, arguments).float()
        lost_K[place - 1] = float(lost_TH.norm())
    return lost_K
